//! What an ELF64 says of itself by its headers: whether all of it is there, where it is loaded and entered, and whether it
//! is a kernel for this machine or a program of some operating system.
//!
//! The loader believes the headers, and a guest whose entry point is a program's for Linux dies in a triple fault. So both
//! are asked before anything is made.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use remus_abi::boot::{BOOT_MAGIC, GUEST_BASE};

use crate::machine::layout::Layout;

/// Sizes of the file's header, of a program header, and of a note's head.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE_HEAD: usize = 12;
/// Bytes of notes that are looked at; a kernel has some hundred.
const NOTES_MAX: u64 = 1 << 16;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// `e_ident[EI_OSABI]` of a program for Linux.
const OSABI_LINUX: u8 = 3;
/// Xen's note with the entry point for PVH (xen/include/public/elfnote.h).
const XEN_PHYS32_ENTRY: u32 = 18;
/// The C library's note that names an operating system.
const GNU_ABI_TAG: u32 = 1;

/// An ELF64 that this machine can load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Elf {
    /// Where what it loads ends.
    pub(super) end: u64,
    pub(super) entered: Entered,
}

/// By which agreement an ELF is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entered {
    Pvh,
    /// As `remus_abi::boot` describes. A guest that reads its boot block compares it with the magic, so the file has that
    /// somewhere; one that has not may be made for something else.
    Bare {
        knows_the_magic: bool,
    },
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

/// What the notes tell.
#[derive(Default)]
struct Notes {
    pvh: bool,
    linux_kernel: bool,
    program: bool,
}

/// Looks at an ELF64 for x86-64.
///
/// # Errors
/// When the file is cut short, or cannot be loaded and entered here; says why.
pub(super) fn look(file: &File) -> Result<Elf> {
    let length = file.metadata().context("look at it")?.len();
    let header: [u8; HEADER] = read(file, 0, length)?;
    let entry = u64_at(&header, 24);
    let (table, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    ensure!(
        usize::from(size) == PROGRAM_HEADER && count > 0,
        "it is an ELF file without program headers (an object file?), so nothing of it can be loaded"
    );
    let mut segments = Vec::new();
    for n in 0..u64::from(count) {
        let at =
            table.checked_add(n * PROGRAM_HEADER as u64).context("its headers make no sense")?;
        let header: [u8; PROGRAM_HEADER] = read(file, at, length)?;
        segments.push(Segment {
            kind: u32_at(&header, 0),
            offset: u64_at(&header, 8),
            address: u64_at(&header, 24),
            in_file: u64_at(&header, 32),
            in_memory: u64_at(&header, 40),
        });
    }
    let notes = notes(file, &segments, length)?;
    let is_program = header[7] == OSABI_LINUX
        || notes.program
        || segments.iter().any(|segment| segment.kind == PT_INTERP);
    if !notes.pvh {
        ensure!(!is_program, "it is a program for an operating system, not a kernel");
        ensure!(
            !notes.linux_kernel,
            "it is a Linux kernel without an entry point for PVH: name its bzImage, or one that was built with CONFIG_PVH"
        );
    }
    let loads = || segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let mut end = 0;
    for segment in loads() {
        let last = segment.offset.checked_add(segment.in_file);
        ensure!(
            last.is_some_and(|last| last <= length),
            "{}",
            cut_short(last.unwrap_or(u64::MAX), length)
        );
        let after = segment.address.checked_add(segment.in_memory.max(segment.in_file));
        end = end.max(after.context("its headers make no sense")?);
    }
    let is_entered = |segment: &Segment| {
        entry.checked_sub(segment.address).is_some_and(|at| at < segment.in_memory)
    };
    ensure!(
        entry >= GUEST_BASE && loads().any(is_entered),
        "its entry point {entry:#x} is not in what it loads from {GUEST_BASE:#x} on: it is no guest for this machine"
    );
    let entered = if notes.pvh {
        Entered::Pvh
    } else {
        Entered::Bare { knows_the_magic: knows_the_magic(file, loads())? }
    };
    Ok(Elf { end, entered })
}

/// Reads `N` bytes of a file that has `length`.
fn read<const N: usize>(file: &File, at: u64, length: u64) -> Result<[u8; N]> {
    let end = at.saturating_add(N as u64);
    ensure!(end <= length, "{}", cut_short(end, length));
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).context("read it")?;
    Ok(bytes)
}

fn cut_short(needed: u64, length: u64) -> String {
    format!("it is cut short: its headers speak of {needed} bytes and it has {length}")
}

fn notes(file: &File, segments: &[Segment], length: u64) -> Result<Notes> {
    let mut found = Notes::default();
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let end = segment.offset.saturating_add(segment.in_file);
        ensure!(end <= length, "{}", cut_short(end, length));
        let bytes = usize::try_from(segment.in_file.min(NOTES_MAX)).expect("64 KiB at most");
        let mut bytes = vec![0; bytes];
        file.read_exact_at(&mut bytes, segment.offset).context("read its notes")?;
        each_note(&bytes, |name, kind| match name {
            b"Xen" => found.pvh |= kind == XEN_PHYS32_ENTRY,
            b"Linux" => found.linux_kernel = true,
            b"GNU" => found.program |= kind == GNU_ABI_TAG,
            b"Go" => found.program = true,
            _ => {}
        });
    }
    Ok(found)
}

/// Calls `seen(name, type)` for every whole note.
fn each_note(mut bytes: &[u8], mut seen: impl FnMut(&[u8], u32)) {
    while let Some((head, rest)) = bytes.split_at_checked(NOTE_HEAD) {
        let [name, description, kind] = [0, 4, 8].map(|at| u32_at(head, at));
        let [padded_name, padded] =
            [name, description].map(|size| (size as usize).next_multiple_of(4));
        let Some(name) = rest.get(..name as usize) else { return };
        seen(name.strip_suffix(b"\0").unwrap_or(name), kind);
        let Some(next) = padded_name.checked_add(padded).and_then(|size| rest.get(size..)) else {
            return;
        };
        bytes = next;
    }
}

fn knows_the_magic<'a>(file: &File, loads: impl Iterator<Item = &'a Segment>) -> Result<bool> {
    let magic = BOOT_MAGIC.to_le_bytes();
    // As much of one piece as the next one begins with again.
    let overlap = magic.len() - 1;
    let mut piece = vec![0; 1 << 16];
    for segment in loads {
        let mut at = segment.offset;
        let end = segment.offset + segment.in_file;
        while at < end {
            let length = usize::try_from((end - at).min(piece.len() as u64)).expect("a piece");
            let piece = &mut piece[..length];
            file.read_exact_at(piece, at).context("read it")?;
            if piece.windows(magic.len()).any(|bytes| bytes == magic) {
                return Ok(true);
            }
            if at + length as u64 == end {
                break;
            }
            at += (length - overlap) as u64;
        }
    }
    Ok(false)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Checks that what `elf` loads fits into RAM of this layout.
///
/// # Errors
/// When it does not; says how much it needs.
pub(super) fn check_fits(elf: Elf, layout: Layout) -> Result<()> {
    ensure!(
        elf.end == 0 || layout.page_at(elf.end - 1).is_some(),
        "it needs RAM up to {} MiB: raise machine.memory_mib",
        elf.end.div_ceil(1 << 20)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ENTRY: u64 = GUEST_BASE + 0x10;

    /// Returns an ELF64 with one segment of `code`, entered at `ENTRY`, and whatever else `more` puts in front of it.
    fn elf(code: &[u8], more: &[(u32, &[u8])]) -> Vec<u8> {
        let count = 1 + more.len();
        let mut file = vec![0; HEADER + count * PROGRAM_HEADER];
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        file[18] = 62;
        file[24..32].copy_from_slice(&ENTRY.to_le_bytes());
        file[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        file[54..58].copy_from_slice(&[56, 0, u8::try_from(count).unwrap(), 0]);
        for (n, (kind, bytes)) in [(PT_LOAD, code)].iter().chain(more).enumerate() {
            let (offset, length) = (file.len() as u64, bytes.len() as u64);
            let at = HEADER + n * PROGRAM_HEADER;
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (place, value) in [(8, offset), (24, GUEST_BASE), (32, length), (40, length)] {
                file[at + place..at + place + 8].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    fn note(name: &[u8], kind: u32) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [u32::try_from(name.len()).unwrap(), 4, kind] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend([0; 4]);
        note
    }

    fn looked(bytes: &[u8]) -> Result<Elf> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        look(&file)
    }

    fn refusal(bytes: &[u8]) -> String {
        format!("{:#}", looked(bytes).unwrap_err())
    }

    #[test]
    fn a_guest_of_our_own_is_known_by_the_magic_that_it_compares_with() {
        let mut code = vec![0x90; 70_000];
        let bare = |knows_the_magic| Entered::Bare { knows_the_magic };
        assert_eq!(looked(&elf(&code, &[])).unwrap().entered, bare(false));
        // Across the border of two pieces.
        code[65_532..65_540].copy_from_slice(&BOOT_MAGIC.to_le_bytes());
        let found = looked(&elf(&code, &[])).unwrap();
        assert_eq!(found, Elf { end: GUEST_BASE + 70_000, entered: bare(true) });
        assert!(check_fits(found, Layout::of_mib(2)).is_ok());
        let error = check_fits(found, Layout::of_mib(1)).unwrap_err().to_string();
        assert_eq!(error, "it needs RAM up to 2 MiB: raise machine.memory_mib");
    }

    #[test]
    fn a_file_that_ends_early_is_cut_short_wherever_it_ends() {
        let whole = elf(&[0x90; 4096], &[(PT_NOTE, &note(b"Xen\0", XEN_PHYS32_ENTRY))]);
        assert_eq!(looked(&whole).unwrap().entered, Entered::Pvh);
        for length in [20, HEADER, HEADER + 10, HEADER + 2 * PROGRAM_HEADER, 1000, whole.len() - 1]
        {
            let said = refusal(&whole[..length]);
            assert!(said.contains(&format!("and it has {length}")), "{length}: {said}");
        }
    }

    #[test]
    fn a_program_for_an_operating_system_is_no_kernel() {
        let code = [0x90; 64];
        let programs = [
            elf(&code, &[(PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0")]),
            elf(&code, &[(PT_NOTE, &note(b"GNU\0", GNU_ABI_TAG))]),
            elf(&code, &[(PT_NOTE, &note(b"Go\0", 4))]),
        ];
        for program in programs {
            assert!(refusal(&program).contains("a program for an operating system"));
        }
        let shell = std::fs::read("/bin/sh").unwrap();
        assert!(refusal(&shell).contains("a program for an operating system"));
        let vmlinux = elf(&code, &[(PT_NOTE, &note(b"Linux\0", 0x100))]);
        assert!(refusal(&vmlinux).contains("without an entry point for PVH"));
    }

    #[test]
    fn an_entry_point_outside_of_what_is_loaded_is_refused() {
        let mut low = elf(&[0x90; 64], &[]);
        low[24..32].copy_from_slice(&0x400_u64.to_le_bytes());
        assert!(refusal(&low).contains("its entry point 0x400 is not in what it loads"));
        assert!(refusal(&elf(&[0x90; 8], &[])).contains("is not in what it loads"));
        let mut object = elf(&[0x90; 64], &[]);
        object[56] = 0;
        assert!(refusal(&object).contains("without program headers"));
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            looked(&bytes).ok();
            let head = elf(&[], &[]);
            bytes.splice(..bytes.len().min(20), head[..20].iter().copied());
            bytes.resize(bytes.len().max(HEADER), 0);
            bytes[54..58].copy_from_slice(&[56, 0, 3, 0]);
            looked(&bytes).ok();
        }
    }
}
