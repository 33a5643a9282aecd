//! The tap that carries the guest's frames.
//!
//! Frames pass it behind a virtio-net header, which is always blank: no offload is negotiated on either
//! side, so the kernel hands over and accepts finished frames only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};
use vmm_sys_util::ioctl::{
    _IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};

/// Bytes of the header before each frame: virtio 1.0's, in both directions.
pub(super) const HEADER: usize = 12;
/// Bytes of an Ethernet frame: 1500 of payload, addresses and type, and two VLAN tags.
pub(super) const FRAME_MAX: usize = 1500 + 14 + 8;
/// Bytes of the shortest frame that the tap takes.
pub(super) const FRAME_MIN: usize = 14;

#[expect(clippy::cast_possible_truncation, reason = "the flags of an ifreq are a short")]
const FLAGS: libc::c_short =
    (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;

/// The number of a request that carries an int.
const fn tun(direction: u32, number: u32) -> libc::c_ulong {
    ioctl_expr(direction, b'T' as u32, number, libc::c_int::BITS / 8)
}

const TUNSETIFF: libc::c_ulong = tun(_IOC_WRITE, 202);
const TUNSETOFFLOAD: libc::c_ulong = tun(_IOC_WRITE, 208);
const TUNGETIFF: libc::c_ulong = tun(_IOC_READ, 210);
const TUNSETVNETHDRSZ: libc::c_ulong = tun(_IOC_WRITE, 216);

/// Opens the tap `name` of the caller's network namespace, or makes one that lasts as long as the
/// descriptor.
///
/// # Errors
/// When the name is no interface name, the caller lacks CAP_NET_ADMIN, or the interface is something else
/// or in use.
pub fn open_tap(name: &str) -> Result<OwnedFd> {
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ && !name.contains('\0');
    ensure!(fits, "{name:?} is no interface name");
    let path = c"/dev/net/tun";
    // SAFETY: opens a path that ends in a zero; the flags ask for no further argument.
    let fd =
        unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("open /dev/net/tun");
    }
    // SAFETY: the descriptor is new and nobody else's.
    let tap = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = blank_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = FLAGS;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives across the call.
    done(unsafe { ioctl_with_mut_ref(&tap, TUNSETIFF, &mut request) })
        .with_context(|| format!("attach to tap {name}"))?;
    Ok(tap)
}

/// A tap made ready for the device.
pub(super) struct Tap(File);

impl Tap {
    /// # Errors
    /// When `fd` is not a tap with a virtio-net header and without packet information.
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        let mut request = blank_request();
        // SAFETY: TUNGETIFF writes an ifreq, which lives across the call.
        done(unsafe { ioctl_with_mut_ref(&fd, TUNGETIFF, &mut request) })
            .context("the network device needs a tap (TUNGETIFF)")?;
        // SAFETY: TUNGETIFF has filled in this member of the union, and any bytes are flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        ensure!(flags & FLAGS == FLAGS, "the tap must be IFF_TAP | IFF_NO_PI | IFF_VNET_HDR");
        let header = libc::c_int::try_from(HEADER)?;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        done(unsafe { ioctl_with_ref(&fd, TUNSETVNETHDRSZ, &header) })
            .context("TUNSETVNETHDRSZ")?;
        // SAFETY: TUNSETOFFLOAD takes its argument by value: no offload at all.
        done(unsafe { ioctl_with_val(&fd, TUNSETOFFLOAD, 0) }).context("TUNSETOFFLOAD")?;
        Self::non_blocking(fd)
    }

    /// Any descriptor that keeps frames apart: what [`new`](Self::new) accepts, and sockets in tests.
    pub(super) fn non_blocking(fd: OwnedFd) -> Result<Self> {
        // SAFETY: F_GETFL takes no argument.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: F_SETFL takes an int.
        let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
        if flags < 0 || set < 0 {
            return Err(io::Error::last_os_error()).context("make the tap non-blocking");
        }
        Ok(Self(File::from(fd)))
    }

    /// Sends a header and frame; `false` when it was dropped.
    ///
    /// # Errors
    /// When there is no tap any more.
    pub(super) fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        match self.0.write(frame) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBADFD | libc::ENODEV)) => Err(e),
            // Full, down, or a frame it does not like: lost on the wire.
            Err(_) => Ok(false),
        }
    }

    /// Receives a header and frame into `buffer`; `None` when there is none.
    ///
    /// # Errors
    /// When there is no tap any more.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.read(buffer) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn blank_request() -> libc::ifreq {
    // SAFETY: an ifreq is plain integers and arrays of them, for which zeros are values.
    unsafe { std::mem::zeroed() }
}

fn done(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
