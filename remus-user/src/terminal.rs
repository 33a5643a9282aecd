//! The terminal in which `remus run --console` was started, as the guest's console.
//!
//! What is typed goes to the guest byte by byte, Ctrl-C too. [`LEAVE`] leaves the console, and the VM runs on. The
//! terminal is restored when the console is left, when the process ends, and when it is aborted. A terminal that hangs
//! up, or whose keyboard goes to another process, ends the console and not the VM: a lost login must not make a backup
//! take over.
//!
//! Absent: the window's size, since a serial line has none.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::machine::Console;
use crate::outlet;

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// The terminal's mode before it was made raw.
static COOKED: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is raw now.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// The terminal, found and not changed yet.
#[derive(Debug)]
pub struct Terminal {
    input: File,
    output: File,
}

/// The terminal is the guest's console until this is dropped.
#[must_use = "the console is left when this is dropped"]
pub(crate) struct Attached(());

impl Terminal {
    /// Finds the terminal of this process.
    ///
    /// # Errors
    /// When standard input or output is not a terminal, or this process runs in the terminal's background.
    pub fn of_this_process() -> Result<Self> {
        let (input, output) = (io::stdin(), io::stdout());
        ensure!(
            input.is_terminal() && output.is_terminal(),
            "--console needs a terminal, and standard input or output is not one: leave it out, or write to a file \
             ([console] log)"
        );
        // SAFETY: a descriptor that is open.
        let (foreground, ours) = unsafe { (libc::tcgetpgrp(input.as_raw_fd()), libc::getpgrp()) };
        // A terminal of another session does not say who has its keyboard.
        ensure!(
            foreground == -1 || foreground == ours,
            "--console needs the terminal's keyboard, which another process has: do not start it in the background (&)"
        );
        let own = |fd: io::Result<std::os::fd::OwnedFd>| fd.map(File::from).context("the terminal");
        Ok(Self {
            input: own(input.as_fd().try_clone_to_owned())?,
            output: own(output.as_fd().try_clone_to_owned())?,
        })
    }

    /// Makes the terminal the console of the VM called `name`.
    ///
    /// # Errors
    /// When the terminal cannot be made raw, or no thread can be started.
    pub(crate) fn attach(self, console: Console, name: &str) -> Result<Attached> {
        let Self { mut input, output } = self;
        outlet::say(&format!(
            "Console of VM {name}; Ctrl-] leaves it. A takeover may take back what the guest says here."
        ));
        let outlet = console.attach("the terminal", output)?;
        // From here on the terminal is restored, whatever happens.
        let attached = Attached(());
        make_raw(&input).context("make the terminal raw")?;
        let run = move || {
            let mut bytes = [0; 256];
            while let Ok(read @ 1..) = input.read(&mut bytes) {
                let typed = bytes[..read].split(|byte| *byte == LEAVE).next().unwrap_or_default();
                // What the guest does not take is lost, as on a real line.
                console.type_in(typed);
                if typed.len() < read {
                    break;
                }
            }
            console.detach(outlet);
            restore();
            tracing::info!("the console is closed; the VM runs on, and Ctrl-C stops it");
        };
        thread::Builder::new().name("terminal".to_owned()).spawn(run).context("start a thread")?;
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw(terminal: &File) -> io::Result<()> {
    // SAFETY: termios is plain data.
    let mut mode: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor that is open, and a place for the answer.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut mode) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = *COOKED.get_or_init(|| mode);
    keep_an_abort_from_leaving_it_raw();
    let raw = raw_of(before);
    IS_RAW.store(true, Ordering::SeqCst);
    // SAFETY: as above; the mode is a whole one.
    match unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const raw) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the mode in which each byte comes as it is typed and nobody else sees it. What is written stays as it was:
/// log lines on the same terminal want their returns.
fn raw_of(mut mode: libc::termios) -> libc::termios {
    mode.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ECHONL | libc::ISIG | libc::IEXTEN);
    mode.c_iflag &= !(libc::IXON | libc::ICRNL | libc::INLCR | libc::IGNCR | libc::ISTRIP);
    mode.c_cc[libc::VMIN] = 1;
    mode.c_cc[libc::VTIME] = 0;
    mode
}

/// Restores the terminal. May be called in a signal handler.
fn restore() {
    let Some(before) = COOKED.get() else { return };
    if IS_RAW.swap(false, Ordering::SeqCst) {
        // SAFETY: a number and a whole mode; tcsetattr may be called in a signal handler.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
}

/// Makes an abort (a bug in a vCPU's thread), which ends the process at once, restore the terminal first. No other signal
/// that a terminal causes ends the process (see `signals`).
fn keep_an_abort_from_leaving_it_raw() {
    extern "C" fn restore_and_die(signal: libc::c_int) {
        restore();
        // SAFETY: the handler was for once, so that this is the signal's default: death.
        unsafe { libc::raise(signal) };
    }
    // SAFETY: sigaction is plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = restore_and_die as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: a whole action whose handler calls only what may be called there.
    unsafe { libc::sigaction(libc::SIGABRT, &raw const action, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    /// Returns the two ends of a terminal.
    fn pty() -> (File, File) {
        let (mut near, mut far) = (-1, -1);
        let (name, mode, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: two places for descriptors; no name, mode or size.
        let made = unsafe { libc::openpty(&raw mut near, &raw mut far, name, mode, size) };
        assert_eq!(made, 0);
        // SAFETY: two descriptors that nobody else has.
        let [near, far] = [near, far].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        (near, far)
    }

    #[test]
    fn a_raw_terminal_passes_every_byte_and_writes_as_before() {
        use std::io::Write;
        let (mut near, mut far) = pty();
        // SAFETY: plain data, and a descriptor that is open.
        let before = unsafe {
            let mut mode = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(far.as_raw_fd(), &raw mut mode), 0);
            mode
        };
        let raw = raw_of(before);
        // SAFETY: a descriptor that is open and a whole mode.
        assert_eq!(unsafe { libc::tcsetattr(far.as_raw_fd(), libc::TCSANOW, &raw const raw) }, 0);
        // Ctrl-C, Ctrl-Z, Ctrl-S, end of file, return: all of them the guest's.
        near.write_all(b"\x03\x1a\x13\x04\r").unwrap();
        let mut typed = [0; 5];
        far.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"\x03\x1a\x13\x04\r");
        far.write_all(b"line\n").unwrap();
        let mut seen = [0; 6];
        near.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"line\r\n", "nothing was echoed");
    }
}
