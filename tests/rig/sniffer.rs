//! The sniffer: what leaves the two hosts, seen on the switch's ports, and the judgement of it.
//!
//! The demo guest's beacon is a counter that grows by one a frame. The guest's state holds the counter, so a
//! guest that goes on from a checkpoint repeats exactly the beacons that it sent after that checkpoint.
//! Output commit says that none of those was ever outside. Hence every counter seen from the primary's port
//! is smaller than the smallest that the promoted guest sends: the first beacon from the backup's port (or
//! an even smaller one, should that one have been lost, in which case this check is only the milder). And
//! once the backup has spoken, the primary's port is silent for good.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use remus_abi::beacon;

use crate::{netns::NetNs, sys::boottime_ns};

/// Enough of a frame to hold any beacon.
const SNAP: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    Primary,
    Backup,
}

/// The kinds of frame in which beacons come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Arp,
    Ipv4,
    Ipv6,
    Unknown,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Arp, Self::Ipv4, Self::Ipv6, Self::Unknown];

    fn of(frame: &[u8]) -> Self {
        match frame.get(12..14) {
            Some([0x08, 0x06]) => Self::Arp,
            Some([0x08, 0x00]) => Self::Ipv4,
            Some([0x86, 0xdd]) => Self::Ipv6,
            Some(_) | None => Self::Unknown,
        }
    }
}

/// A frame that left a host.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    pub port: Port,
    pub at_ns: u64,
    pub beacon: Option<(Kind, u64)>,
}

/// What was seen, boiled down as it comes: a run has far more frames than need to be kept.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub beacons: Vec<Sighting>,
    pub frames_from_primary: u64,
    pub frames_from_backup: u64,
    pub first_from_backup_ns: Option<u64>,
    /// Frames from the primary's port after the first from the backup's.
    pub frames_of_the_dead: u64,
    /// Frames that the kernel could not hand over: what was not seen was not checked.
    pub missed: u64,
}

/// The judgement of one death.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BeaconVerdict {
    pub seen_from_primary: u64,
    pub seen_from_backup: u64,
    /// The newest beacon from the primary's port.
    pub newest_from_primary: Option<u64>,
    /// The oldest from the backup's port: one more than the counter with which the promoted guest began.
    pub oldest_from_backup: Option<u64>,
    /// Beacons from the primary's port that the promoted guest has yet to send: output that was never
    /// committed. By kind, in the order of [`Kind::ALL`].
    pub ahead: [u64; 4],
    /// Kinds that were not seen from both ports, so that nothing is proved about them.
    pub kinds_missing: Vec<&'static str>,
    /// Beacons seen more than once from one port. Not a fault: the gate repeats what it cannot account for.
    pub repeated: u64,
}

impl BeaconVerdict {
    pub fn ahead_total(&self) -> u64 {
        self.ahead.iter().sum()
    }
}

impl Seen {
    fn note(&mut self, sighting: Sighting) {
        match sighting.port {
            Port::Primary => {
                self.frames_from_primary += 1;
                self.frames_of_the_dead += u64::from(self.first_from_backup_ns.is_some());
            }
            Port::Backup => {
                self.frames_from_backup += 1;
                self.first_from_backup_ns.get_or_insert(sighting.at_ns);
            }
        }
        if sighting.beacon.is_some() {
            self.beacons.push(sighting);
        }
    }

    pub fn judge(&self) -> BeaconVerdict {
        let of = |port: Port| {
            let beacons = self.beacons.iter().filter(move |sighting| sighting.port == port);
            beacons.filter_map(|sighting| sighting.beacon)
        };
        let mut verdict = BeaconVerdict {
            newest_from_primary: of(Port::Primary).map(|(_, counter)| counter).max(),
            oldest_from_backup: of(Port::Backup).map(|(_, counter)| counter).min(),
            ..BeaconVerdict::default()
        };
        for (port, seen) in [
            (Port::Primary, &mut verdict.seen_from_primary),
            (Port::Backup, &mut verdict.seen_from_backup),
        ] {
            let mut counters: Vec<u64> = of(port).map(|(_, counter)| counter).collect();
            *seen = counters.len() as u64;
            counters.sort_unstable();
            counters.dedup();
            verdict.repeated += *seen - counters.len() as u64;
        }
        for (n, kind) in Kind::ALL.into_iter().enumerate() {
            let is = |&(found, _): &(Kind, u64)| found == kind;
            if let Some(promoted) = verdict.oldest_from_backup {
                let ahead =
                    of(Port::Primary).filter(is).filter(|&(_, counter)| counter >= promoted);
                verdict.ahead[n] = ahead.count() as u64;
            }
            if !of(Port::Primary).any(|beacon| is(&beacon)) || !of(Port::Backup).any(|b| is(&b)) {
                let names = ["ARP", "IPv4", "IPv6", "unknown ethertype"];
                verdict.kinds_missing.push(names[n]);
            }
        }
        verdict
    }
}

/// A thread that watches. Ends when dropped.
#[derive(Debug)]
pub struct Sniffer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    socket: Arc<OwnedFd>,
}

impl Sniffer {
    /// Watches the ports with these interface indices in `switch`.
    pub fn start(switch: &NetNs, primary: u32, backup: u32) -> Result<Self> {
        let socket = {
            let _entered = switch.enter()?;
            Arc::new(open(primary, backup).context("open a packet socket on the switch")?)
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (socket, seen, stop) = (socket.clone(), seen.clone(), stop.clone());
            thread::Builder::new().name("sniffer".into()).spawn(move || {
                let mut buffer = [0; SNAP];
                while !stop.load(Ordering::Relaxed) {
                    let Some((index, length)) = receive(&socket, &mut buffer) else { continue };
                    let port = if index == primary { Port::Primary } else { Port::Backup };
                    let frame = &buffer[..length];
                    let beacon = beacon::find(frame).map(|counter| (Kind::of(frame), counter));
                    let sighting = Sighting { port, at_ns: boottime_ns(), beacon };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).note(sighting);
                }
            })
        };
        Ok(Self { seen, stop, thread: Some(thread.context("start the sniffer")?), socket })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Result<Seen> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.missed += missed(&self.socket).context("ask how many frames were missed")?;
        Ok(seen.clone())
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the sniffer does not panic");
        }
    }
}

/// A packet socket that hears what comes in by one of two ports.
fn open(primary: u32, backup: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers. Protocol 0: nothing is received before the filter is in place.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64i32 << 20))?;
    // So that the thread looks up now and then.
    let wait = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;

    let mut program = only_from(primary, backup);
    let length = u16::try_from(program.len()).expect("a few instructions");
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;

    let family = u16::try_from(libc::AF_PACKET).expect("a small number");
    let every_protocol = u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be();
    // SAFETY: a sockaddr_ll is plain numbers; all zeroes is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (address.sll_family, address.sll_protocol) = (family, every_protocol);
    let size = libc::socklen_t::try_from(size_of_val(&address)).expect("a small number");
    // SAFETY: the address is as long as the size says, and outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A classic BPF program: the first [`SNAP`] bytes of what came in by one of the ports, nothing of the rest.
fn only_from(primary: u32, backup: u32) -> [libc::sock_filter; 5] {
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let interface = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        step(LOAD_WORD, 0, 0, interface),
        step(JUMP_EQUAL, 2, 0, primary),
        step(JUMP_EQUAL, 1, 0, backup),
        step(RETURN, 0, 0, 0),
        step(RETURN, 0, 0, u32::try_from(SNAP).expect("a small number")),
    ]
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let value: *const T = value;
    // SAFETY: the value is as long as the size says, and outlives the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next frame's port and length, `None` when none came for a while.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(u32, usize)> {
    // SAFETY: a sockaddr_ll is plain numbers; all zeroes is a valid one.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&from)).expect("a small number");
    // SAFETY: buffer and address are as long as the lengths say, and may be written.
    let length = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut size,
        )
    };
    let length = usize::try_from(length).ok()?;
    Some((u32::try_from(from.sll_ifindex).ok()?, length.min(buffer.len())))
}

/// Frames dropped for want of room since it was last asked.
fn missed(socket: &OwnedFd) -> io::Result<u64> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut size = libc::socklen_t::try_from(size_of_val(&statistics)).expect("a small number");
    // SAFETY: the structure is as long as the size says, and may be written.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut size,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(statistics.tp_drops)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(frames: &[(Port, u64)]) -> Seen {
        let mut seen = Seen::default();
        for (n, &(port, counter)) in frames.iter().enumerate() {
            let kind = Kind::ALL[usize::try_from(counter).unwrap() % Kind::ALL.len()];
            seen.note(Sighting { port, at_ns: n as u64, beacon: Some((kind, counter)) });
        }
        seen
    }

    fn run(port: Port, counters: std::ops::Range<u64>) -> Vec<(Port, u64)> {
        counters.map(|counter| (port, counter)).collect()
    }

    #[test]
    fn output_that_the_promoted_guest_remembers_is_committed() {
        let seen = seen(&[run(Port::Primary, 0..40), run(Port::Backup, 40..60)].concat());
        let verdict = seen.judge();
        assert_eq!(verdict.ahead_total(), 0);
        assert_eq!(verdict.kinds_missing, [""; 0]);
        assert_eq!((verdict.newest_from_primary, verdict.oldest_from_backup), (Some(39), Some(40)));
        assert_eq!(seen.frames_of_the_dead, 0);
    }

    #[test]
    fn output_that_the_promoted_guest_sends_again_was_never_committed() {
        let verdict =
            seen(&[run(Port::Primary, 0..44), run(Port::Backup, 40..60)].concat()).judge();
        assert_eq!(verdict.ahead, [1, 1, 1, 1]);
    }

    #[test]
    fn output_that_was_held_and_never_released_leaves_a_hole_and_no_fault() {
        let verdict =
            seen(&[run(Port::Primary, 0..40), run(Port::Backup, 48..60)].concat()).judge();
        assert_eq!(verdict.ahead_total(), 0);
    }

    #[test]
    fn a_dead_primary_that_speaks_after_the_backup_is_noticed() {
        let frames = [(Port::Primary, 1), (Port::Backup, 2), (Port::Primary, 1)];
        let seen = seen(&frames);
        assert_eq!(seen.frames_of_the_dead, 1);
        assert_eq!(seen.judge().repeated, 1);
    }

    #[test]
    fn a_kind_that_one_port_never_showed_proves_nothing() {
        let verdict = seen(&[run(Port::Primary, 0..3), run(Port::Backup, 3..9)].concat()).judge();
        assert_eq!(verdict.kinds_missing, ["unknown ethertype"]);
    }
}
