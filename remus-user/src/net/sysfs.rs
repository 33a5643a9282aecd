//! Two properties of a link that rtnetlink does not have: receive packet steering (sysfs) and GRO (ethtool).
//!
//! A mounted sysfs shows the network namespace of whoever mounted it, which need not be ours. So a sysfs of
//! our own is opened, for the calling thread's namespace and attached nowhere, and gone with its descriptor.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result};
use libc::c_int;

/// The link's `rps_cpus` where any CPU is set in it.
///
/// # Errors
/// When sysfs cannot be asked: then nobody knows, which is not the same as off.
pub(super) fn receive_packet_steering(name: &str) -> Result<Option<String>> {
    let sysfs = open_sysfs().context("open a sysfs of this network namespace")?;
    let path = format!("class/net/{name}/queues/rx-0/rps_cpus");
    let text = match open_at(&sysfs, &path).and_then(std::io::read_to_string) {
        Ok(text) => text,
        // A kernel without CONFIG_RPS.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("read /sys/{path}")),
    };
    let mask = text.trim();
    Ok(mask.chars().any(|c| !matches!(c, '0' | ',')).then(|| mask.to_owned()))
}

/// Switches generic receive offload off: it merges frames, and the gate's slots take single ones.
pub(super) fn gro_off(name: &str) -> io::Result<()> {
    const ETHTOOL_SGRO: u32 = 0x2c;
    #[repr(C)]
    struct EthtoolValue {
        cmd: u32,
        data: u32,
    }
    let mut value = EthtoolValue { cmd: ETHTOOL_SGRO, data: 0 };
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: plain socket(2); the result is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(socket)?;
    // SAFETY: `request` is a whole ifreq whose data points to an ethtool_value; both live across the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An ifreq that names a link.
pub(super) fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain old data; all zeros is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a link's name has 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn open_sysfs() -> io::Result<OwnedFd> {
    // SAFETY: fsopen(2) with a static name; the result is checked.
    let context =
        unsafe { libc::syscall(libc::SYS_fsopen, c"sysfs".as_ptr(), libc::FSOPEN_CLOEXEC) };
    let context = owned_long(context)?;
    // SAFETY: fsconfig(2) on the context just made; FSCONFIG_CMD_CREATE takes no key and no value.
    let made = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_CMD_CREATE,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        )
    };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fsmount(2) on the configured context; the result is checked.
    let mount =
        unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) };
    owned_long(mount)
}

fn open_at(directory: &OwnedFd, path: &str) -> io::Result<File> {
    let path = CString::new(path)?;
    // SAFETY: openat(2) with a live directory and a terminated path; the result is checked.
    let fd = unsafe {
        libc::openat(directory.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC)
    };
    owned(fd).map(File::from)
}

fn owned_long(fd: libc::c_long) -> io::Result<OwnedFd> {
    owned(c_int::try_from(fd).map_err(io::Error::other)?)
}

/// The descriptor that a call just returned, or the error that it left.
fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller passes what the kernel just returned; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
