//! The port, as vCPUs and whoever sits at the console share it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use crate::checkpoint::SerialState;
use crate::outlet::Outlet;

/// Bytes that wait for room in the port.
const TYPED_MAX: usize = 4096;

/// The port.
pub(in crate::machine) struct SerialPort(Mutex<Inner>);

struct Inner {
    uart: Serial<Line, NoEvents, Output>,
    /// Input that the port has no room for yet.
    typed: VecDeque<u8>,
}

/// The port's interrupt line.
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialPort {
    /// A port as after a reset, that raises its interrupt on `line`.
    pub(in crate::machine) fn new(line: EventFd) -> Self {
        let uart = Serial::new(Line(Arc::new(line)), Output::default());
        Self(Mutex::new(Inner { uart, typed: VecDeque::with_capacity(TYPED_MAX) }))
    }

    /// Reads from the register at `offset`, once for each byte of `data`.
    pub(in crate::machine) fn port_in(&self, offset: u8, data: &mut [u8]) {
        let mut inner = self.lock();
        for byte in data {
            *byte = inner.uart.read(offset);
            inner.refill();
        }
    }

    /// Writes to the register at `offset`, one byte of `data` after another.
    pub(in crate::machine) fn port_out(&self, offset: u8, data: &[u8]) {
        let mut inner = self.lock();
        for byte in data {
            let written = inner.uart.write(offset, *byte);
            inner.report(written);
        }
    }

    /// The guest has ended: says what is left of its last line.
    pub(in crate::machine) fn end(&self) {
        self.lock().uart.writer_mut().end();
    }

    /// Writes the registers into `state`, whose buffer is used again.
    pub(in crate::machine) fn save(&self, state: &mut SerialState) {
        let from = self.lock().uart.state();
        state.divisor = u16::from_le_bytes([from.baud_divisor_low, from.baud_divisor_high]);
        state.interrupt_enable = from.interrupt_enable;
        state.interrupt_identification = from.interrupt_identification;
        state.line_control = from.line_control;
        state.line_status = from.line_status;
        state.modem_control = from.modem_control;
        state.modem_status = from.modem_status;
        state.scratch = from.scratch;
        state.received.clear();
        state.received.extend_from_slice(&from.in_buffer);
    }

    /// Takes over the registers of a port elsewhere, and raises the interrupt if it was on. After the interrupt
    /// controllers: they would forget it.
    ///
    /// # Errors
    /// When they are none that a port could have had.
    pub(in crate::machine) fn restore(&self, state: &SerialState) -> Result<()> {
        let [low, high] = state.divisor.to_le_bytes();
        let state = vm_superio::SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        };
        let mut inner = self.lock();
        let line = Line(Arc::clone(&inner.uart.interrupt_evt().0));
        let output = std::mem::take(inner.uart.writer_mut());
        let uart = Serial::from_state(&state, line, NoEvents, output);
        inner.uart = uart.map_err(|e| anyhow!("{e}")).context("serial port")?;
        Ok(())
    }

    // A panic elsewhere leaves a register more or less written; the guest may do as much.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Gives the port what was typed, as far as it has room.
    fn refill(&mut self) {
        while !self.typed.is_empty() && self.uart.fifo_capacity() > 0 {
            let (bytes, _) = self.typed.as_slices();
            match self.uart.enqueue_raw_bytes(bytes) {
                // In loopback mode a port is off its line.
                Ok(0) => return,
                Ok(taken) => drop(self.typed.drain(..taken)),
                Err(e) => return self.report(Err(e)),
            }
        }
    }

    fn report(&self, done: Result<(), Error<io::Error>>) {
        if let Err(e) = done {
            tracing::error!("serial port: {e}");
        }
    }
}

/// A file that what the guest says goes into.
#[derive(Debug)]
pub struct Attached(u64);

/// The far end of the serial port's line: for people.
#[derive(Clone)]
pub struct Console(pub(in crate::machine) Arc<SerialPort>);

impl Console {
    /// From now on what the guest says goes into `file`, raw, whatever else it goes to; no longer to the log. `name`
    /// is for people.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn attach(&self, name: &str, file: File) -> Result<Attached> {
        let outlet = Outlet::of_console(name, file).context("start the console's thread")?;
        Ok(Attached(self.0.lock().uart.writer_mut().attach(outlet)))
    }

    /// Ends that.
    pub fn detach(&self, attached: Attached) {
        let outlet = self.0.lock().uart.writer_mut().detach(attached.0);
        // Out of the lock: it waits a while for its file.
        drop(outlet);
    }

    /// Sends bytes to the guest. How many found room; more of them when the guest has read some.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let mut inner = self.0.lock();
        let room = (TYPED_MAX - inner.typed.len()).min(bytes.len());
        inner.typed.extend(&bytes[..room]);
        inner.refill();
        room
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
