//! The log of this process is an outlet into stderr.

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use super::{Kind, LAST_WORDS, Outlet, write_patiently};

static LOG: OnceLock<Outlet> = OnceLock::new();

/// Starts the log's thread. What is said earlier goes to stderr directly.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn start_log() -> io::Result<()> {
    // The log has a descriptor of its own, without a lock: `io::stderr` has one, and a thread that is stalled in a write
    // would hold it.
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let outlet = Outlet::start(Kind::Log, "stderr", stderr.into())?;
    // A second log would only be one thread too many.
    LOG.set(outlet).ok();
    Ok(())
}

/// Says `text` on stderr, in order with the log, and ends its last line. Waits a moment for a reader to take the text, and
/// never fails.
pub(crate) fn say(text: &str) {
    let text = format!("{}\n", text.trim_end());
    match LOG.get() {
        Some(log) => {
            log.put(text.as_bytes());
            log.wait(LAST_WORDS);
        }
        // Nothing depends on whether this is read.
        None => drop(write_patiently(io::stderr(), text.as_bytes()).ok()),
    }
}

/// Waits a moment for a reader to take the last lines of the log, since the process ends.
pub(crate) fn finish() {
    if let Some(log) = LOG.get() {
        log.wait(LAST_WORDS);
    }
}

/// Puts an event into the log; the event ends its line itself. Never waits once [`start_log`] has been called.
pub(crate) fn put_event(event: &[u8]) {
    match LOG.get() {
        Some(log) => log.put(event),
        None => say(&String::from_utf8_lossy(event)),
    }
}
