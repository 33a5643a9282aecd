//! A machine that is whole and does not run yet.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VcpuFd;

use super::boot::{Firmware, Software};
use super::capture::Registers;
use super::cpu::CpuProfile;
use super::devices::Console;
use super::devices::board::Board;
use super::devices::bus::Bus;
use super::layout::Layout;
use super::memory::Memory;
use super::running::Machine;
use super::shape::{Placement, Shape};
use super::vcpu::{Control, Vcpus};
use super::vm::{Vm, event};
use super::{boot, capture, clock};
use crate::checkpoint::MachineState;

/// A machine before its start: the primary loads a guest into it; the backup fills its memory from
/// checkpoints, as long as it likes, and puts the rest in when it takes over.
pub struct Prepared {
    // Before `vm`: a vCPU goes before its VM.
    vcpus: Vec<VcpuFd>,
    vm: Vm,
    board: Arc<Board>,
    cpu: CpuProfile,
    placement: Placement,
}

impl Prepared {
    /// Makes all of a machine but its guest: RAM is present, vCPUs exist.
    ///
    /// `tap` carries the guest's frames ([`open_tap`](super::open_tap)).
    ///
    /// # Errors
    /// When the shape is impossible, or KVM, the host's memory, the tap or a disk do not give what it takes.
    pub fn new(
        shape: &Shape,
        cpu: &CpuProfile,
        placement: &Placement,
        tap: OwnedFd,
    ) -> Result<Self> {
        shape.validate()?;
        let memory = Arc::new(Memory::new(Layout::of_mib(shape.memory_mib))?);
        let vm = Vm::new(Arc::clone(&memory))?;
        let create = |id| vm.create_vcpu(id, shape.vcpus, cpu);
        let vcpus = (0..shape.vcpus).map(create).collect::<Result<_>>()?;
        let board = Arc::new(Board::new(shape, tap, &vm)?);
        Ok(Self { vcpus, vm, board, cpu: cpu.clone(), placement: placement.clone() })
    }

    /// Guest RAM, for whoever fills it. Shared, and of use to other threads.
    pub fn memory(&self) -> &Arc<Memory> {
        self.vm.memory()
    }

    /// The far end of the guest's serial port.
    pub fn console(&self) -> Console {
        Console(Arc::clone(&self.board.serial))
    }

    /// Loads what the machine runs, to be entered at the start.
    ///
    /// # Errors
    /// When a file is none for this machine or does not fit its RAM, or the command line is not ASCII or too long.
    pub fn load(&mut self, software: Software<'_>) -> Result<()> {
        let vcpus = u8::try_from(self.vcpus.len()).expect("checked with the shape");
        let virtio_devices = u32::try_from(self.board.count()).expect("a few");
        let firmware = Firmware { vcpus, virtio_devices };
        boot::load(self.memory(), &self.vcpus[0], firmware, software)
    }

    /// Puts in everything that is not RAM. RAM must be that of the same checkpoint.
    ///
    /// # Errors
    /// When the state is of another machine, or KVM refuses it; this machine is of no use then.
    pub fn restore(&mut self, state: &MachineState) -> Result<()> {
        ensure!(
            state.vcpus.len() == self.vcpus.len(),
            "a state of {} vCPUs for a machine of {}",
            state.vcpus.len(),
            self.vcpus.len()
        );
        // One step for all of them, lest they drift apart.
        let tsc_step = self.cpu.ticks(clock::step(state.clock));
        for (n, (vcpu, from)) in self.vcpus.iter().zip(&state.vcpus).enumerate() {
            capture::restore(vcpu, from, tsc_step).with_context(|| format!("restore vCPU {n}"))?;
        }
        // Before the clock, which KVM keeps best while all TSCs agree.
        capture::unite_tscs(&self.vcpus, self.cpu.tsc_khz())?;
        // After the vCPUs: the IOAPIC sends what it holds pending to their APICs.
        self.vm.restore_chips(&state.chips)?;
        self.board.restore(&state.devices, &state.serial)?;
        // As late as can be: the guest's clock stands still from here to its start.
        clock::restore(self.vm.fd(), state.clock)?;
        for vcpu in &self.vcpus {
            // Tells a guest that uses kvmclock that it was away; one that does not has nothing to be told.
            vcpu.kvmclock_ctrl().ok();
        }
        Ok(())
    }

    /// Lets the guest run.
    ///
    /// Every queue is processed and every device's interrupt raised once: a doorbell or an interrupt that
    /// was on its way at the capture is in no state, and a needless one does no harm.
    ///
    /// # Errors
    /// When a thread or event cannot be had.
    pub fn start(self) -> Result<Machine> {
        let Self { vcpus, vm, board, cpu, placement } = self;
        let ended = event()?;
        let machine_end = ended.try_clone().context("eventfd")?;
        let control = Arc::new(Control::new(ended));
        let bus = Arc::new(Bus::new(Arc::clone(&board)));
        board.replay()?;
        board.start(&placement.device_cpus)?;
        let registers = Registers::of(vm.fd(), vcpus.len());
        let cpus = &placement.vcpu_cpus;
        let vcpus = Vcpus::start(vcpus, cpus, cpu.msrs(), registers, &bus, Arc::clone(&control))?;
        Machine::new(vcpus, vm, board, control, &machine_end)
    }
}
