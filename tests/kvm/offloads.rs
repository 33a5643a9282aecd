//! The network device with a true tap behind it and the kernel for a judge: what it leaves to the kernel, what it
//! finishes itself, and what comes back.
//!
//! The driver is this test: it writes rings into the RAM of a machine, and a state in which a driver has set the
//! device up with them, which the machine then takes over. The tap is one port of a bridge; the test holds the
//! other, `outside0`, which has no offloads: whatever leaves there, the kernel has finished.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use remus::checkpoint::{DeviceState, MachineState, Page, QueueState};
use remus::machine::{CpuProfile, Machine, Memory, Offloads, Placement, Prepared, Shape};
use remus::net::{Links, Mac, Tap, TapSpec, VNET_HEADER_BYTES};

use super::machine::{alone, copy_ram, serve, software};
use super::small_guest::{self, After, Work};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 0, 8];

/// Feature bits of virtio 1.2, 5.1.3.
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const VERSION_1: u64 = 1 << 32;
const ALL: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const ENTRIES: u16 = 256;
const WRITE: u16 = 2;
/// Bytes of each receive buffer, as Linux has them when they are merged.
const BUFFER: u32 = 1536;
/// Where rings and buffers are, far from the guest's own work.
const RINGS: u64 = 0x200_0000;
const FRAME: u64 = 0x210_0000;
const BUFFERS: u64 = 0x220_0000;

fn ring(queue: u16, part: u64) -> u64 {
    RINGS + u64::from(queue) * 0x1_0000 + part * 0x4000
}

fn shape(mtu_bytes: u16, offloads: Offloads) -> Shape {
    Shape { memory_mib: 64, vcpus: 1, mac: GUEST, mtu_bytes, offloads, disks: Vec::new() }
}

/// Two taps on a bridge, in a network namespace of this thread's own.
fn wire(mtu_bytes: u16) -> (Tap, Tap) {
    // SAFETY: unshare takes a number and changes this thread's namespace only.
    let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(left, 0, "a network namespace needs root: {}", std::io::Error::last_os_error());
    let ip = std::process::Command::new("ip")
        .args(["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])
        .status();
    assert!(ip.unwrap().success());
    let links = Links::open().unwrap();
    let bridge = links.bridge("br0").unwrap().index;
    links.up(bridge).unwrap();
    let tap = |name, mac| {
        let spec = TapSpec { name, guest_mac: Mac(mac), mtu_bytes: mtu_bytes.into(), vm: "test" };
        let tap = links.ensure_tap(&spec, |_| false).unwrap();
        links.join(tap.index, bridge).unwrap();
        links.up(tap.index).unwrap();
        tap
    };
    (tap("remus0", GUEST), tap("outside0", OUTSIDE))
}

/// A machine whose guest has set up nothing yet.
fn before(cpu: &CpuProfile) -> Machine {
    let shape = shape(1500, Offloads::None);
    let mut machine = Prepared::new(&shape, cpu, &Placement::default(), wire(1500).0.fd).unwrap();
    machine.load(software(small_guest::elf().path())).unwrap();
    small_guest::set_work(
        machine.memory(),
        Work { vcpus: 1, pages: 1, spin: 0, after: After::Sleep },
    );
    machine.start().unwrap()
}

/// The state of a device that a driver has taken with these features.
fn driven(features: u64) -> DeviceState {
    let queue = |n| QueueState {
        size: ENTRIES,
        ready: true,
        descriptors: ring(n, 0),
        avail: ring(n, 1),
        used: ring(n, 2),
        ..Default::default()
    };
    DeviceState {
        status: 15,
        driver_features: features | VERSION_1,
        queues: vec![queue(RECEIVE), queue(TRANSMIT)],
        ..Default::default()
    }
}

/// A machine that takes over a guest whose driver has taken these features, and put `frames` (behind their headers)
/// into the transmit ring and buffers into all of the receive ring; and the other end of its wire.
fn takes_over(shape: &Shape, features: u64, frames: &[(&[u8], &[u8])]) -> Result<(Machine, File)> {
    let cpu = CpuProfile::of_host()?;
    let mut before = before(&cpu);
    let (tap, outside) = wire(shape.mtu_bytes);
    let mut machine = Prepared::new(shape, &cpu, &Placement::default(), tap.fd)?;
    let ram = machine.memory();
    let mut state = MachineState::default();
    let old = Arc::clone(before.memory());
    let mut paused = before.pause()?;
    paused.capture(&mut state)?;
    copy_ram(&old, ram);
    drop(paused);
    state.devices[0] = driven(features);
    for (n, (header, frame)) in (0..).zip(frames) {
        let at = FRAME + u64::from(n) * 0x2_0000;
        put(ram, at, header);
        put(ram, at + header.len() as u64, frame);
        offer(ram, TRANSMIT, n, at, u32::try_from(header.len() + frame.len())?, 0);
    }
    for n in 0..ENTRIES {
        offer(ram, RECEIVE, n, buffer(n), BUFFER, WRITE);
    }
    machine.restore(&state)?;
    Ok((machine.start()?, File::from(outside.fd)))
}

/// Makes descriptor `n` a chain, and the `n`th entry of the available ring.
fn offer(ram: &Memory, queue: u16, n: u16, address: u64, len: u32, flags: u16) {
    let mut descriptor = address.to_le_bytes().to_vec();
    descriptor.extend(len.to_le_bytes());
    descriptor.extend(flags.to_le_bytes());
    descriptor.extend([0; 2]);
    put(ram, ring(queue, 0) + u64::from(n) * 16, &descriptor);
    put(ram, ring(queue, 1) + 4 + u64::from(n) * 2, &n.to_le_bytes());
    put(ram, ring(queue, 1) + 2, &(n + 1).to_le_bytes());
}

fn buffer(n: u16) -> u64 {
    BUFFERS + u64::from(n) * 0x1000
}

fn put(memory: &Memory, at: u64, bytes: &[u8]) {
    let mut at = usize::try_from(at).unwrap();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(4096 - at % 4096));
        memory.write_in_page(Page(u32::try_from(at / 4096).unwrap()), at % 4096, now).unwrap();
        at += now.len();
        rest = later;
    }
}

fn get(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut page = [0; 4096];
    let mut at = usize::try_from(at).unwrap();
    while bytes.len() < len {
        memory.read_page(Page(u32::try_from(at / 4096).unwrap()), &mut page).unwrap();
        let now = (len - bytes.len()).min(4096 - at % 4096);
        bytes.extend_from_slice(&page[at % 4096..][..now]);
        at += now;
    }
    bytes
}

/// What a guest with these features sends, as it leaves outside, without headers of the tap.
fn leaves(shape: &Shape, features: u64, frames: &[(&[u8], &[u8])]) -> Vec<Vec<u8>> {
    let (mut machine, mut outside) = takes_over(shape, features, frames).unwrap();
    assert_eq!(serve(&mut machine, Duration::from_millis(50)), None);
    let mut left = Vec::new();
    let mut buffer = vec![0; 70_000];
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(30) {
        match outside.read(&mut buffer) {
            Ok(n) => {
                let (header, frame) = buffer[..n].split_at(VNET_HEADER_BYTES);
                assert_eq!(header[..2], [0, 0], "the kernel has finished it");
                if frame[6..12] == GUEST {
                    left.push(frame.to_vec());
                }
                last = Instant::now();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(e) => panic!("read outside: {e}"),
        }
    }
    left
}

/// What the guest finds in its receive ring from outside, frame by frame: header and bytes, and in how many buffers.
/// (The host's bridge has things of its own to say.)
fn received(ram: &Memory) -> Vec<(Vec<u8>, usize)> {
    let used = ring(RECEIVE, 2);
    let count = u16::from_le_bytes(get(ram, used + 2, 2).try_into().unwrap());
    let mut entries = (0..count).map(|n| {
        let entry = get(ram, used + 4 + u64::from(n) * 8, 8);
        let head = u16::from_le_bytes(entry[..2].try_into().unwrap());
        let len = u32::from_le_bytes(entry[4..].try_into().unwrap());
        get(ram, buffer(head), len as usize)
    });
    let mut frames = Vec::new();
    while let Some(mut bytes) = entries.next() {
        let buffers = usize::from(u16::from_le_bytes(bytes[10..12].try_into().unwrap()));
        bytes.extend(entries.by_ref().take(buffers - 1).flatten());
        if bytes[VNET_HEADER_BYTES + 6..][..6] == OUTSIDE {
            frames.push((bytes, buffers));
        }
    }
    frames
}

/// An Ethernet frame of TCP with `payload` bytes, as a Linux guest leaves it: the sum of the pseudo header in
/// the checksum's place.
fn tcp(ipv6: bool, tag: &[u8], from: [u8; 6], to: [u8; 6], payload: usize) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(tag);
    let length = 32 + payload;
    let network = frame.len() + 2;
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        frame.extend([6, 64]);
        for last in [1, 2] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(20 + length).unwrap().to_be_bytes());
        // Identification and, in its segments, sequence numbers that wrap.
        frame.extend([0xff, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = !sum(&frame[network..]);
        frame[network + 10..network + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    let addresses = if ipv6 { network + 8 } else { network + 12 };
    let pseudo = [&frame[addresses..], &[0, 6], &u16::try_from(length).unwrap().to_be_bytes()];
    let pseudo = sum(&pseudo.concat());
    frame.extend([0x1f, 0x90, 0xc0, 0, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4, 0x80, 0x99, 1, 0]);
    frame.extend(pseudo.to_be_bytes());
    frame.extend([0, 0, 1, 1, 8, 10, 9, 9, 9, 9, 8, 8, 8, 8]);
    frame.extend((0..payload).map(|n| (n % 251).to_le_bytes()[0]));
    frame
}

/// The sum of 16-bit words in ones' complement.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]));
    words.fold(0, |sum: u16, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// A header that leaves the checksum of TCP at `start` to the host, and the cutting if there is a `gso` type.
fn header(gso: u8, size: u16, start: u8, headers: u8) -> Vec<u8> {
    let [low, high] = size.to_le_bytes();
    vec![1, gso, headers, 0, low, high, start, 0, 16, 0, 0, 0]
}

#[test]
fn tagged_tcp_is_cut_by_the_device_as_untagged_tcp_is_by_the_kernel() {
    let _alone = alone();
    let shape = shape(1500, Offloads::Segmentation);
    for (ipv6, gso, start) in [(false, 1, 34), (true, 4, 54)] {
        for payload in [60_001, 1428, 100, 0] {
            let untagged = tcp(ipv6, &[], GUEST, OUTSIDE, payload);
            let kernels =
                leaves(&shape, ALL, &[(&header(gso, 1428, start, start + 32), &untagged)]);
            assert_eq!(kernels.len(), payload.div_ceil(1428).max(1), "{ipv6} {payload}");
            for tag in [&[0x81, 0, 0, 5][..], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]] {
                let start = start + u8::try_from(tag.len()).unwrap();
                let tagged = tcp(ipv6, tag, GUEST, OUTSIDE, payload);
                let mut ours =
                    leaves(&shape, ALL, &[(&header(gso, 1428, start, start + 32), &tagged)]);
                for segment in &mut ours {
                    assert_eq!(segment[12..12 + tag.len()], *tag);
                    segment.drain(12..12 + tag.len());
                }
                assert!(ours == kernels, "{ipv6} {payload} {tag:?}");
            }
        }
    }
}

#[test]
fn a_checksum_left_to_the_device_is_the_kernels() {
    let _alone = alone();
    let shape = shape(1500, Offloads::Segmentation);
    let untagged = tcp(false, &[], GUEST, OUTSIDE, 777);
    let tagged = tcp(false, &[0x81, 0, 0, 5], GUEST, OUTSIDE, 777);
    let mut left =
        leaves(&shape, ALL, &[(&header(0, 0, 34, 0), &untagged), (&header(0, 0, 38, 0), &tagged)]);
    assert_eq!(left.len(), 2);
    left[1].drain(12..16);
    assert_eq!(left[0], left[1]);
    assert_ne!(left[0], untagged, "it was not filled in by the guest");
}

#[test]
fn what_comes_in_stays_whole_for_a_driver_that_takes_it_whole_and_only_for_that() {
    let _alone = alone();
    let frame = tcp(false, &[], OUTSIDE, GUEST, 60_000);
    for (offloads, features) in [
        (Offloads::Segmentation, ALL),
        (Offloads::Segmentation, GUEST_CSUM | MRG_RXBUF),
        (Offloads::None, MRG_RXBUF),
    ] {
        let (mut machine, mut outside) = takes_over(&shape(1500, offloads), features, &[]).unwrap();
        assert_eq!(serve(&mut machine, Duration::from_millis(10)), None);
        outside.write_all(&[header(1, 1448, 34, 66), frame.clone()].concat()).unwrap();
        assert_eq!(serve(&mut machine, Duration::from_millis(50)), None);
        let frames = received(machine.memory());
        if features == ALL {
            let (bytes, buffers) = &frames[0];
            assert_eq!((frames.len(), *buffers), (1, bytes.len().div_ceil(BUFFER as usize)));
            assert_eq!(bytes[..2], [1, 1], "neither summed nor cut");
            assert!(bytes[VNET_HEADER_BYTES..] == frame);
        } else {
            assert_eq!(frames.len(), 60_000_usize.div_ceil(1448));
            for (bytes, buffers) in &frames {
                let summed = features & GUEST_CSUM == 0;
                assert_eq!((bytes[0] & 1 == 0, bytes[1], *buffers), (summed, 0, 1));
            }
        }
    }
}

#[test]
fn packets_of_9000_bytes_pass_both_ways() {
    let _alone = alone();
    for offloads in [Offloads::None, Offloads::Segmentation] {
        let shape = shape(9000, offloads);
        for tag in [&[][..], &[0x81, 0, 0, 5]] {
            // Addresses and type, and the packet behind them.
            let out = tcp(false, tag, GUEST, OUTSIDE, 9000 - 52);
            assert_eq!(out.len(), 9014 + tag.len());
            assert_eq!(leaves(&shape, MRG_RXBUF, &[(&[0; 12], &out)]), [out]);

            let inward = tcp(false, tag, OUTSIDE, GUEST, 9000 - 52);
            let (mut machine, mut outside) = takes_over(&shape, MRG_RXBUF, &[]).unwrap();
            assert_eq!(serve(&mut machine, Duration::from_millis(10)), None);
            outside.write_all(&[&[0; VNET_HEADER_BYTES][..], &inward].concat()).unwrap();
            assert_eq!(serve(&mut machine, Duration::from_millis(30)), None);
            let frames = received(machine.memory());
            assert_eq!((frames.len(), frames[0].1), (1, 6));
            assert!(frames[0].0[VNET_HEADER_BYTES..] == inward);
        }
    }
}

#[test]
fn a_backup_without_the_offloads_that_a_guest_has_taken_refuses_it() {
    let _alone = alone();
    let refused = takes_over(&shape(1500, Offloads::None), CSUM | HOST_TSO6, &[]);
    let refused = format!("{:#}", refused.err().unwrap());
    assert!(refused.contains("CSUM, HOST_TSO6"), "{refused}");
}
