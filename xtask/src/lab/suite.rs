//! `test lab`: the tests for which the lab was made, in the lab. What has to be built is built here, with the
//! packages and features of the other tests; only the finished binaries run there.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Options, debian, guest};
use crate::{
    build,
    invoke::{cargo, output},
    setup::Toolchain,
    test,
    tree::Tree,
};

/// The folders of tests/ whose tests run there.
const FOLDERS: [&str; 2] = ["netns", "lab"];
/// Runs there and gives every test a process and a time limit of its own.
const SUITE: &str = include_str!("suite.sh");
/// What a test may take. A whole Debian needs half of it, all others less than a tenth on a free machine.
const LIMIT_S: u32 = 600;
/// What a lab may take.
const LAB_S: u64 = 3600;
/// Beginnings of the names of tests that cannot hold there, as `FOLDER::NAME`, and why.
const LEFT_OUT: [(&str, &str); 1] = [(
    "netns::trigger::",
    "the trigger `kernel` is attached by TCX, which Linux 6.1 lacks: lab::kernel has the refusal",
)];
/// A test: its binary, and its name there.
struct Test {
    binary: PathBuf,
    name: String,
}

/// Runs the tests whose name contains `name`, all without one.
pub(crate) fn run(tree: &Tree, toolchain: &Toolchain, name: Option<&str>) -> Result<ExitCode> {
    build::run(tree, toolchain)?;
    guest::linux(tree)?;
    debian::make(tree, false)?;
    for (beginning, why) in LEFT_OUT {
        eprintln!("lab: left out: {beginning}*: {why}");
    }
    let tests = tests(tree, name.unwrap_or_default())?;
    ensure!(!tests.is_empty(), "no test in the lab has {} in its name", name.unwrap_or_default());
    let mut command: Vec<OsString> = ["bash", "-c", SUITE, "suite.sh"].map(Into::into).into();
    command.push(LIMIT_S.to_string().into());
    for Test { binary, name } in tests {
        command.extend([binary.into(), name.into()]);
    }
    let mut options = Options::of(command);
    options.timeout = LAB_S;
    Ok(ExitCode::from(super::run(tree, &options)?))
}

/// Returns the tests that contain `name` and are not left out.
fn tests(tree: &Tree, name: &str) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for (folder, binary) in binaries(tree)? {
        let names = output(Command::new(&binary).args(["--list", "--format=terse", name]))?;
        for name in names.lines().filter_map(|line| line.strip_suffix(": test")) {
            let full = format!("{folder}::{name}");
            if !LEFT_OUT.iter().any(|(beginning, _)| full.starts_with(beginning)) {
                tests.push(Test { binary: binary.clone(), name: name.to_owned() });
            }
        }
    }
    Ok(tests)
}

/// Builds the test binaries, and returns each with its folder.
fn binaries(tree: &Tree) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut command = cargo(tree);
    command.args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"]);
    command.arg(test::PRIVILEGED).args(test::packages());
    command.args(FOLDERS.map(|folder| format!("--test={folder}")));
    let messages = output(&mut command)?;
    let find = |folder| {
        let binary = executable(&messages, folder);
        Ok((folder, binary.with_context(|| format!("cargo built no test {folder}"))?))
    };
    FOLDERS.into_iter().map(find).collect()
}

/// Returns the executable of the test called `name`, in what cargo says in JSON.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(
        |message: Value| {
            let target = &message["target"];
            let is_it = target["name"] == name && target["kind"][0] == "test";
            is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_is_told_from_a_library_of_its_name() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lab"},"executable":null}
noise
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"lab"},"executable":"/t/lab-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "lab"), Some("/t/lab-1".into()));
        assert_eq!(executable(messages, "netns"), None);
    }
}
