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
//! Each CPU has a [`Block`] of its own: descriptor tables that say where its ring-0 stack is, and stacks. The boot
//! CPU's is in the image. Other CPUs begin in real mode, in a page below 1 MiB that [`prepare_others`] fills; from
//! there they take the way of the boot CPU, each with the block that its APIC's number names.
//!
//! Deliberately absent: paging (the VMM's identity map is kept), SSE.

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use remus_abi::boot::START_PAGE;

use super::{crash, others};

/// Vector of the network device's interrupt.
pub(super) const VECTOR_DEVICE: u8 = 0x40;
/// Vector of the local APIC's timer.
pub(super) const VECTOR_TIMER: u8 = 0x41;
/// Vector by which one CPU wakes another.
pub(super) const VECTOR_WAKE: u8 = 0x42;
/// Vector that the local APIC raises when an interrupt has gone away.
pub(super) const VECTOR_SPURIOUS: u8 = 0xff;

const STUB_STACK: usize = 4096;
const CRASH_STACK: usize = 32 << 10;
/// What the boot CPU runs on in ring 3, and any other: beneath its block.
const STACK: usize = 256 << 10;
const STACK_OF_OTHERS: usize = 32 << 10;

/// What a CPU needs for itself. The stub fills it in when it enters the CPU.
#[repr(C, align(4096))]
struct Block {
    crash_stack: [u8; CRASH_STACK],
    /// Right above: the stub finds the one from the other.
    stub_stack: [u8; STUB_STACK],
    /// 0x68 bytes of TSS; then one bit a port, 0 is open; then the byte that must end it.
    tss: [u8; TSS],
    gdt: [u64; 10],
    /// Two bytes of limit, eight of base.
    gdtr: [u8; 10],
    /// What `rdi` has in ring 3. Of the boot CPU: nothing, it is the VMM who says.
    argument: u64,
}

const TSS: usize = 0x68 + 8192 + 8;
/// From one other CPU's block to the next: its stack lies between.
const STRIDE: usize = size_of::<Block>() + STACK_OF_OTHERS;

/// Words at the end of the start page.
const START_ENTRY: u64 = START_PAGE + 0xfe0;
const START_CR3: u64 = START_PAGE + 0xfe8;
const START_GDTR: u64 = START_PAGE + 0xff0;

global_asm!(
    r#"
    .section .text.boot, "ax"
    .global _start
    .balign 16
_start:
    cli
    cld
    mov rax, cr3
    mov qword ptr [{start_cr3}], rax
    lea rbx, [rip + remus_block]
    lea rsi, [rip + {start}]

    # rbx: the CPU's block; rsi, rdi: where to, and with what
remus_enter:
    lea rsp, [rbx + {tss}]
    # The GDT is a copy, but for the TSS, whose base is spread over four places.
    lea rax, [rip + remus_gdt]
    lea rdx, [rbx + {gdt}]
    mov ecx, 8
2:  mov r8, qword ptr [rax]
    mov qword ptr [rdx], r8
    add rax, 8
    add rdx, 8
    dec ecx
    jnz 2b
    mov r8, 0x0000890000002068
    mov qword ptr [rdx], r8
    lea rax, [rbx + {tss}]
    mov word ptr [rdx + 2], ax
    shr rax, 16
    mov byte ptr [rdx + 4], al
    mov byte ptr [rdx + 7], ah
    shr rax, 16
    mov qword ptr [rdx + 8], rax
    mov word ptr [rbx + {gdtr}], 0x4f
    lea rax, [rbx + {gdt}]
    mov qword ptr [rbx + {gdtr} + 2], rax
    mov qword ptr [rbx + {tss} + 4], rsp
    mov word ptr [rbx + {tss} + 0x66], 0x68
    mov byte ptr [rbx + {tss} + 0x2068], 0xff
    lgdt [rbx + {gdtr}]
    lidt [rip + remus_idtr]
    mov ax, 0x40
    ltr ax
    push 0x2b
    # As if by a call: 8 below a multiple of 16.
    lea rax, [rbx - 8]
    push rax
    push 2
    push 0x33
    push rsi
    iretq

    # Another CPU, in long mode.
    .balign 16
    .global remus_enter_other
remus_enter_other:
    mov eax, 0x18
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ecx, {apic_id}
    mov eax, dword ptr [rcx]
    shr eax, 24
    imul rax, rax, {stride}
    mov rbx, qword ptr [rip + {others}]
    add rbx, rax
    lea rsi, [rip + {help}]
    mov rdi, qword ptr [rbx + {argument}]
    jmp remus_enter

    # Another CPU, in real mode: this is copied to the start page. Straight into long mode.
    .balign 16
    .global remus_start_page
    .global remus_start_page_end
remus_start_page:
    .code16
    cli
    xor ax, ax
    mov ds, ax
    # With an operand of 32 bits.
    .byte 0x66
    lgdt [{start_gdtr}]
    mov eax, 0x20
    mov cr4, eax
    mov eax, dword ptr [{start_cr3}]
    mov cr3, eax
    mov ecx, 0xc0000080
    xor edx, edx
    mov eax, 0x100
    wrmsr
    # PE, ET, NE, WP, PG, as the VMM left it on the boot CPU.
    mov eax, 0x80010031
    mov cr0, eax
    # A far jump with an offset of 32 bits.
    .byte 0x66, 0xea
    .long {start_page} + 3f - remus_start_page
    .word 0x10
    .code64
3:  jmp qword ptr [{start_entry}]
remus_start_page_end:

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
    # The crash stack ends where the stub's begins, of which five words are in use.
    lea rax, [rsp + 40 - {stub_stack} - 8]
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
    .global remus_gdt
remus_gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0
remus_idtr:
    .word 0xfff
    .quad {idt}

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .skip {stack}
remus_block:
    .skip {block}
    .text
    "#,
    stub_stack = const STUB_STACK,
    stack = const STACK,
    block = const size_of::<Block>(),
    tss = const offset_of!(Block, tss),
    gdt = const offset_of!(Block, gdt),
    gdtr = const offset_of!(Block, gdtr),
    argument = const offset_of!(Block, argument),
    stride = const STRIDE,
    start_page = const START_PAGE,
    start_entry = const START_ENTRY,
    start_cr3 = const START_CR3,
    start_gdtr = const START_GDTR,
    apic_id = const super::apic::ID,
    eoi = const super::apic::EOI,
    start = sym super::start,
    help = sym others::help,
    others = sym OTHERS,
    exception = sym crash::exception,
    idt = sym INTERRUPT_TABLE,
);

unsafe extern "C" {
    static remus_gdt: [u64; 8];
    static remus_enter_other: u8;
    static remus_start_page: u8;
    static remus_start_page_end: u8;
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

// SAFETY: it is written once, before any other CPU is started; after that only the CPUs themselves read it.
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
    for vector in [VECTOR_DEVICE, VECTOR_TIMER, VECTOR_WAKE] {
        gates[usize::from(vector)] = Gate::new(&raw const remus_interrupt, From::Ring0);
    }
    gates[usize::from(VECTOR_SPURIOUS)] = Gate::new(&raw const remus_spurious, From::Ring0);
    // SAFETY: the table is written only here, once, with interrupts off and no other CPU started.
    unsafe { INTERRUPT_TABLE.0.get().write(gates) };
}

/// The block of CPU 0, if it were among the others': that of CPU n is n times [`STRIDE`] further on.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// Bytes that `cpus` other CPUs take of the heap.
pub(super) const fn bytes_of_others(cpus: usize) -> usize {
    cpus * STRIDE
}

/// Makes everything that other CPUs find when they are started: each runs [`others::help`] with one of
/// `arguments`, CPU 1 with the first.
pub(super) fn prepare_others(arguments: &[u64]) {
    let layout = Layout::from_size_align(bytes_of_others(arguments.len()), align_of::<Block>());
    let layout = layout.expect("the number of CPUs is a byte");
    if layout.size() == 0 {
        return;
    }
    // SAFETY: the layout is not empty. The memory is never given back.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    for (n, argument) in arguments.iter().enumerate() {
        let block = memory.wrapping_add(n * STRIDE + STACK_OF_OTHERS).cast::<Block>();
        // SAFETY: block n, behind its stack, ends where the memory of CPU n ends; nobody else knows it yet.
        unsafe { (&raw mut (*block).argument).write(*argument) };
    }
    // The first of them is CPU 1.
    let of_cpu_0 = (memory as u64 + STACK_OF_OTHERS as u64).wrapping_sub(STRIDE as u64);
    OTHERS.store(of_cpu_0, Ordering::SeqCst);
    // CR3 is there since the boot CPU's entry.
    let code = &raw const remus_start_page;
    let length = (&raw const remus_start_page_end).addr() - code.addr();
    // SAFETY: so many bytes of the image lie between the two symbols.
    put_low(START_PAGE, unsafe { core::slice::from_raw_parts(code, length) });
    put_low(START_ENTRY, &((&raw const remus_enter_other) as u64).to_le_bytes());
    put_low(START_GDTR, &(size_of::<[u64; 8]>() as u16 - 1).to_le_bytes());
    put_low(START_GDTR + 2, &((&raw const remus_gdt) as u64).to_le_bytes());
}

/// Writes to the start page.
fn put_low(at: u64, bytes: &[u8]) {
    let end = at + bytes.len() as u64;
    assert!(START_PAGE <= at && end <= START_PAGE + 4096, "beyond the start page");
    let to = ptr::with_exposed_provenance_mut::<u8>(at as usize);
    // SAFETY: the boot contract: this page is RAM, mapped, and the guest's alone, and no Rust value lives there.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
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
