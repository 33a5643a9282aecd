//! The `remus` binary from outside: exit codes, and that an error is said once, on stderr, with what to do.
//! Needs no privilege.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A directory of one test, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("remus-cli-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {e}", self.0.display());
        }
    }
}

fn remus(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remus"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_exits_0_and_wrong_usage_2() {
    let help = remus(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("3  preflight refused"));
    for wrong in [&["fly"][..], &["run"], &["backup"], &["backup", "--listen", "host:1"], &[]] {
        assert_eq!(remus(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_wrong_config_exits_2_with_one_error_that_points() {
    let scratch = Scratch::new("wrong");
    let file = scratch.write("vm.toml", "name = \"demo\"\nmemory = 256\n");
    for verb in ["run", "preflight"] {
        let output = remus(&[verb, path(&file)]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(text(&output.stdout), "");
        let expected = format!(
            "remus: error: {}:2:1: memory: there is no such key\n  help: known here: name, run_dir, state_dir, machine, net, \
             disk, console, protection, gate, placement\n",
            path(&file)
        );
        assert_eq!(text(&output.stderr), expected);
    }
}

#[test]
fn the_printed_example_is_a_config_that_only_this_machine_can_refuse() {
    let scratch = Scratch::new("example");
    let example = remus(&["run", "--print-example"]);
    assert_eq!(example.status.code(), Some(0));
    let missing = path(&scratch.0.join("missing.elf")).to_owned();
    let config = text(&example.stdout).replace("/usr/lib/remus/remus-guest", &missing);
    let file = scratch.write("vm.toml", &config);
    let output = remus(&["run", path(&file)]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(said.contains("remus: error: this machine is not ready:\n"), "{said}");
    assert!(said.contains(&format!("guest: open {missing}: No such file")), "{said}");

    let output = remus(&["preflight", path(&file), "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ready"], false);
    let checks = report["checks"].as_array().unwrap();
    let guest = checks.iter().find(|c| c["name"] == "guest").unwrap();
    assert_eq!(guest["outcome"], "refused");
}

#[test]
fn the_status_of_nothing_is_nothing_and_of_a_missing_vm_an_error() {
    let scratch = Scratch::new("status");
    let run_dir = path(&scratch.0);
    let nothing = remus(&["status", "--run-dir", run_dir, "--json"]);
    assert_eq!((nothing.status.code(), text(&nothing.stdout)), (Some(0), ""));
    let missing = remus(&["status", "--run-dir", run_dir, "demo"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).starts_with("remus: error: no VM demo runs here"));
    assert_eq!(remus(&["status", "../etc"]).status.code(), Some(2), "a name is no path");
}

#[test]
fn gate_verbs_take_no_names_that_leave_their_directory_and_find_nothing_where_nothing_is() {
    let scratch = Scratch::new("gate");
    let run_dir = path(&scratch.0);
    for wrong in [
        &["gate"][..],
        &["gate", "run"],
        &["gate", "run", "--tap", "../tap"],
        &["gate", "run", "--tap", "tap0", "--name", "a/b"],
        &["gate", "run", "--tap", "tap0", "--buffer-mib", "3"],
        &["gate", "run", "--tap", "tap0", "--lease-ms", "0"],
        &["gate", "run", "--tap", "tap0", "--at-exit", "open"],
        &["gate", "close"],
    ] {
        assert_eq!(remus(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let none = remus(&["gate", "list", "--run-dir", run_dir, "--json"]);
    assert_eq!((none.status.code(), text(&none.stdout)), (Some(0), ""));
    for verb in ["show", "close", "remove"] {
        let none = remus(&["gate", verb, "tap0", "--run-dir", run_dir]);
        assert_eq!(none.status.code(), Some(1));
        let said = text(&none.stderr);
        assert!(said.starts_with("remus: error: there is no gate tap0, by name or tap"), "{said}");
    }
}

/// Runs a shell line in which `remus` is the program.
fn shell(line: &str) -> Output {
    let line = format!("remus() {{ {} \"$@\"; }}; {line}", env!("CARGO_BIN_EXE_remus"));
    Command::new("bash").args(["-c", &line]).output().unwrap()
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_file_is_one() {
    for (line, code, word) in [
        ("remus run --print-example | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("remus run --print-example > /dev/full", 1, "write to standard output: No space left"),
        ("remus generate completion bash > /dev/full", 1, "write to standard output"),
        ("remus run --print-example 1< /dev/null", 1, "write to standard output: Bad file"),
        ("remus run --print-example >&-", 0, ""),
        ("remus status --run-dir /nowhere 2>&1 | true; exit ${PIPESTATUS[0]}", 1, ""),
    ] {
        let output = shell(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(word), "{line}: {}", text(&output.stderr));
    }
}
