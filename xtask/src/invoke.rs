//! Running other programs: the command is shown when it fails, so that it can be repeated by hand.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::tree::Tree;

/// Returns the cargo that runs us, in the root of `tree`.
pub(crate) fn cargo(tree: &Tree) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree.root());
    command
}

/// Runs `command` to its end with our own input and output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start\n  {}", shown(command)))?;
    if !status.success() {
        bail!("failed ({status}):\n  {}", shown(command));
    }
    Ok(())
}

/// Returns what `command` prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start\n  {}", shown(command)))?;
    if !output.status.success() {
        bail!("failed ({}):\n  {}", output.status, shown(command));
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("output is not text:\n  {}", shown(command)))
}

/// Returns whether `command` ends well, and discards what it prints.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

pub(crate) fn is_root() -> io::Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// Returns the file that a shell would run for `name`. The sbin folders are searched too: sudo has them in its path.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Returns the command as a line for a shell, with the environment that was set for it.
fn shown(command: &Command) -> String {
    let assignments = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    assignments.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@+,%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    // The unit separator of CARGO_ENCODED_RUSTFLAGS has no other readable spelling.
    if word.contains('\x1f') {
        return format!("$'{}'", word.replace('\x1f', "\\x1f"));
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("cargo");
        command.arg("build").arg("two words").arg("it's").env("FLAGS", "-Ca\x1f-Cb");
        assert_eq!(shown(&command), r"FLAGS=$'-Ca\x1f-Cb' cargo build 'two words' 'it'\''s'");
    }

    #[test]
    fn a_failure_names_the_command() {
        let failure = run(Command::new("false").arg("x")).unwrap_err().to_string();
        assert!(failure.contains("false x"), "{failure}");
    }
}
