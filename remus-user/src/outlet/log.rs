//! The log of this process: an outlet into stderr.

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use super::{Kind, LAST_WORDS, Outlet, write_patiently};

static LOG: OnceLock<Outlet> = OnceLock::new();

/// Starts the log's thread. What is said before goes to stderr by itself.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn start_log() -> io::Result<()> {
    // A descriptor of its own, so that it is written to as it is: `io::stderr` has a lock, which a thread that is
    // stalled in a write would keep from others.
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let outlet = Outlet::start(Kind::Log, "stderr", stderr.into())?;
    // A second log would be one thread too many, and no harm.
    LOG.set(outlet).ok();
    Ok(())
}

/// Says `text`, whose last line needs no end, to whoever reads stderr, in order with the log. Waits a moment for it to
/// be read, and never fails.
pub(crate) fn say(text: &str) {
    let text = format!("{}\n", text.trim_end());
    match LOG.get() {
        Some(log) => {
            log.put(text.as_bytes());
            log.wait(LAST_WORDS);
        }
        // Nothing depends on what is said.
        None => drop(write_patiently(io::stderr(), text.as_bytes()).ok()),
    }
}

/// Waits a moment for the last lines of the log to be read: the process ends.
pub(crate) fn finish() {
    if let Some(log) = LOG.get() {
        log.wait(LAST_WORDS);
    }
}

/// Puts an event, which ends its line itself, into the log. Never waits once [`start_log`] has been called.
pub(crate) fn put_event(event: &[u8]) {
    match LOG.get() {
        Some(log) => log.put(event),
        None => say(&String::from_utf8_lossy(event)),
    }
}
