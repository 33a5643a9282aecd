//! A machine that is whole and does not run yet.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_ioctls::VcpuFd;

use super::boot::{Firmware, Software};
use super::capture::Registers;
use super::cpu::CpuProfile;
use super::devices::Console;
use super::devices::board::Board;
use super::layout::Layout;
use super::memory::Memory;
use super::restore::put_in;
use super::running::Machine;
use super::shape::{Placement, Shape};
use super::vm::Vm;
use super::{boot, capture, clock};
use crate::checkpoint::{BootImage, MachineState, PageSet, Staging, VcpuState};

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

    /// Returns the far end of the guest's serial port.
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

    /// Returns what the guest begins with. Ask once the guest is loaded, before anything else writes its memory.
    ///
    /// # Errors
    /// When KVM does not give a part of the state.
    pub fn boot_image(&self) -> Result<BootImage> {
        let memory = self.memory();
        let mut written = PageSet::new(memory.layout().pages());
        memory.look_at_touched(&mut written);
        let mut pages = Staging::new(written.len());
        memory.copy(written.iter(), &mut pages)?;
        let mut state = MachineState::default();
        let mut msrs = capture::msr_buffer(self.cpu.msrs())?;
        state.vcpus.resize_with(self.vcpus.len(), VcpuState::default);
        for (n, (vcpu, state)) in self.vcpus.iter().zip(&mut state.vcpus).enumerate() {
            capture::save(vcpu, Registers::Asked, &mut msrs, state)
                .with_context(|| format!("capture vCPU {n}"))?;
        }
        self.vm.save_chips(&mut state.chips)?;
        state.clock = clock::save(self.vm.fd())?;
        self.board.save(&mut state.devices, &mut state.serial);
        Ok(BootImage::new(pages, state))
    }

    /// Puts in everything that is not RAM. RAM must be that of the same checkpoint.
    ///
    /// # Errors
    /// When the state is of another machine, or KVM refuses it; this machine is of no use then.
    pub fn restore(&mut self, state: &MachineState) -> Result<()> {
        // One step for all of them, lest they drift apart.
        let tsc_step = self.cpu.ticks(clock::step(state.clock));
        put_in(state, tsc_step, &self.cpu, &self.vcpus, &self.vm, &self.board)?;
        // As late as can be: the guest's clock stands still from here to its start.
        clock::restore(self.vm.fd(), state.clock)?;
        for vcpu in &self.vcpus {
            // Tells a guest that uses kvmclock that it was away; one that does not has nothing to be told.
            vcpu.kvmclock_ctrl().ok();
        }
        Ok(())
    }

    /// Has the guest given `frames`, each behind its virtio-net header, before what is in the tap and after what this was
    /// told before: those that it was given after the checkpoint whose state was put in, as [`Machine::service`] told of
    /// them, and others that did not come by the tap.
    pub fn give(&mut self, frames: impl Iterator<Item = Box<[u8]>>) {
        self.board.net.lock().give(frames);
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When a thread or event cannot be had.
    pub fn start(self) -> Result<Machine> {
        let Self { vcpus, vm, board, cpu, placement } = self;
        board.start(&placement.device_cpus)?;
        Machine::start(vcpus, vm, board, cpu, placement)
    }
}
