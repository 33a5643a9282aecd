//! The serial port: a 16550A at COM1, the guest's console.
//!
//! Registers and interrupts are vm-superio's. What the guest says goes to a log file and to a terminal, whichever it
//! was given ([`Console::attach`]), and without either to the log of this process, line by line. What comes in at a
//! terminal ([`Console::type_in`]) waits here for room in the port's own 64 bytes.
//!
//! **Output is speculative.** It leaves when the guest writes it, not when the checkpoint that covers it is
//! committed: a guest that is taken over may say the same again, or something else. So it is for people to read, and
//! nobody may act on it. Input, as on the network, is never delayed.
//!
//! No vCPU waits for a terminal or a file: each is behind an [`outlet`](crate::outlet), and what they do not take is lost
//! and counted. Registers, and input that the port has taken, are part of the
//! checkpoint; what waits on either side is the host's, and lost with it.

mod output;
mod port;

pub use port::Console;
pub(in crate::machine) use port::SerialPort;
