//! The devices beside the network, rung and read by a guest of a few instructions, on their doorbells and interrupts.

use std::arch::global_asm;
use std::fs::File;
use std::io::{ErrorKind, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use remus::checkpoint::{DeviceState, MachineState, Page, PageSet, QueueState};
use remus::machine::{CpuProfile, DiskShape, End, Machine, Memory, Shape};

use super::machine::{SHAPE, alone, copy_ram, prepared, serve, software};
use super::small_guest::{self, After, Work, elf_of};

// It waits for a word, rings for the entropy device and the first disk, lets its serial port interrupt it, and says
// what it hears there until that is a dot. Then it resets the machine.
global_asm!(
    r#"
    .pushsection .rodata.devices_guest, "a"
devices_guest_start:
    mov ebx, 0x180000
1:  cmp dword ptr [rbx], 0
    je 1b
    mov ecx, 0xd0001050
    mov dword ptr [rcx], 0
    mov ecx, 0xd0002050
    mov dword ptr [rcx], 0
    mov edx, 0x3f9
    mov al, 1
    out dx, al
2:  mov edx, 0x3fd
    in al, dx
    test al, 1
    jz 2b
    mov edx, 0x3f8
    in al, dx
    cmp al, '.'
    je 3f
    out dx, al
    jmp 2b
3:  mov al, 0xfe
    out 0x64, al
4:  jmp 4b
devices_guest_end:
    .popsection
    "#
);

unsafe extern "C" {
    static devices_guest_start: u8;
    static devices_guest_end: u8;
}

/// The word that the guest waits for.
const GO: Page = Page(0x180);
/// Where a device's ring is: descriptors, available ring, used ring, a page each.
const RNG: Page = Page(0x800);
const DISK: Page = Page(0x810);
/// What the devices write into, and a request's header and status.
const ENTROPY: Page = Page(0x820);
const DATA: Page = Page(0x830);
const REQUEST: Page = Page(0x840);
const STATUS: Page = Page(0x841);
const INTO: Page = Page(0x900);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const VERSION_1: u64 = 1 << 32;

fn elf() -> tempfile::NamedTempFile {
    let (start, end) = (&raw const devices_guest_start, &raw const devices_guest_end);
    // SAFETY: the two symbols bound one run of bytes in a section that nobody writes.
    elf_of(unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) })
}

fn at(page: Page) -> u64 {
    u64::from(page.0) * 4096
}

fn shape(image: &tempfile::NamedTempFile) -> Shape {
    Shape { disks: vec![DiskShape::of(image.path(), "test", true).unwrap()], ..SHAPE }
}

/// A device that a driver has set up, with its one ring there.
fn driven(ring: Page) -> DeviceState {
    let address = |n| at(Page(ring.0 + n));
    let queue = QueueState {
        size: 8,
        ready: true,
        descriptors: address(0),
        avail: address(1),
        used: address(2),
        ..QueueState::default()
    };
    DeviceState {
        status: 15,
        driver_features: VERSION_1,
        queues: vec![queue],
        ..Default::default()
    }
}

/// Writes a chain of (address, length, flags) from descriptor 0 on; it is not yet available.
fn describe(memory: &Memory, ring: Page, chain: &[(u64, u32, u16)]) {
    for (n, (address, len, flags)) in (0_u16..).zip(chain) {
        let more = if usize::from(n) + 1 < chain.len() { NEXT } else { 0 };
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend((flags | more).to_le_bytes());
        bytes.extend((n + 1).to_le_bytes());
        memory.write_in_page(ring, usize::from(n) * 16, &bytes).unwrap();
    }
}

/// Makes the chain at descriptor 0 the first available one.
fn offer(memory: &Memory, ring: Page) {
    memory.write_in_page(Page(ring.0 + 1), 0, &[0, 0, 1, 0, 0, 0]).unwrap();
}

fn page(memory: &Memory, page: Page) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    memory.read_page(page, &mut bytes).unwrap();
    bytes
}

/// What came back through a ring: how many, and how long the first is.
fn used(memory: &Memory, ring: Page) -> (u16, u32) {
    let used = page(memory, Page(ring.0 + 2));
    (u16::from_le_bytes([used[2], used[3]]), u32::from_le_bytes(used[8..12].try_into().unwrap()))
}

fn until(machine: &mut Machine, what: &str, is_so: impl Fn(&Memory) -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !is_so(machine.memory()) {
        assert!(Instant::now() < limit, "{what}");
        assert_eq!(serve(machine, Duration::from_millis(1)), None);
    }
}

#[test]
fn doorbells_are_heard_interrupts_come_and_a_serial_port_goes_on_elsewhere() {
    let _alone = alone();
    let mut image = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..64 {
        image.write_all(&[sector; 512]).unwrap();
    }
    let shape = shape(&image);
    let cpu = CpuProfile::of_host().unwrap();
    // What the guest has not read when it is captured, it reads elsewhere.
    let mut first = prepared(&shape, &cpu);
    first.load(software(elf().path())).unwrap();
    let mut first = first.start().unwrap();
    assert_eq!(first.console().type_in(b"typed before"), 12);
    assert_eq!(serve(&mut first, Duration::from_millis(5)), None);
    let mut state = MachineState::default();
    let old = Arc::clone(first.memory());
    let mut paused = first.pause().unwrap();
    paused.capture(&mut state).unwrap();
    assert_eq!((state.devices.len(), state.serial.received.as_slice()), (3, &b"typed before"[..]));
    let mut second = prepared(&shape, &cpu);
    copy_ram(&old, second.memory());
    paused.keep();

    state.devices[1] = driven(RNG);
    state.devices[2] = driven(DISK);
    describe(second.memory(), RNG, &[(at(ENTROPY), 256, WRITE)]);
    let mut header = [0; 16];
    header[8] = 7;
    second.memory().write_in_page(REQUEST, 0, &header).unwrap();
    second.memory().write_in_page(STATUS, 0, &[0xff]).unwrap();
    describe(
        second.memory(),
        DISK,
        &[(at(REQUEST), 16, 0), (at(DATA), 1024, WRITE), (at(STATUS), 1, WRITE)],
    );
    let mut encoded = Vec::new();
    state.encode(&mut encoded);
    second.restore(&MachineState::decode(&encoded).unwrap()).unwrap();
    let mut second = second.start().unwrap();
    // Doorbells are rung once at the start, and find nothing.
    assert_eq!(serve(&mut second, Duration::from_millis(20)), None);
    let memory = Arc::clone(second.memory());
    offer(&memory, RNG);
    offer(&memory, DISK);
    second.track_dirty(true).unwrap();
    let mut dirty = PageSet::new(memory.layout().pages());
    second.harvest_and_clear_live(&mut dirty).unwrap();
    assert_eq!(serve(&mut second, Duration::from_millis(20)), None);
    assert_eq!((used(&memory, RNG).0, used(&memory, DISK).0), (0, 0), "nobody has rung");

    let (mut said, writer) = pipe().unwrap();
    second.console().attach("a pipe", File::from(OwnedFd::from(writer))).unwrap();
    memory.write_in_page(GO, 0, &[1]).unwrap();
    until(&mut second, "no entropy", |memory| used(memory, RNG) == (1, 256));
    until(&mut second, "nothing from the disk", |memory| used(memory, DISK) == (1, 1025));
    let data = page(&memory, DATA);
    assert_eq!((&data[..512], &data[512..1024]), (&[7; 512][..], &[8; 512][..]));
    assert_eq!(page(&memory, STATUS)[0], 0);
    assert_ne!(page(&memory, ENTROPY)[..256], [0; 256]);

    let mut heard = [0; 12];
    nonblocking(&said);
    read_all(&mut said, &mut heard, &mut second);
    assert_eq!(&heard, b"typed before");

    let mut paused = second.pause().unwrap();
    paused.capture(&mut state).unwrap();
    paused.harvest(&mut dirty).unwrap();
    for written in [ENTROPY, DATA, STATUS, Page(RNG.0 + 2), Page(DISK.0 + 2)] {
        assert!(dirty.contains(written), "page {} is not in the checkpoint", written.0);
    }
    drop(paused);
    let states = &state.devices[1..];
    assert!(states.iter().all(|device| device.interrupt_status == 1), "{states:?}");
    assert!(states.iter().all(|device| device.queues[0].next_avail == 1), "{states:?}");
    // KVM's picture of the first PIC: number, padding, last state of the lines, requests. The kernel raises the line of
    // an irqfd at its leisure.
    let limit = Instant::now() + Duration::from_secs(10);
    while state.chips[0].0[9] & 1 << 4 == 0 {
        assert!(Instant::now() < limit, "the serial port has not interrupted");
        assert_eq!(serve(&mut second, Duration::from_millis(1)), None);
        second.pause().unwrap().capture(&mut state).unwrap();
    }

    second.console().type_in(b".");
    assert_eq!(serve(&mut second, Duration::from_secs(10)), Some(End::Reset));
}

fn nonblocking(fd: &impl AsRawFd) {
    // SAFETY: sets a flag of a descriptor that is open.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
}

fn read_all(from: &mut impl Read, to: &mut [u8], machine: &mut Machine) {
    let limit = Instant::now() + Duration::from_secs(10);
    let mut read = 0;
    while read < to.len() {
        match from.read(&mut to[read..]) {
            Ok(n) => read += n,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < limit, "the guest has said {read} bytes only");
        assert_eq!(serve(machine, Duration::from_millis(1)), None);
    }
}

/// A pause does not wait for a disk at work: it finds the request in the ring, or done.
#[test]
fn disks_at_work_do_not_make_pauses_long() {
    let _alone = alone();
    let mut image = tempfile::NamedTempFile::new().unwrap();
    for mib in 0..120 {
        image.write_all(&vec![mib; 1 << 20]).unwrap();
    }
    let shape = shape(&image);
    let cpu = CpuProfile::of_host().unwrap();
    let mut before = prepared(&shape, &cpu);
    before.load(software(small_guest::elf().path())).unwrap();
    let work = Work { vcpus: 1, pages: 1, spin: 0, after: After::Sleep };
    small_guest::set_work(before.memory(), work);
    let mut machine = before.start().unwrap();
    let mut state = MachineState::default();
    let mut paused = machine.pause().unwrap();
    paused.capture(&mut state).unwrap();
    let mut busy = prepared(&shape, &cpu);
    copy_ram(paused.memory(), busy.memory());
    paused.keep();

    // One request for 120 MiB, all of it into the same 4 MiB.
    state.devices[2] = driven(DISK);
    state.devices[2].queues[0].size = 32;
    let mut chain = vec![(at(REQUEST), 16, 0)];
    chain.extend([(at(INTO), 4 << 20, WRITE); 30]);
    chain.push((at(STATUS), 1, WRITE));
    describe(busy.memory(), DISK, &chain);
    busy.memory().write_in_page(STATUS, 0, &[0xff]).unwrap();
    offer(busy.memory(), DISK);
    busy.restore(&state).unwrap();
    let mut busy = busy.start().unwrap();
    let (mut under_way, mut longest) = (0, Duration::ZERO);
    let limit = Instant::now() + Duration::from_secs(10);
    while used(busy.memory(), DISK).0 == 0 {
        assert!(Instant::now() < limit, "the request is never done");
        let begun = Instant::now();
        let mut paused = busy.pause().unwrap();
        paused.capture(&mut state).unwrap();
        longest = longest.max(begun.elapsed());
        let queue = state.devices[2].queues[0];
        let done = used(paused.memory(), DISK).0;
        assert_eq!((queue.next_avail, queue.next_used), (done, done), "in the ring, or done");
        under_way += u32::from(done == 0);
        let before = words(paused.memory());
        std::thread::sleep(Duration::from_micros(300));
        assert_eq!(words(paused.memory()), before, "written in a pause");
        drop(paused);
        serve(&mut busy, Duration::from_micros(200));
    }
    assert_eq!(page(busy.memory(), STATUS)[0], 0);
    println!(
        "{under_way} pauses found the request under way, the longest stop and capture took {longest:?}"
    );
    assert!(under_way > 0, "none found it under way");
}

/// The last word of each page of what the big request writes to; each page is written many times with other content.
fn words(memory: &Memory) -> Vec<u64> {
    let word = |n| {
        let page = page(memory, Page(INTO.0 + n));
        u64::from_le_bytes(page[4088..].try_into().unwrap())
    };
    (0..1024).map(word).collect()
}
