//! A guest of a few instructions, whose memory and registers prove each other.
//!
//! In ring 3 it increments the first word of each of N pages, round after round, and counts the same in an
//! SSE register; after each round it writes the round and that register to its page of parameters. So at
//! any instant, at any instruction: every page's word is the number of the last whole round or one more, and
//! the register is rounds times pages. A page, register or instruction that is lost or repeated shows.
//!
//! Its ring-0 part is a boot of a few lines, a handler for `hlt` (sleep until the timer) and the timer's.

use std::arch::global_asm;
use std::io::Write;

use remus::checkpoint::{PAGE_SIZE, Page};
use remus::machine::Memory;

/// Where the guest is loaded; its tables and stack follow.
const BASE: u64 = 0x10_0000;
/// The page of parameters and results.
const PARAMETERS: Page = Page(0x180);
/// First of the pages that it increments.
pub(crate) const FIRST: Page = Page(0x1000);

global_asm!(
    r#"
    .pushsection .rodata.small_guest, "a"
    .balign 16
    .global small_guest_start
    .global small_guest_end
small_guest_start:
    lgdt [rip + 60f]
    lidt [rip + 61f]
    mov eax, 0x40
    ltr ax
    mov rsp, 0x10e000
    mov qword ptr [0x10a004], 0x10e000     # RSP0
    mov word ptr [0x10a066], 0x68          # the I/O bitmap: all ports are ring 3's
    mov byte ptr [0x10c068], 0xff
    mov rax, cr4
    or eax, 0x600                          # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov rax, cr0
    and eax, 0xfffffff3                    # no EM, no TS
    or eax, 0x2
    mov cr0, rax
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff      # local APIC on
    mov dword ptr [rbx + 0x3e0], 0xb
    mov dword ptr [rbx + 0x320], 0x20034   # timer: periodic, vector 0x34
    mov eax, dword ptr [0x180020]
    mov dword ptr [rbx + 0x380], eax
    push 0x2b
    push 0x10f000
    push 0x3002                            # IF = 0: interrupts come in the idle stub only
    push 0x33
    lea rax, [rip + 10f]
    push rax
    iretq

10: mov r15d, 0x180000
    mov r9, [r15 + 8]                      # pages
    mov r10, [r15 + 16]                    # loops to spin after each page
    mov edx, 0x3f8
    mov al, 'r'
    out dx, al
    mov al, 10
    out dx, al
    pcmpeqd xmm1, xmm1
    pxor xmm0, xmm0
    xor r13, r13
11: mov rdi, [r15]
    mov rcx, r9
12: inc qword ptr [rdi]
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
17: jmp 11b

    .balign 16
20: add rsp, 8                             # #GP: only `hlt` of ring 3 comes here
    inc qword ptr [rsp]
    sti
    hlt
    iretq
    .balign 16
21: push rbx                               # the timer
    inc qword ptr [0x1800a8]
    mov ebx, 0xfee000b0
    mov dword ptr [rbx], 0
    pop rbx
    iretq

    .balign 16
50: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .quad 0, 0x00cff3000000ffff, 0x00affb000000ffff, 0
    .quad 0x00008910a0002068, 0            # TSS at 0x10a000
60: .word 79
    .quad 0x100000 + 50b - small_guest_start
    .balign 16
51: .fill 26, 8, 0                         # vectors 0..12
    .word 20b - small_guest_start, 0x10, 0x8e00, 0x10
    .quad 0
    .fill 76, 8, 0                         # 14..51
    .word 21b - small_guest_start, 0x10, 0x8e00, 0x10
    .quad 0
61: .word 847
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
}

/// How the guest works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
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
    let code = unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
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
    let mut page = [0; PAGE_SIZE];
    page[..8].copy_from_slice(&(u64::from(FIRST.0) * PAGE_SIZE as u64).to_le_bytes());
    page[8..16].copy_from_slice(&u64::from(work.pages).to_le_bytes());
    page[16..24].copy_from_slice(&u64::from(work.spin).to_le_bytes());
    page[24..28].copy_from_slice(&(work.after as u32).to_le_bytes());
    // The timer's period in ticks of the APIC bus, 1 ns each.
    page[32..36].copy_from_slice(&200_000u32.to_le_bytes());
    memory.write_page(PARAMETERS, &page).unwrap();
}

/// Moves the guest's work to the pages from `first`, while it runs: seen when it begins a round.
pub(crate) fn set_first(memory: &Memory, first: Page) {
    let address = u64::from(first.0) * PAGE_SIZE as u64;
    memory.write_in_page(PARAMETERS, 0, &address.to_le_bytes()).unwrap();
}

/// How many rounds the guest has finished.
pub(crate) fn rounds(memory: &Memory) -> u64 {
    word(memory, PARAMETERS, 0x58)
}

/// How many timer interrupts it has taken.
pub(crate) fn ticks(memory: &Memory) -> u64 {
    word(memory, PARAMETERS, 0xa8)
}

/// Panics unless the guest's memory is of one instant of its work.
pub(crate) fn check(memory: &Memory, work: Work) {
    let round = rounds(memory);
    let counted = |rounds: u64| rounds.wrapping_mul(work.pages.into()) & 0xffff_ffff;
    let register = word(memory, PARAMETERS, 0x140) & 0xffff_ffff;
    let just_before = round.checked_sub(1).map(counted);
    assert!(
        register == counted(round) || Some(register) == just_before,
        "register {register} in round {round} of {} pages",
        work.pages
    );
    let mut last = u64::MAX;
    for n in 0..work.pages {
        let value = word(memory, Page(FIRST.0 + n), 0);
        assert!(value == round || value == round + 1, "page {n} has {value} in round {round}");
        assert!(value <= last, "page {n} is ahead of the one before it");
        last = value;
    }
}

fn word(memory: &Memory, page: Page, at: usize) -> u64 {
    let mut bytes = [0; PAGE_SIZE];
    memory.read_page(page, &mut bytes).unwrap();
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
