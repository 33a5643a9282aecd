//! The virtual machine in KVM: everything that is made before a guest exists.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{KVM_CAP_XSAVE2, KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use remus_abi::boot::{SERIAL_GSI, VIRTIO_GSI_BASE, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::EventFd;

use super::cpu::CpuProfile;
use super::host::{self, Kind};
use super::memory::Memory;
use super::{dirty_log, ioctl};
use crate::checkpoint::{Image, PageSet};

/// Three pages that VT-x wants for itself, in the device hole and away from the devices.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A VM with its RAM and interrupt controllers.
pub(super) struct Vm {
    fd: VmFd,
    memory: Arc<Memory>,
}

impl Vm {
    /// # Errors
    /// When KVM is not usable here or lacks what [`host::probe`] asks for.
    pub(super) fn new(memory: Arc<Memory>) -> Result<Self> {
        let kvm = host::open()?;
        let xsave = kvm.check_extension_raw(KVM_CAP_XSAVE2.into());
        ensure!(xsave > 0, "KVM lacks KVM_CAP_XSAVE2 (Linux 5.17)");
        ensure!(xsave <= 4096, "KVM wants {xsave} bytes for XSAVE, 4096 at most are handled");
        let fd = kvm.create_vm().context("KVM_CREATE_VM")?;
        if host::kind() == Kind::Vmx {
            fd.set_tss_address(TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
        }
        fd.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        dirty_log::enable_manual(&fd)?;
        let vm = Self { fd, memory };
        vm.set_slots(0)?;
        Ok(vm)
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// vCPU `id` of `vcpus`, with this CPU.
    pub(super) fn create_vcpu(&self, id: u8, vcpus: u8, cpu: &CpuProfile) -> Result<VcpuFd> {
        let vcpu = self.fd.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
        cpu.apply(&vcpu, id, vcpus)?;
        if vcpu.get_tsc_khz().ok() != Some(cpu.tsc_khz()) {
            vcpu.set_tsc_khz(cpu.tsc_khz())
                .with_context(|| format!("give the guest a TSC of {} kHz", cpu.tsc_khz()))?;
        }
        Ok(vcpu)
    }

    /// Makes a doorbell, which is signalled when the guest writes `queue` to QueueNotify of device `device`.
    pub(super) fn doorbell(&self, device: u32, queue: u32) -> Result<EventFd> {
        let event = event()?;
        let page = VIRTIO_MMIO_BASE + u64::from(device) * VIRTIO_MMIO_SIZE;
        let register = IoEventAddress::Mmio(page + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
        self.fd.register_ioevent(&event, &register, queue).context("KVM_IOEVENTFD")?;
        Ok(event)
    }

    /// Makes an interrupt line; whoever signals it raises the interrupt of device `device`.
    pub(super) fn interrupt_line(&self, device: u32) -> Result<EventFd> {
        self.line(VIRTIO_GSI_BASE + device)
    }

    /// Makes the serial port's interrupt line.
    pub(super) fn serial_line(&self) -> Result<EventFd> {
        self.line(SERIAL_GSI)
    }

    fn line(&self, gsi: u32) -> Result<EventFd> {
        let event = event()?;
        self.fd.register_irqfd(&event, gsi).context("KVM_IRQFD")?;
        Ok(event)
    }

    /// Starts or stops logging what the guest writes.
    pub(super) fn log_dirty_pages(&self, on: bool) -> Result<()> {
        self.set_slots(if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    /// Overwrites `pages` with the dirty log. Nothing is taken out of it.
    pub(super) fn dirty_pages(&self, pages: &mut PageSet) -> Result<()> {
        dirty_log::read(&self.fd, self.memory.layout(), pages)
    }

    /// Takes `pages` out of the dirty log and write-protects them.
    pub(super) fn protect(&self, pages: &PageSet) -> Result<()> {
        dirty_log::protect(&self.fd, self.memory.layout(), pages)
    }

    pub(super) fn save_chips(&self, chips: &mut [Image<520>; 3]) -> Result<()> {
        for (chip, number) in chips.iter_mut().zip(0u32..) {
            chip.0[..4].copy_from_slice(&number.to_ne_bytes());
            ioctl::IRQCHIP.get(&self.fd, chip)?;
        }
        Ok(())
    }

    pub(super) fn restore_chips(&self, chips: &[Image<520>; 3]) -> Result<()> {
        for (chip, number) in chips.iter().zip(0u32..) {
            if !chip.0.starts_with(&number.to_ne_bytes()) {
                bail!("interrupt controller {number} names another");
            }
            ioctl::IRQCHIP.set(&self.fd, chip)?;
        }
        Ok(())
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    fn set_slots(&self, flags: u32) -> Result<()> {
        for slot in self.memory.layout().slots() {
            let region = kvm_userspace_memory_region {
                slot: slot.number,
                flags,
                guest_phys_addr: slot.address,
                memory_size: u64::from(slot.pages) * crate::checkpoint::PAGE_SIZE as u64,
                userspace_addr: self.memory.host_address(slot.first),
            };
            // SAFETY: the range is guest RAM, mapped for as long as `memory`, which outlives the VM: it is
            // declared, hence dropped, after `fd`, and the machine ends its vCPUs before either.
            unsafe { self.fd.set_user_memory_region(region) }
                .context("KVM_SET_USER_MEMORY_REGION")?;
        }
        Ok(())
    }
}

/// Makes an event that nobody blocks on.
pub(super) fn event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")
}
