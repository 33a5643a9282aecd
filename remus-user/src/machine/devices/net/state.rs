//! The network device's state. The tap has none: frames in it are the host's, and what it is set to follows
//! from the features that the driver has taken.

use std::io;

use anyhow::{Context, Result};

use super::super::interrupt::USED_BUFFER;
use super::device::{RECEIVE, TRANSMIT};
use super::port::NetPort;
use crate::checkpoint::DeviceState;

impl NetPort {
    /// Writes the registers into `state`, whose buffers are used again.
    pub(in crate::machine) fn save(&self, state: &mut DeviceState) {
        self.lock().transport().save(self.interrupt().status(), state);
    }

    /// Takes over the registers of the same device elsewhere.
    ///
    /// # Errors
    /// When they are none that this device could have had.
    pub(in crate::machine) fn restore(&self, state: &DeviceState) -> Result<()> {
        let mut net = self.lock();
        net.restore(self.memory().ram(), state).context("network device")?;
        self.interrupt().set_status(state.interrupt_status);
        Ok(())
    }

    /// Makes up for what a restore cannot know: a doorbell that was rung and not heard, and an interrupt
    /// that was on its way. Both are harmless when there was none.
    pub(in crate::machine) fn replay(&self) -> io::Result<()> {
        self.ring(RECEIVE)?;
        self.ring(TRANSMIT)?;
        if self.lock().is_live() {
            self.interrupt().raise(USED_BUFFER)?;
        }
        Ok(())
    }
}
