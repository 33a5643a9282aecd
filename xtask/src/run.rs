//! `run`: the rig, raised to root when the caller is not; nothing but the built binary is.
//!
//! A Linux guest wants hardware virtualization. Where this machine has none to offer, the rig runs in the lab.

use std::{
    ffi::OsString, fs, iter, os::unix::process::CommandExt, path::Path, process::Command,
    process::ExitCode,
};

use anyhow::{Context, Result};

use crate::{build, invoke::is_root, lab, setup::Toolchain, tree::Tree};

/// What a run in the lab may take for each of its rounds, in seconds, and for all else.
const LAB_ROUND_S: u64 = 240;
const LAB_S: u64 = 300;

pub(crate) fn run(tree: &Tree, toolchain: &Toolchain, options: &[String]) -> Result<ExitCode> {
    if value_of(options, "--guest") == Some("linux")
        && !asks_help(options)
        && linux_wants_lab(tree, "run")?
    {
        build::run(tree, toolchain)?;
        let rounds = value_of(options, "--repeat").and_then(|n| n.parse().ok()).unwrap_or(1);
        let timeout = LAB_ROUND_S.saturating_mul(rounds).saturating_add(LAB_S);
        let mut lab = lab::Options::of(rig(tree, &["run"], options));
        lab.timeout = timeout;
        return Ok(ExitCode::from(lab::run(tree, &lab)?));
    }
    become_rig(tree, toolchain, &["run"], options)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the Linux guest, and says whether `verb` has to run with it in the lab.
pub(crate) fn linux_wants_lab(tree: &Tree, verb: &str) -> Result<bool> {
    let [kernel, ..] = lab::guest::linux(tree)?;
    let wants = !has_hardware_virtualization();
    if wants {
        eprintln!(
            "{verb}: KVM here has no VMX or SVM, which {} wants: in the lab then, which is emulated and ten times as slow",
            kernel.display()
        );
    }
    Ok(wants)
}

/// Returns the command that runs the rig.
pub(crate) fn rig(tree: &Tree, verb: &[&str], options: &[String]) -> Vec<OsString> {
    let words = verb.iter().map(OsString::from).chain(options.iter().map(OsString::from));
    iter::once(tree.rig().into_os_string()).chain(words).collect()
}

/// Returns whether the options ask for help, which the rig prints.
pub(crate) fn asks_help(options: &[String]) -> bool {
    options.iter().any(|option| option == "--help" || option == "-h")
}

/// Returns the value of an option of the rig, in either way to write it.
pub(crate) fn value_of<'a>(options: &'a [String], name: &str) -> Option<&'a str> {
    options.iter().enumerate().find_map(|(n, option)| match option.strip_prefix(name)? {
        "" => options.get(n + 1).map(String::as_str),
        value => value.strip_prefix('='),
    })
}

/// Returns whether a module of KVM for hardware virtualization is loaded.
fn has_hardware_virtualization() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let loaded = |flag: &str, module: &str| {
        flags.split_whitespace().any(|word| word == flag)
            && Path::new("/sys/module").join(module).is_dir()
    };
    loaded("vmx", "kvm_intel") || loaded("svm", "kvm_amd")
}

/// Builds, then becomes the rig, so that signals and the exit status are its own.
pub(crate) fn become_rig(
    tree: &Tree,
    toolchain: &Toolchain,
    verb: &[&str],
    options: &[String],
) -> Result<()> {
    build::run(tree, toolchain)?;
    let rig = tree.rig();
    let mut command = if is_root()? {
        Command::new(&rig)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(&rig);
        sudo
    };
    // The help that clap was told not to answer is the rig's.
    let options = options.iter().filter(|option| *option != "--");
    let error = command.args(verb).args(options).exec();
    Err(error).with_context(|| format!("start {}", rig.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_options_value_is_found_in_either_form() {
        let options = ["--repeat", "3", "--guest=linux"].map(str::to_owned);
        assert_eq!(value_of(&options, "--guest"), Some("linux"));
        assert_eq!(value_of(&options, "--repeat"), Some("3"));
        assert_eq!(value_of(&options, "--seed"), None);
        assert_eq!(value_of(&options[..1], "--repeat"), None);
    }
}
