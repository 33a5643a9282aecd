//! The serial port's transmit side: the guest's log.
//!
//! Only what a guest needs to say something: the transmitter is always ready and nothing is ever received.
//! A line is logged when it ends (target `guest`). It is speculative: a guest that is taken over says the
//! same again from its last checkpoint, so nobody may act on it.

use super::log_limit::LogLimit;

/// Bytes of a line that are kept; a longer one is logged in pieces.
const LINE_MAX: usize = 512;
/// The line status register: transmitter empty, holding register empty.
pub(super) const TRANSMITTER_IDLE: u8 = 0x60;
/// Offsets from the port's base.
pub(super) const TRANSMIT: u16 = 0;
pub(super) const LINE_STATUS: u16 = 5;

/// What the guest has said of its current line.
#[derive(Default)]
pub(super) struct Console {
    line: Vec<u8>,
    limit: LogLimit,
}

impl Console {
    pub(super) fn transmit(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' && byte != b'\r' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() == LINE_MAX {
                self.flush();
            }
        }
    }

    /// Logs what there is of a line.
    pub(super) fn flush(&mut self) {
        if !self.line.is_empty() {
            // The guest chooses these bytes: escape whatever a terminal would obey.
            if self.limit.passes() {
                tracing::info!(target: "guest", "{}", self.line.escape_ascii());
            }
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_never_ends_its_line_keeps_nothing_growing() {
        let mut console = Console::default();
        console.transmit(&[b'x'; 3 * LINE_MAX + 1]);
        assert_eq!(console.line, b"x");
        console.transmit(b"y\r\n");
        assert!(console.line.is_empty());
    }
}
