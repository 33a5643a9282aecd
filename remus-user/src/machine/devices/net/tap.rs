//! The tap that carries the guest's frames.
//!
//! Frames pass it behind a virtio-net header. What the kernel may put off on the way to the guest is what the
//! guest's driver has taken; towards the kernel the header alone says what is put off.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};
use vmm_sys_util::ioctl::{
    _IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};

use super::header::HEADER;
use super::offloads::Negotiated;

#[expect(clippy::cast_possible_truncation, reason = "the flags of an ifreq are a short")]
const FLAGS: libc::c_short =
    (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;

/// TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 of linux/if_tun.h: what the kernel may leave undone.
const LEAVE_CHECKSUM: libc::c_ulong = 1;
const LEAVE_TCP4: libc::c_ulong = 2;
const LEAVE_TCP6: libc::c_ulong = 4;

/// Returns the number of a request that carries an int.
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
pub(super) struct Tap {
    file: File,
    /// As TUNSETOFFLOAD was last told.
    offloads: libc::c_ulong,
    /// A socket, which has no offloads, in a tap's place.
    #[cfg(test)]
    is_socket: bool,
}

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
        set_non_blocking(&fd)?;
        let mut tap = Self {
            file: File::from(fd),
            // None is possible: whatever it was set to before, it is set now.
            offloads: libc::c_ulong::MAX,
            #[cfg(test)]
            is_socket: false,
        };
        tap.set_offloads(Negotiated::default()).context("TUNSETOFFLOAD")?;
        Ok(tap)
    }

    /// Makes a socket that keeps frames apart, in a tap's place.
    #[cfg(test)]
    pub(super) fn of_socket(fd: OwnedFd) -> Result<Self> {
        set_non_blocking(&fd)?;
        Ok(Self { file: File::from(fd), offloads: 0, is_socket: true })
    }

    #[cfg(test)]
    pub(super) fn offloads(&self) -> libc::c_ulong {
        self.offloads
    }

    /// Lets the kernel leave undone, towards the guest, what its driver has taken.
    ///
    /// # Errors
    /// When there is no tap any more.
    pub(super) fn set_offloads(&mut self, negotiated: Negotiated) -> io::Result<()> {
        let mut offloads = 0;
        for (wanted, bit) in [
            (negotiated.guest_checksum(), LEAVE_CHECKSUM),
            (negotiated.guest_tcp4(), LEAVE_TCP4),
            (negotiated.guest_tcp6(), LEAVE_TCP6),
        ] {
            offloads |= if wanted { bit } else { 0 };
        }
        if offloads == self.offloads {
            return Ok(());
        }
        self.offloads = offloads;
        #[cfg(test)]
        if self.is_socket {
            return Ok(());
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        done(unsafe { ioctl_with_val(&self.file, TUNSETOFFLOAD, offloads) })
    }

    /// Sends a header and frame; `false` when it was dropped.
    ///
    /// # Errors
    /// When there is no tap any more.
    pub(super) fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        match self.file.write(frame) {
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
        match self.file.read(buffer) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn set_non_blocking(fd: &OwnedFd) -> Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: F_SETFL takes an int.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if flags < 0 || set < 0 {
        return Err(io::Error::last_os_error()).context("make the tap non-blocking");
    }
    Ok(())
}

fn blank_request() -> libc::ifreq {
    // SAFETY: an ifreq is plain integers and arrays of them, for which zeros are values.
    unsafe { std::mem::zeroed() }
}

fn done(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
