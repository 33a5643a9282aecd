//! A guest of a few instructions, whose memory and registers prove each other.
//!
//! In ring 3 each of its vCPUs increments the first word of each of N pages of its own, round after round, and
//! counts the same in an SSE register; after each round it writes the round and that register to its own page of
//! parameters. So at any instant, at any instruction: every page's word is the number of the last whole round or
//! one more, and the register is rounds times pages. A page, register or instruction that is lost or repeated
//! shows. After each of its pages a vCPU also counts in a word that they all share: of one instant of them all it
//! is the sum of the pages' words, less one for each vCPU that is just between the two.
//!
//! Its ring-0 part is a boot of a few lines, which also starts the other vCPUs, a handler for `hlt` (sleep until
//! the timer) and the interrupts'.

use std::arch::global_asm;
use std::io::Write;

use remus::checkpoint::{PAGE_SIZE, Page};
use remus::machine::Memory;

/// Where the guest is loaded; 2 MiB hold its code and parameters, the next 2 tables and stacks of 64 vCPUs.
const BASE: u64 = 0x10_0000;
/// What the vCPUs share: how many increments there were, and whose turn it is.
const SHARED: Page = Page(0x17f);
/// First of the pages of parameters and results, one a vCPU.
const PARAMETERS: Page = Page(0x180);
/// First of the pages that it increments, those of vCPU 0.
pub(crate) const FIRST: Page = Page(0x1000);

global_asm!(
    r#"
    .pushsection .rodata.small_guest, "a"
    .balign 16
    .global small_guest_start
    .global small_guest_end
small_guest_start:
    xor r14d, r14d                         # the number of this vCPU
40: mov ebx, r14d                          # every vCPU in long mode; ebx = its tables and stacks
    shl ebx, 15
    add ebx, 0x200000
    lea rsi, [rip + 50f]
    lea rdi, [rbx + 0x3000]
    mov ecx, 8
2:  mov rax, [rsi]
    mov [rdi], rax
    add rsi, 8
    add rdi, 8
    dec ecx
    jnz 2b
    mov rax, rbx                           # the descriptor of its TSS
    shl rax, 16
    mov rcx, 0x0000890000002068
    or rax, rcx
    mov [rbx + 0x3040], rax
    mov word ptr [rbx + 0x3056], 79
    lea rax, [rbx + 0x3000]
    mov [rbx + 0x3058], rax
    lgdt [rbx + 0x3056]
    lidt [rip + 61f]
    lea rsp, [rbx + 0x5000]
    mov [rbx + 4], rsp                     # RSP0
    mov word ptr [rbx + 0x66], 0x68        # the I/O bitmap: all ports are ring 3's
    mov byte ptr [rbx + 0x2068], 0xff
    mov eax, 0x40
    ltr ax
    mov rax, cr4
    or eax, 0x600                          # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov rax, cr0
    and eax, 0xfffffff3                    # no EM, no TS
    or eax, 0x2
    mov cr0, rax
    mov r15d, r14d
    shl r15d, 12
    add r15d, 0x180000                     # its parameters
    mov ecx, 0xfee00000
    mov dword ptr [rcx + 0xf0], 0x1ff      # local APIC on
    mov dword ptr [rcx + 0x3e0], 0xb
    mov dword ptr [rcx + 0x320], 0x20034   # timer: periodic, vector 0x34
    mov eax, dword ptr [r15 + 0x20]
    mov dword ptr [rcx + 0x380], eax
    test r14d, r14d
    jnz 5f
    lea rsi, [rip + 70f]                   # vCPU 0 starts the others
    mov edi, 0x8000
    mov ecx, 0xe0
3:  mov al, [rsi]
    mov [rdi], al
    inc rsi
    inc rdi
    dec ecx
    jnz 3b
    lea rax, [rip + 40b]                   # behind it what it needs
    mov [0x80e0], rax
    mov rax, cr3
    mov [0x80e8], rax
    sgdt [0x80f0]
    mov ecx, 0xfee00000
    mov edx, 1
4:  cmp edx, dword ptr [r15 + 0x28]
    jae 5f
    mov eax, edx
    shl eax, 24
    mov dword ptr [rcx + 0x310], eax
    mov dword ptr [rcx + 0x300], 0x4500    # INIT
    mov dword ptr [rcx + 0x300], 0x4608    # SIPI, page 8
    inc edx
    jmp 4b
5:  push 0x2b
    lea rax, [rbx + 0x6000]
    push rax
    push 0x3002                            # IF = 0: interrupts come in the idle stub only
    push 0x33
    lea rax, [rip + 41f]
    push rax
    iretq

41: mov r9, [r15 + 8]                      # pages
    mov r10, [r15 + 16]                    # loops to spin after each page
    mov edx, 0x3f8
    mov al, 'r'
    out dx, al
    mov al, 10
    out dx, al
    pcmpeqd xmm1, xmm1
    pxor xmm0, xmm0
    xor r13, r13
42: cmp dword ptr [r15 + 0x18], 4          # 4: wait for this vCPU's turn
    jne 9f
8:  cmp [0x17f008], r14
    je 9f
    hlt
    jmp 8b
9:  mov rdi, [r15]
    mov rcx, r9
12: inc qword ptr [rdi]
    lock inc qword ptr [0x17f000]
    psubd xmm0, xmm1
    add rdi, 4096
    mov rdx, r10
    test rdx, rdx
    jz 14f
13: dec rdx
    jnz 13b
14: dec rcx
    jnz 12b
    inc r13
    mov [r15 + 0x58], r13
    movdqu [r15 + 0x140], xmm0
    cmp dword ptr [r15 + 0x18], 1          # 1: sleep until the timer after each round
    jne 15f
    hlt
15: cmp dword ptr [r15 + 0x18], 2          # 2: switch off
    jne 16f
    mov edx, 0x604
    mov al, 1
    out dx, al
16: cmp dword ptr [r15 + 0x18], 3          # 3: an exception without a handler
    jne 17f
    ud2
17: cmp dword ptr [r15 + 0x18], 4          # 4: the turn is the next vCPU's, which is woken
    jne 42b
    lea rax, [r14 + 1]
    cmp eax, dword ptr [r15 + 0x28]
    jb 18f
    xor eax, eax
18: mov [0x17f008], rax
    shl eax, 24
    mov ecx, 0xfee00000
    mov dword ptr [rcx + 0x310], eax
    mov dword ptr [rcx + 0x300], 0x4035
    jmp 42b

    .balign 16
20: add rsp, 8                             # #GP: only `hlt` of ring 3 comes here
    inc qword ptr [rsp]
    sti
    hlt
    iretq
    .balign 16
21: push rbx                               # the timer, and other vCPUs
    inc qword ptr [r15 + 0xa8]
    mov ebx, 0xfee000b0
    mov dword ptr [rbx], 0
    pop rbx
    iretq

    .balign 16
70: .code16                                # at 0x8000, where other vCPUs start
    cli
    xor ax, ax
    mov ds, ax
    lgdt [0x80f0]
    mov eax, 0x20                          # PAE
    mov cr4, eax
    mov eax, [0x80e8]
    mov cr3, eax
    mov ecx, 0xc0000080                    # EFER: LME
    xor edx, edx
    mov eax, 0x100
    wrmsr
    mov eax, 0x80010033                    # PE, MP, ET, NE, WP, PG
    mov cr0, eax
    .byte 0x66, 0xea                       # a far jump with an offset of 32 bits
    .long 0x8000 + 73f - 70b
    .word 0x10
    .code64
73: mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 0xfee00020
    mov r14d, dword ptr [rax]              # its number is its APIC's
    shr r14d, 24
    jmp qword ptr [0x80e0]
    .balign 16
50: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .quad 0, 0x00cff3000000ffff, 0x00affb000000ffff, 0
    .balign 16
51: .fill 26, 8, 0                         # vectors 0..12
    .word 20b - small_guest_start, 0x10, 0x8e00, 0x10
    .quad 0
    .fill 76, 8, 0                         # 14..51
    .rept 2                                # 52, 53
    .word 21b - small_guest_start, 0x10, 0x8e00, 0x10
    .quad 0
    .endr
61: .word 863
    .quad 0x100000 + 51b - small_guest_start
small_guest_end:
    .popsection
    "#
);

unsafe extern "C" {
    static small_guest_start: u8;
    static small_guest_end: u8;
}

/// What the guest does after each round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    GoOn = 0,
    Sleep = 1,
    PowerOff = 2,
    Fault = 3,
    /// Wakes the next vCPU and sleeps until its turn comes again: one of them is at work at any time. There is no
    /// timer, so that an interrupt between two vCPUs that is lost is the end of all progress.
    Pass = 4,
}

/// How the guest works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// How many vCPUs do.
    pub(crate) vcpus: u8,
    /// What each of them increments.
    pub(crate) pages: u32,
    /// Loops to spin after each page.
    pub(crate) spin: u32,
    pub(crate) after: After,
}

/// The guest as an ELF file.
pub(crate) fn elf() -> tempfile::NamedTempFile {
    let start = &raw const small_guest_start;
    let end = &raw const small_guest_end;
    // SAFETY: the two symbols bound one run of bytes in a section that nobody writes.
    elf_of(unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) })
}

/// A guest of this code, entered at its first byte, as an ELF file.
pub(crate) fn elf_of(code: &[u8]) -> tempfile::NamedTempFile {
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [BASE, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    let length = code.len() as u64;
    for word in [120, BASE, BASE, length, length, 4096] {
        file.extend_from_slice(&u64::to_le_bytes(word));
    }
    file.extend_from_slice(code);
    let mut elf = tempfile::NamedTempFile::new().unwrap();
    elf.write_all(&file).unwrap();
    elf
}

/// Gives the guest its work, before it starts.
pub(crate) fn set_work(memory: &Memory, work: Work) {
    for vcpu in 0..work.vcpus {
        let mut page = [0; PAGE_SIZE];
        let first = u64::from(first_of(work, vcpu).0) * PAGE_SIZE as u64;
        page[..8].copy_from_slice(&first.to_le_bytes());
        page[8..16].copy_from_slice(&u64::from(work.pages).to_le_bytes());
        page[16..24].copy_from_slice(&u64::from(work.spin).to_le_bytes());
        page[24..28].copy_from_slice(&(work.after as u32).to_le_bytes());
        // The timer's period in ticks of the APIC bus, 1 ns each; 0 is never.
        let period = if work.after == After::Pass { 0u32 } else { 200_000 };
        page[32..36].copy_from_slice(&period.to_le_bytes());
        page[40..44].copy_from_slice(&u32::from(work.vcpus).to_le_bytes());
        memory.write_page(parameters(vcpu), &page).unwrap();
    }
}

/// Moves the work of vCPU 0 to the pages from `first`, while it runs: seen when it begins a round.
pub(crate) fn set_first(memory: &Memory, first: Page) {
    let address = u64::from(first.0) * PAGE_SIZE as u64;
    memory.write_in_page(PARAMETERS, 0, &address.to_le_bytes()).unwrap();
}

/// Changes what a vCPU does after each round, while it runs.
pub(crate) fn set_after(memory: &Memory, vcpu: u8, after: After) {
    memory.write_in_page(parameters(vcpu), 24, &(after as u32).to_le_bytes()).unwrap();
}

/// How many rounds vCPU 0 has finished.
pub(crate) fn rounds(memory: &Memory) -> u64 {
    rounds_of(memory, 0)
}

/// How many rounds a vCPU has finished.
pub(crate) fn rounds_of(memory: &Memory, vcpu: u8) -> u64 {
    word(memory, parameters(vcpu), 0x58)
}

/// How many interrupts vCPU 0 has taken.
pub(crate) fn ticks(memory: &Memory) -> u64 {
    word(memory, PARAMETERS, 0xa8)
}

/// How many pages all vCPUs together have incremented, by the word that they share.
pub(crate) fn shared(memory: &Memory) -> u64 {
    word(memory, SHARED, 0)
}

/// Panics unless the guest's memory is of one instant of its work, the same for all vCPUs.
pub(crate) fn check(memory: &Memory, work: Work) {
    let all: u64 = (0..work.vcpus).map(|vcpu| check_one(memory, work, vcpu)).sum();
    let counted = shared(memory);
    let between = all.checked_sub(counted);
    assert!(
        between.is_some_and(|between| between <= work.vcpus.into()),
        "{all} increments, of which {counted} were counted"
    );
}

/// How many increments the pages of a vCPU show.
fn check_one(memory: &Memory, work: Work, vcpu: u8) -> u64 {
    let round = rounds_of(memory, vcpu);
    let counted = |rounds: u64| rounds.wrapping_mul(work.pages.into()) & 0xffff_ffff;
    let register = word(memory, parameters(vcpu), 0x140) & 0xffff_ffff;
    let just_before = round.checked_sub(1).map(counted);
    assert!(
        register == counted(round) || Some(register) == just_before,
        "register {register} in round {round} of {} pages, vCPU {vcpu}",
        work.pages
    );
    let mut last = u64::MAX;
    let mut all = 0;
    for n in 0..work.pages {
        let value = word(memory, Page(first_of(work, vcpu).0 + n), 0);
        assert!(
            value == round || value == round + 1,
            "page {n} of vCPU {vcpu} has {value} in round {round}"
        );
        assert!(value <= last, "page {n} of vCPU {vcpu} is ahead of the one before it");
        last = value;
        all += value;
    }
    all
}

fn parameters(vcpu: u8) -> Page {
    Page(PARAMETERS.0 + u32::from(vcpu))
}

/// The vCPUs' pages follow one another.
fn first_of(work: Work, vcpu: u8) -> Page {
    Page(FIRST.0 + work.pages * u32::from(vcpu))
}

fn word(memory: &Memory, page: Page, at: usize) -> u64 {
    let mut bytes = [0; PAGE_SIZE];
    memory.read_page(page, &mut bytes).unwrap();
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
