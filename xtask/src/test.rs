//! `test`: the unprivileged tests as the caller, then those that need root, in one serial group.
//!
//! One profile (`--release`) and one set of packages for everything, so that nothing is built twice. The
//! runner's output is left as it is. A caller who is root needs one pass; for any other, cargo itself
//! raises each privileged test binary through its `runner` setting, so that the build stays the caller's.

use std::process::Command;

use anyhow::Result;

use crate::{
    build,
    invoke::{self, cargo, is_root, succeeds},
    setup::Toolchain,
    tree::Tree,
};

pub(crate) const PRIVILEGED: &str = "--features=remus-tests/privileged";
/// The guest is there for its library, which runs anywhere; its binary has no tests and is not built.
const PACKAGES: [&str; 5] = ["remus-abi", "remus-guest", "remus-user", "remus-tests", "xtask"];

pub(crate) fn run(tree: &Tree, toolchain: &Toolchain, filter: Option<&str>) -> Result<()> {
    build::run(tree, toolchain)?;
    let runner = Runner::find(tree);
    if is_root()? {
        return invoke::run(select(runner.command(tree).arg(PRIVILEGED), filter));
    }
    let raised = format!(
        "CARGO_TARGET_{}_RUNNER",
        toolchain.host().to_ascii_uppercase().replace(['-', '.'], "_")
    );
    match filter {
        Some("sim") => invoke::run(select(&mut runner.command(tree), filter)),
        Some("netns" | "kvm" | "faults") => {
            let mut command = runner.command(tree);
            invoke::run(select(command.arg(PRIVILEGED).env(raised, "sudo -E"), filter))
        }
        Some(_) | None => {
            invoke::run(select(&mut runner.command(tree), filter))?;
            let mut command = runner.command(tree);
            command.arg(PRIVILEGED).env(raised, "sudo -E");
            command.args(packages()).args(["--test=netns", "--test=kvm", "--test=faults"]);
            invoke::run(command.args(filter))
        }
    }
}

/// Always the same packages, also where only one has the tests asked for: cargo unites the features of those
/// that are named, and others would be another build of everything they depend on.
pub(crate) fn packages() -> [String; 5] {
    PACKAGES.map(|package| format!("--package={package}"))
}

/// Adds which tests to run: those of a folder of tests/; or, of all packages, those whose name contains the filter.
fn select<'a>(command: &'a mut Command, filter: Option<&str>) -> &'a mut Command {
    match filter {
        Some(folder @ ("sim" | "netns" | "kvm" | "faults")) => {
            command.arg("--package=remus-tests").arg(format!("--test={folder}"))
        }
        filter => command.args(PACKAGES.map(|package| format!("--package={package}"))).args(filter),
    }
}

/// nextest where it is installed: a process per test, and the serial group that .config/nextest.toml names.
/// Else plain cargo, one test at a time.
enum Runner {
    Nextest,
    Plain,
}

impl Runner {
    fn find(tree: &Tree) -> Self {
        let nextest = succeeds(cargo(tree).args(["nextest", "--version"]));
        if nextest { Self::Nextest } else { Self::Plain }
    }

    fn command(&self, tree: &Tree) -> Command {
        let mut command = cargo(tree);
        match self {
            // A filter that fits no test of one pass may fit some of the other.
            Self::Nextest => {
                command.args(["nextest", "run", "--release", "--no-fail-fast", "--no-tests=pass"]);
            }
            Self::Plain => {
                command.args(["test", "--release", "--no-fail-fast"]).env("RUST_TEST_THREADS", "1");
            }
        }
        command
    }
}
