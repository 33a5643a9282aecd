//! Frames for the guest that reach a host on which it does not run.
//!
//! When a host dies, the switch's port to it goes down, the switch forgets who was behind it, and what is for the guest
//! goes out of all its ports: to the backup's host too, which has not taken over yet. There nobody would take them, and
//! their senders would wait: TCP 200 ms and more for an answer, a second for a new connection. So a backup overhears the
//! ports of the bridge that the guest is to be behind, and a promoted one gives the guest what came after the last sign
//! of life of the primary.
//!
//! By packet sockets, one a port, which see a frame before the bridge does: to the bridge the guest is still behind the
//! port from which such a frame comes, and it would drop it. A filter in the kernel passes what is for the guest's own
//! address, and who asks for it (ARP, neighbour solicitation); nothing else wakes anybody or is copied, nothing is taken
//! from its way, and what leaves by the port is not looked at.
//!
//! Deliberately absent: frames with a VLAN tag, which a packet socket tells apart from the frame; and any trust: what
//! comes out of here is judged as what comes out of a tap.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use libc::{c_int, sock_filter};

use super::{IfIndex, Mac, VNET_HEADER_BYTES};

/// Bytes of frames, with what the kernel adds to each, that may wait on one port: some thousand small frames.
const BUFFER_BYTES: c_int = 1 << 20;
/// Frames that are taken, of all ports: more than fit into the buffer of one.
const FRAMES_MAX: usize = 4096;
/// The longest frame that a socket may have for us: one that the kernel has put together for TCP.
const FRAME_BYTES_MAX: usize = 65_536 + 64;
/// What stands before each frame here: `struct virtio_net_hdr`, without the number of buffers.
const HEADER_BYTES: usize = 10;

/// The sockets, and what has come since they were last emptied.
#[derive(Debug)]
pub struct Overheard {
    ports: Vec<IfIndex>,
    /// One for each port.
    sockets: Vec<OwnedFd>,
    /// What the kernel is asked about each, made once.
    polls: Vec<libc::pollfd>,
}

impl Overheard {
    /// Listens at these links, in the calling thread's network namespace, for frames to `guest`.
    ///
    /// # Errors
    /// When the kernel gives no such socket: it takes CAP_NET_RAW, and links that are there.
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

    /// Drops what has come so far: whoever it was for has it.
    pub fn forget(&mut self) {
        for port in self.ready() {
            // Not without end: somebody may send as fast as this reads.
            let mut left = FRAMES_MAX;
            while left > 0 && receive(port, &mut [0; HEADER_BYTES]).is_some() {
                left -= 1;
            }
        }
    }

    /// Takes what has come, port by port, each behind a virtio-net header as a tap puts one before it.
    pub fn take(&mut self) -> Vec<Box<[u8]>> {
        let mut buffer = vec![0; HEADER_BYTES + FRAME_BYTES_MAX];
        let mut frames = Vec::new();
        for port in self.ready() {
            while let Some(length) = receive(port, &mut buffer)
                && frames.len() < FRAMES_MAX
            {
                // One that is longer is not whole.
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
    // Errors are of one frame (a kind that has no header: EINVAL) or of the link (gone or down), and are told once.
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

/// Passes, of frames without a VLAN tag that are not the guest's own: what is for its address, ARP for everybody, and
/// what is for a solicited-node multicast address (RFC 4291, 2.7.1).
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
    // `n`: where this instruction stands, since jumps count from the next.
    let equal = |n: u8, k: u32, yes: u8, no: u8| {
        let jump = op(EQUAL, k);
        sock_filter { jt: yes - n - 1, jf: no - n - 1, ..jump }
    };
    [
        word(TAG_PRESENT),
        equal(1, 0, 2, DROP),
        // Its own, by way of everybody: who sends so is not who is to hear it.
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
