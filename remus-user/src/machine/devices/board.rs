//! All devices of a machine: which there are, in what order, and what is done to all of them.
//!
//! The order is the guest's too: device n has register page n and interrupt n. 0 is the network, 1 entropy, disks
//! follow in the order of the machine's shape.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::block::{Block, Disk, Worker};
use super::interrupt::Interrupt;
use super::net::Net;
use super::parking::Parking;
use super::port::{Device, Port, Registers};
use super::rng::Rng;
use super::serial::SerialPort;
use crate::checkpoint::{DeviceState, SerialState};
use crate::machine::shape::Shape;
use crate::machine::vm::Vm;

/// Devices before the disks.
pub(in crate::machine) const FIRST_DISK: usize = 2;

/// See the module. Dropped, it gives no device thread a turn any more.
pub(in crate::machine) struct Board {
    pub(in crate::machine) serial: Arc<SerialPort>,
    pub(in crate::machine) net: Port<Net>,
    pub(in crate::machine) rng: Port<Rng>,
    disks: Vec<(Arc<Disk>, Arc<Port<Block>>)>,
    parking: Arc<Parking>,
}

impl Board {
    /// The devices of a machine of this shape, on this VM's interrupts and doorbells.
    ///
    /// # Errors
    /// When a disk is not there, the tap is none, or the kernel refuses an event.
    pub(in crate::machine) fn new(shape: &Shape, tap: OwnedFd, vm: &Vm) -> Result<Self> {
        let net = Net::new(shape.mac, shape.mtu_bytes, shape.offloads, tap)?;
        let mut disks = Vec::with_capacity(shape.disks.len());
        for (n, shape) in shape.disks.iter().enumerate() {
            let disk = Arc::new(Disk::open(shape)?);
            let port = port(vm, FIRST_DISK + n, Block::new(Arc::clone(&disk))?)?;
            disks.push((disk, Arc::new(port)));
        }
        Ok(Self {
            serial: Arc::new(SerialPort::new(vm.serial_line()?)),
            net: port(vm, 0, net)?,
            rng: port(vm, 1, Rng::new()?)?,
            disks,
            parking: Arc::default(),
        })
    }

    /// The device with register page `n`, if there is one.
    pub(in crate::machine) fn device(&self, n: usize) -> Option<&dyn Registers> {
        match n {
            0 => Some(&self.net),
            1 => Some(&self.rng),
            FIRST_DISK.. => {
                self.disks.get(n - FIRST_DISK).map(|(_, port)| &**port as &dyn Registers)
            }
        }
    }

    /// Returns all devices, in their order.
    fn devices(&self) -> impl Iterator<Item = &dyn Registers> {
        (0..).map_while(|n| self.device(n))
    }

    /// How many devices with register pages there are.
    pub(in crate::machine) fn count(&self) -> usize {
        FIRST_DISK + self.disks.len()
    }

    /// Starts the threads of those that have one, on these host CPUs.
    ///
    /// # Errors
    /// When one cannot be had.
    pub(in crate::machine) fn start(&self, cpus: &[u32]) -> Result<()> {
        for (n, (disk, port)) in self.disks.iter().enumerate() {
            let (port, disk) = (Arc::clone(port), Arc::clone(disk));
            Worker::start(n, cpus, port, disk, Arc::clone(&self.parking))?;
        }
        Ok(())
    }

    /// Where device threads stand in a pause.
    pub(in crate::machine) fn parking(&self) -> &Parking {
        &self.parking
    }

    /// Writes all state into `devices` and `serial`, whose buffers are used again. Nobody has a turn.
    pub(in crate::machine) fn save(
        &self,
        devices: &mut Vec<DeviceState>,
        serial: &mut SerialState,
    ) {
        devices.resize_with(self.count(), DeviceState::default);
        self.devices().zip(devices).for_each(|(device, state)| device.save(state));
        self.serial.save(serial);
    }

    /// Takes over the state of the same devices elsewhere. After the interrupt controllers: an interrupt that was on
    /// is raised.
    ///
    /// # Errors
    /// When it is of other devices.
    pub(in crate::machine) fn restore(
        &self,
        devices: &[DeviceState],
        serial: &SerialState,
    ) -> Result<()> {
        ensure!(
            devices.len() == self.count(),
            "a state of {} devices for a machine of {}",
            devices.len(),
            self.count()
        );
        for (n, (device, state)) in self.devices().zip(devices).enumerate() {
            device.restore(state).with_context(|| format!("restore device {n}"))?;
        }
        self.serial.restore(serial)
    }

    /// Makes up for doorbells and interrupts that were on their way at a capture.
    ///
    /// # Errors
    /// When the kernel refuses an event.
    pub(in crate::machine) fn replay(&self) -> Result<()> {
        for (n, device) in self.devices().enumerate() {
            device.replay().with_context(|| format!("wake device {n}"))?;
        }
        Ok(())
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.parking.shut();
        for (_, port) in &self.disks {
            // Wakes the thread up, to find that it has no turn. It cannot fail: nobody else counts up so far.
            port.ring(0).ok();
        }
    }
}

/// Makes a device with its interrupt and doorbells.
fn port<D: Device>(vm: &Vm, n: usize, device: D) -> Result<Port<D>> {
    let number = u32::try_from(n).context("so many devices")?;
    let queues = u32::try_from(device.transport().queues()).context("so many queues")?;
    let doorbells = (0..queues).map(|queue| vm.doorbell(number, queue)).collect::<Result<_>>()?;
    let interrupt = Interrupt::new(vm.interrupt_line(number)?);
    Ok(Port::new(device, interrupt, doorbells, Arc::clone(vm.memory())))
}
