//! What a write-protect fault costs on this host.
//!
//! The price of protecting a page is the guest's fault at its next write: about 1 us where the CPU walks nested page
//! tables, 22 us under KVM-PVM, next to nothing where the CPU logs writes itself (PML). It decides how long a page should
//! stay writable, so it is measured, once, with a machine that lives for some milliseconds: a loop that writes one byte
//! in each of some pages, with and without their being protected.
//!
//! The loop runs in ring 3, the only ring in which KVM-PVM executes a guest itself, in 64-bit mode, without interrupts, a
//! stack, or anything that could fault but what is measured. It says that a round is over by a write to where no RAM is.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::{
    cpu::CpuProfile,
    flat::{Flat, LARGE, LARGE_PAGE, PRESENT_WRITABLE_USER, RFLAGS},
    layout::Layout,
    memory::Memory,
    vm::Vm,
};
use crate::{
    checkpoint::{PAGE_SIZE, Page, PageSet},
    os::boot_now,
};

/// Pages written in a round. Two bytes of the loop below have it.
const PAGES: u32 = 128;
/// Rounds of each kind; the fastest counts, since whatever disturbs one only adds to it.
const ROUNDS: usize = 4;

const MEMORY_MIB: u32 = 4;
const PML4: u64 = 0x1000;
const POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const CODE: u64 = 0x8000;
/// The first of the pages written: the one at 2 MiB.
const FIRST: u32 = 512;
const _: () = assert!(FIRST as usize * PAGE_SIZE == 2 << 20);

/// `again: mov esi, 2 MiB; mov ecx, PAGES; next: inc byte [rsi]; add rsi, 4096; dec ecx; jnz next;
/// mov edi, 4 MiB; mov [rdi], al; jmp again`
const LOOP: [u8; 32] = [
    0xbe, 0x00, 0x00, 0x20, 0x00, 0xb9, 0x80, 0x00, 0x00, 0x00, 0xfe, 0x06, 0x48, 0x81, 0xc6, 0x00,
    0x10, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf3, 0xbf, 0x00, 0x00, 0x40, 0x00, 0x88, 0x07, 0xeb, 0xe0,
];
const _: () = assert!(LOOP[6] as u32 == PAGES && LOOP[7] == 0);

/// Ring 3, with the selectors that Linux has for it, which KVM-PVM takes for granted.
const FLAT: Flat = Flat { code: 0x33, data: 0x2b, ring: 3, gdt: (GDT, 7 * 8 - 1) };
const CODE_DESCRIPTOR: u64 = 0x00af_fb00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_f300_0000_ffff;

/// Measures how much longer a write takes when its page is write-protected.
///
/// # Errors
/// When KVM does not run such a machine; a host may still run others.
pub fn fault_cost(cpu: &CpuProfile) -> Result<Duration> {
    let memory = Arc::new(Memory::new(Layout::of_mib(MEMORY_MIB))?);
    write_tables(&memory)?;
    let vm = Vm::new(memory)?;
    let mut vcpu = vm.create_vcpu(0, 1, cpu)?;
    set_registers(&vcpu)?;
    let mut protected = PageSet::new(vm.memory().layout().pages());
    (FIRST..FIRST + PAGES).for_each(|page| protected.insert(Page(page)));
    let mut logged = protected.clone();
    round(&mut vcpu)?;
    vm.log_dirty_pages(true)?;
    let (mut with, mut without) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        vm.protect(&protected)?;
        with = with.min(round(&mut vcpu)?);
        vm.dirty_pages(&mut logged)?;
        ensure!(
            protected.iter().all(|page| logged.contains(page)),
            "KVM did not log what the loop wrote"
        );
        without = without.min(round(&mut vcpu)?);
    }
    Ok(with.saturating_sub(without) / PAGES)
}

/// Until the loop says that it has been through all pages.
fn round(vcpu: &mut VcpuFd) -> Result<Duration> {
    let begun = boot_now();
    match vcpu.run().context("KVM_RUN")? {
        VcpuExit::MmioWrite(..) => Ok(boot_now().since(begun)),
        other => bail!("the loop that measures faults ended with {other:?}"),
    }
}

fn write_tables(memory: &Memory) -> Result<()> {
    let put = |address: u64, bytes: &[u8]| {
        memory.ram().write_slice(bytes, GuestAddress(address)).context("write a table")
    };
    put(PML4, &(POINTERS | PRESENT_WRITABLE_USER).to_le_bytes())?;
    put(POINTERS, &(DIRECTORY | PRESENT_WRITABLE_USER).to_le_bytes())?;
    for n in 0..=u64::from(MEMORY_MIB) * (1 << 20) / LARGE_PAGE {
        let entry = (n * LARGE_PAGE) | PRESENT_WRITABLE_USER | LARGE;
        put(DIRECTORY + n * 8, &entry.to_le_bytes())?;
    }
    put(GDT + u64::from(FLAT.data & !7), &DATA_DESCRIPTOR.to_le_bytes())?;
    put(GDT + u64::from(FLAT.code & !7), &CODE_DESCRIPTOR.to_le_bytes())?;
    put(CODE, &LOOP)
}

fn set_registers(vcpu: &VcpuFd) -> Result<()> {
    FLAT.enter_long_mode(vcpu, PML4)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rflags: RFLAGS, ..Default::default() })
        .context("KVM_SET_REGS")
}
