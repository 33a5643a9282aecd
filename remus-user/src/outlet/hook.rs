//! Reports panics.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;

use super::say;

/// Reports panics through the log from here on. The standard library's own hook writes to stderr itself: while the reader
/// of stderr has stalled, a thread that panics would never end, and so would not stop the guest.
pub(crate) fn report_panics() {
    panic::set_hook(Box::new(|panic| say(&describe(panic))));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = panic.location().map(|at| format!(" at {at}")).unwrap_or_default();
    let what = panic.payload_as_str().unwrap_or("of an unknown kind");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("{backtrace}"),
        _ => String::new(),
    };
    format!("remus: bug: thread '{thread}' panicked{place}: {what}\n{backtrace}")
}
