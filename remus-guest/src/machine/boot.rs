//! Entry, descriptor tables, and the ring-0 stub.
//!
//! Ring 0 is plain assembler of the simplest instructions, since it may run in an emulator that knows no
//! others. It does four things:
//!
//! - at entry, load GDT, IDT and TSS, and drop to ring 3;
//! - `hlt` in ring 3 is a #GP: the stub steps over it and does `sti; hlt`. This is the only place where
//!   interrupts are on, and `sti`'s shadow makes the two one: an interrupt that is already pending ends
//!   the `hlt` at once;
//! - `int3` in ring 3 is a request to write an MSR (`ecx`, `edx:eax`);
//! - any other exception is carried to [`crash::exception`] in ring 3, on a stack of its own.
//!
//! The selectors are Linux's, which KVM without hardware virtualization insists upon: code 0x10 and 0x33,
//! data 0x18 and 0x2b. Ports are open to ring 3 through the TSS's bitmap.
//!
//! Deliberately absent: other CPUs (they are never started), paging (the VMM's identity map is kept), SSE.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use super::crash;

/// Vector of the network device's interrupt.
pub(super) const VECTOR_DEVICE: u8 = 0x40;
/// Vector of the local APIC's timer.
pub(super) const VECTOR_TIMER: u8 = 0x41;
/// Vector that the local APIC raises when an interrupt has gone away.
pub(super) const VECTOR_SPURIOUS: u8 = 0xff;

const STUB_STACK: usize = 4096;
const STACK: usize = 256 << 10;
const CRASH_STACK: usize = 32 << 10;

global_asm!(
    r#"
    .section .text.boot, "ax"
    .global _start
    .balign 16
_start:
    cli
    cld
    lea rsp, [rip + remus_stub_stack + {stub_stack}]
    # The TSS descriptor's base is spread over four places; its limit and type are in the table.
    lea rax, [rip + remus_tss]
    lea rcx, [rip + remus_gdt]
    mov word ptr [rcx + 0x42], ax
    shr rax, 16
    mov byte ptr [rcx + 0x44], al
    mov byte ptr [rcx + 0x47], ah
    shr rax, 16
    mov dword ptr [rcx + 0x48], eax
    lea rax, [rip + remus_stub_stack + {stub_stack}]
    mov qword ptr [rip + remus_tss + 4], rax
    lgdt [rip + remus_gdtr]
    lidt [rip + remus_idtr]
    mov ax, 0x40
    ltr ax
    push 0x2b
    # As if by a call: 8 below a multiple of 16.
    lea rax, [rip + remus_stack + {stack} - 8]
    push rax
    push 2
    push 0x33
    lea rax, [rip + {start}]
    push rax
    iretq

    # 32 exceptions, 16 bytes each. Those that push no error code get a 0.
    .balign 16
    .global remus_exceptions
remus_exceptions:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
    push 0
    .endif
    push vector
    jmp remus_exception
    .set vector, vector + 1
    .endr

    # vector, error code, rip, cs, rflags, rsp, ss
remus_exception:
    pop rdi
    pop rsi
    mov rdx, qword ptr [rsp]
    mov rcx, cr2
    lea rax, [rip + {exception}]
    mov qword ptr [rsp], rax
    mov qword ptr [rsp + 8], 0x33
    mov qword ptr [rsp + 16], 2
    lea rax, [rip + remus_crash_stack + {crash_stack} - 8]
    mov qword ptr [rsp + 24], rax
    mov qword ptr [rsp + 32], 0x2b
    iretq

    .balign 16
    .global remus_general_protection
remus_general_protection:
    push rax
    cmp qword ptr [rsp + 24], 0x33
    jne 1f
    mov rax, qword ptr [rsp + 16]
    cmp byte ptr [rax], 0xf4
    jne 1f
    inc qword ptr [rsp + 16]
    pop rax
    add rsp, 8
    sti
    hlt
    iretq
1:  pop rax
    push 13
    jmp remus_exception

    .balign 16
    .global remus_write_msr
remus_write_msr:
    wrmsr
    iretq

    .balign 16
    .global remus_interrupt
remus_interrupt:
    push rcx
    mov ecx, {eoi}
    mov dword ptr [rcx], 0
    pop rcx
    .global remus_spurious
remus_spurious:
    iretq

    .section .data.boot, "aw"
    .balign 16
remus_gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0
    .quad 0x0000890000002068, 0
remus_gdtr:
    .word 0x4f
    .quad remus_gdt
    .balign 8
remus_idtr:
    .word 0xfff
    .quad {idt}
    .balign 16
remus_tss:
    .fill 0x66, 1, 0
    .word 0x68
    # One bit a port, 0 is open; then the byte that must end it.
    .fill 8192, 1, 0
    .byte 0xff

    .section .bss.boot, "aw", @nobits
    .balign 16
remus_stub_stack:
    .skip {stub_stack}
remus_crash_stack:
    .skip {crash_stack}
remus_stack:
    .skip {stack}
    .text
    "#,
    stub_stack = const STUB_STACK,
    crash_stack = const CRASH_STACK,
    stack = const STACK,
    eoi = const super::apic::EOI,
    start = sym super::start,
    exception = sym crash::exception,
    idt = sym INTERRUPT_TABLE,
);

unsafe extern "C" {
    static remus_exceptions: [[u8; 16]; 32];
    static remus_general_protection: u8;
    static remus_write_msr: u8;
    static remus_interrupt: u8;
    static remus_spurious: u8;
}

/// An interrupt gate. All zero is "not present".
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, align(16))]
struct Table(UnsafeCell<[Gate; 256]>);

// SAFETY: there is one CPU; after `fill_interrupt_table` only the CPU itself reads it.
unsafe impl Sync for Table {}

static INTERRUPT_TABLE: Table = Table(UnsafeCell::new([Gate { low: 0, high: 0 }; 256]));

/// Which rings may raise the vector by an instruction.
#[derive(Clone, Copy)]
enum From {
    Ring0 = 0x8e,
    Ring3 = 0xee,
}

impl Gate {
    fn new(handler: *const u8, from: From) -> Self {
        let at = handler as u64;
        let (selector, kind) = (0x10u64, from as u64);
        Self {
            low: at & 0xffff | selector << 16 | kind << 40 | (at >> 16 & 0xffff) << 48,
            high: at >> 32,
        }
    }
}

/// Points every vector that can occur to the stub. Before it an exception ends the machine without a word.
pub(super) fn fill_interrupt_table() {
    let mut gates = [Gate { low: 0, high: 0 }; 256];
    for (gate, stub) in gates.iter_mut().zip(0..32) {
        // SAFETY: the stub lays out 32 entries of 16 bytes; only addresses are taken.
        *gate = Gate::new(unsafe { (&raw const remus_exceptions[stub]).cast() }, From::Ring0);
    }
    gates[3] = Gate::new(&raw const remus_write_msr, From::Ring3);
    gates[13] = Gate::new(&raw const remus_general_protection, From::Ring0);
    for vector in [VECTOR_DEVICE, VECTOR_TIMER] {
        gates[usize::from(vector)] = Gate::new(&raw const remus_interrupt, From::Ring0);
    }
    gates[usize::from(VECTOR_SPURIOUS)] = Gate::new(&raw const remus_spurious, From::Ring0);
    // SAFETY: the table is written only here, once, with interrupts off.
    unsafe { INTERRUPT_TABLE.0.get().write(gates) };
}

/// Writes a model-specific register. A register that is not there ends the guest by #GP.
///
/// # Safety
/// Whatever the register does with the value must leave this program's assumptions alone.
pub(super) unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: #BP is the stub's request to write an MSR; it changes no register. The rest is the caller's.
    unsafe { asm!("int3", in("ecx") register, in("eax") low, in("edx") high) };
}

/// Sleeps until an interrupt comes, or came since the last sleep.
pub(super) fn wait_for_interrupt() {
    // SAFETY: #GP on `hlt` is the stub's request to sleep; it changes no register.
    unsafe { asm!("hlt") };
}
