//! `test lab`: the tests for which the lab was made, in the lab. What has to be built is built here, with the
//! packages and features of the other tests; only the finished binaries run there.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Options, guest};
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
/// What a test may take. The slowest take a tenth of it on a free machine.
const LIMIT_S: u32 = 180;
/// Beginnings of the names of tests that cannot hold there, as `FOLDER::NAME`, and why.
const LEFT_OUT: [(&str, &str); 1] = [(
    "netns::trigger::",
    "the trigger `kernel` is attached by TCX, which Linux 6.1 lacks: lab::kernel has the refusal",
)];

pub(crate) fn run(tree: &Tree, toolchain: &Toolchain, name: Option<&str>) -> Result<ExitCode> {
    build::run(tree, toolchain)?;
    guest::linux(tree)?;
    let mut command: Vec<OsString> = ["bash", "-c", SUITE, "suite.sh"].map(Into::into).into();
    command.push(LIMIT_S.to_string().into());
    command.push(name.unwrap_or_default().into());
    for (beginning, why) in LEFT_OUT {
        eprintln!("lab: left out: {beginning}*: {why}");
        command.push(format!("-{beginning}").into());
    }
    command.extend(binaries(tree)?.into_iter().map(OsString::from));
    super::run(tree, &Options { timeout: 3600, ..Options::of(command) })
}

/// The test binaries, built.
fn binaries(tree: &Tree) -> Result<Vec<PathBuf>> {
    let mut command = cargo(tree);
    command.args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"]);
    command.arg(test::PRIVILEGED).args(test::packages());
    command.args(FOLDERS.map(|folder| format!("--test={folder}")));
    let messages = output(&mut command)?;
    let find = |folder: &&str| {
        executable(&messages, folder).with_context(|| format!("cargo built no test {folder}"))
    };
    FOLDERS.iter().map(find).collect()
}

/// The executable of the test called `name`, in what cargo says in JSON.
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
