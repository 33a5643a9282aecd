//! What rtnetlink does not tell of a link: receive packet steering and how a tap was opened (sysfs), GRO (ethtool).
//!
//! Both are asked in the calling thread's network namespace, whatever is mounted at /sys.

use std::{ffi::c_int, io, os::fd::AsRawFd};

use anyhow::{Context, Result};

use crate::os::{Sysfs, owned};

/// Returns the link's `rps_cpus` where any CPU is set in it.
///
/// # Errors
/// When sysfs cannot be asked: unknown is not the same as off.
pub(super) fn receive_packet_steering(name: &str) -> Result<Option<String>> {
    let sysfs = Sysfs::open().context("open a sysfs of this network namespace")?;
    let path = format!("class/net/{name}/queues/rx-0/rps_cpus");
    let text = match sysfs.file(&path).and_then(std::io::read_to_string) {
        Ok(text) => text,
        // A kernel without CONFIG_RPS.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("read /sys/{path}")),
    };
    let mask = text.trim();
    Ok(mask.chars().any(|c| !matches!(c, '0' | ',')).then(|| mask.to_owned()))
}

/// Switches receive packet steering off by clearing `rps_cpus`.
///
/// # Errors
/// When sysfs refuses.
pub(super) fn steer_nothing(name: &str) -> io::Result<()> {
    match Sysfs::open()?.write(&format!("class/net/{name}/queues/rx-0/rps_cpus"), "0") {
        // A kernel without CONFIG_RPS.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Returns the tap's IFF_* flags, as whoever opened it last set them. `None` when `name` is no tun or tap device.
///
/// # Errors
/// When sysfs cannot be asked.
pub(super) fn tun_flags(name: &str) -> Result<Option<c_int>> {
    let sysfs = Sysfs::open().context("open a sysfs of this network namespace")?;
    let path = format!("class/net/{name}/tun_flags");
    let text = match sysfs.file(&path).and_then(std::io::read_to_string) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("read /sys/{path}")),
    };
    let hex = text.trim().trim_start_matches("0x");
    let flags = c_int::from_str_radix(hex, 16).with_context(|| format!("/sys/{path}: {text:?}"))?;
    Ok(Some(flags))
}

/// Switches generic receive offload off, which merges frames, while the gate's slots take single ones.
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

/// Makes an ifreq that names a link.
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
