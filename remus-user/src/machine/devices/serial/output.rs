//! What the guest says, on its way out of the port.

use std::io::{self, Write};

use super::super::log_limit::LogLimit;
use crate::outlet::Outlet;

/// Bytes of a line that are kept; a longer one is logged in pieces.
const LINE_MAX: usize = 512;

/// Where it goes: to the outlets, or, where there is none, to the log.
#[derive(Default)]
pub(super) struct Output {
    /// By number.
    outlets: Vec<(u64, Outlet)>,
    /// How many there have been.
    attached: u64,
    line: Line,
}

impl Output {
    /// Adds an outlet, and returns its number.
    pub(super) fn attach(&mut self, outlet: Outlet) -> u64 {
        self.attached += 1;
        self.outlets.push((self.attached, outlet));
        self.attached
    }

    pub(super) fn detach(&mut self, number: u64) -> Option<Outlet> {
        let at = self.outlets.iter().position(|(n, _)| *n == number)?;
        Some(self.outlets.remove(at).1)
    }

    /// Says what is left of a line: the guest has ended.
    pub(super) fn end(&mut self) {
        self.line.log();
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.outlets.is_empty() {
            self.line.take(bytes);
        } else {
            self.outlets.iter().for_each(|(_, outlet)| outlet.put(bytes));
        }
        Ok(bytes.len())
    }

    /// Nothing: bytes go as they come, and the port asks after each.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the guest has said of its current line. A line is logged when it ends (target `guest`).
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    limit: LogLimit,
}

impl Line {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' && byte != b'\r' {
                self.bytes.push(byte);
            }
            if byte == b'\n' || self.bytes.len() == LINE_MAX {
                self.log();
            }
        }
    }

    fn log(&mut self) {
        if !self.bytes.is_empty() {
            // The guest chooses these bytes: escape whatever a terminal would obey.
            if self.limit.passes() {
                tracing::info!(target: "guest", "{}", self.bytes.escape_ascii());
            }
            self.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_never_ends_its_line_keeps_nothing_growing() {
        let mut line = Line::default();
        line.take(&[b'x'; 3 * LINE_MAX + 1]);
        assert_eq!(line.bytes, b"x");
        line.take(b"y\r\n");
        assert!(line.bytes.is_empty());
    }
}
