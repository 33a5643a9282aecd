//! Frames for the guest that reach a host on which it does not run.
//!
//! When a host dies, the switch's port to that host goes down, the switch forgets which stations were behind the port, and
//! sends frames for the guest out of all its ports: also to the backup's host, which has not taken over yet. Nobody would
//! take them there, and their senders would wait: TCP 200 ms and more for an answer, a second for a new connection. So a
//! backup overhears the ports of the bridge that the guest will be behind, and a promoted backup gives the guest what came
//! after the last sign of life of the primary.
//!
//! It uses a packet socket for each port, which sees a frame before the bridge does. To the bridge the guest is still behind
//! the port from which such a frame comes, so the bridge would drop the frame. A filter in the kernel passes what is for the
//! guest's own address, and questions for that address (ARP, neighbour solicitation). Nothing else is copied or wakes
//! a thread, every frame goes on its way, and what leaves by the port is not looked at.
//!
//! Deliberately absent: frames with a VLAN tag, which a packet socket delivers apart from the frame; and any trust: what
//! comes from here is judged like what comes out of a tap.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use libc::{c_int, sock_filter};

use super::{IfIndex, Mac, VNET_HEADER_BYTES};

/// The bytes that may wait on one port, with what the kernel adds to each frame: some thousand small frames.
const BUFFER_BYTES: c_int = 1 << 20;
/// The number of frames that are taken from all ports: more than fit into the buffer of one.
const FRAMES_MAX: usize = 4096;
/// The longest frame that a socket may deliver: one that the kernel has put together for TCP.
const FRAME_BYTES_MAX: usize = 65_536 + 64;
/// The header before each frame here: `struct virtio_net_hdr`, without the number of buffers.
const HEADER_BYTES: usize = 10;

/// The sockets, and what has come since they were last emptied.
#[derive(Debug)]
pub struct Overheard {
    ports: Vec<IfIndex>,
    /// One for each port.
    sockets: Vec<OwnedFd>,
    /// The poll descriptors of the sockets, made once.
    polls: Vec<libc::pollfd>,
}

impl Overheard {
    /// Listens at these links, in the calling thread's network namespace, for frames to `guest`.
    ///
    /// # Errors
    /// When the kernel gives no such socket, which needs CAP_NET_RAW and links that exist.
    pub fn listen(ports: &[IfIndex], guest: Mac) -> io::Result<Self> {
        let filter = filter(guest);
        let sockets: Vec<_> =
            ports.iter().map(|port| socket(*port, &filter)).collect::<io::Result<_>>()?;
        let polls = sockets.iter().map(|socket| libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        Ok(Self { ports: ports.to_vec(), polls: polls.collect(), sockets })
    }

    /// Returns whether the sockets listen at just these links.
    pub fn is_at(&self, ports: &[IfIndex]) -> bool {
        self.ports == ports
    }

    /// Drops the frames that have come so far: the running guest has got them.
    pub fn forget(&mut self) {
        for port in self.ready() {
            // Bounded, since a sender may be as fast as this reads.
            let mut left = FRAMES_MAX;
            while left > 0 && receive(port, &mut [0; HEADER_BYTES]).is_some() {
                left -= 1;
            }
        }
    }

    /// Takes the frames that have come, port by port, each behind a virtio-net header as a tap would have it.
    pub fn take(&mut self) -> Vec<Box<[u8]>> {
        let mut buffer = vec![0; HEADER_BYTES + FRAME_BYTES_MAX];
        let mut frames = Vec::new();
        for port in self.ready() {
            while let Some(length) = receive(port, &mut buffer)
                && frames.len() < FRAMES_MAX
            {
                // A frame that is longer is not whole.
                if let Some((header, frame)) =
                    buffer.get(..length).and_then(|read| read.split_at_checked(HEADER_BYTES))
                {
                    let buffers = [0; VNET_HEADER_BYTES - HEADER_BYTES];
                    frames.push([header, &buffers, frame].concat().into_boxed_slice());
                }
            }
        }
        frames
    }

    /// Returns the sockets that have something.
    fn ready(&mut self) -> impl Iterator<Item = &OwnedFd> {
        let count = libc::nfds_t::try_from(self.polls.len()).expect("the ports of a bridge");
        // SAFETY: as many entries as are said, which the kernel reads and writes during the call; it does not wait.
        unsafe { libc::poll(self.polls.as_mut_ptr(), count, 0) };
        let all = self.sockets.iter().zip(&self.polls);
        all.filter_map(|(socket, poll)| (poll.revents != 0).then_some(socket))
    }
}

/// Reads the next header and frame, as far as `buffer` takes it, and returns its length; `None` when none is there.
fn receive(port: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // An error concerns one frame (of a kind without a header: EINVAL) or the link (gone or down), and comes once.
    for _ in 0..FRAMES_MAX {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let read = unsafe {
            libc::recv(port.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
        };
        match usize::try_from(read) {
            Ok(length) => return Some(length),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {}
        }
    }
    None
}

/// Makes a socket that hears what `filter` passes at `port`. Nothing reaches it before the filter is set.
fn socket(port: IfIndex, filter: &[sock_filter]) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers. Protocol 0: it hears nothing yet.
    let socket = done(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: a descriptor that was just made, and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let program = libc::sock_fprog {
        len: filter.len().try_into().expect("a short filter"),
        filter: filter.as_ptr().cast_mut(),
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_BYTES)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
    // SAFETY: a sockaddr_ll is plain integers and bytes, for which zeros are values.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be();
    address.sll_ifindex =
        c_int::try_from(port.0).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: a whole sockaddr_ll, which the kernel reads during the call.
    done(unsafe {
        libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length_of(&address))
    })?;
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let at = ptr::from_ref(value).cast();
    // SAFETY: the kernel reads as many bytes as `value` has, and what a filter points to, during the call.
    done(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, length_of(value)) })?;
    Ok(())
}

fn length_of<T>(_: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a small structure")
}

fn done(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Makes the filter. Of the frames without a VLAN tag that the guest has not sent itself it passes those for the guest's
/// address, ARP for everybody, and those for a solicited-node multicast address (RFC 4291, 2.7.1).
fn filter(guest: Mac) -> [sock_filter; 19] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const TAG_PRESENT: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG_PRESENT).cast_unsigned();
    const PASS: u8 = 17;
    const DROP: u8 = 18;
    let [a, b, c, d, e, f] = guest.0;
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]).into());
    let op = |code: u32, k: u32| sock_filter {
        code: code.try_into().expect("codes have 16 bits"),
        jt: 0,
        jf: 0,
        k,
    };
    let word = |at| op(LOAD | libc::BPF_W, at);
    let half = |at| op(LOAD | libc::BPF_H, at);
    // `n` is the position of this instruction, since jumps count from the next one.
    let equal = |n: u8, k: u32, yes: u8, no: u8| {
        let jump = op(EQUAL, k);
        sock_filter { jt: yes - n - 1, jf: no - n - 1, ..jump }
    };
    [
        word(TAG_PRESENT),
        equal(1, 0, 2, DROP),
        // A broadcast that the guest itself has sent.
        word(6),
        equal(3, high, 4, 6),
        half(10),
        equal(5, low, DROP, 6),
        word(0),
        equal(7, high, 8, 10),
        half(4),
        equal(9, low, PASS, DROP),
        equal(10, 0xffff_ffff, 11, 15),
        half(4),
        equal(12, 0xffff, 13, DROP),
        half(12),
        equal(14, 0x0806, PASS, DROP),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xffff_ff00),
        equal(16, 0x3333_ff00, PASS, DROP),
        op(libc::BPF_RET | libc::BPF_K, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0),
    ]
}
