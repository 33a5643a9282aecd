//! The IPv4 filter table of iptables-legacy, as far as its policy for what is forwarded. nf_tables does not list it.
//!
//! `getsockopt` IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES (include/uapi/linux/netfilter_ipv4/ip_tables.h, Linux 6.18): the
//! policy of a chain is the verdict of the entry that its hook's underflow points at.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// NF_INET_FORWARD.
const FORWARD: usize = 2;
const NAME: [u8; 6] = *b"filter";
const NAME_LEN: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, five entries, five underflows, number of entries, size of them.
const INFO_LEN: usize = NAME_LEN + 4 + 5 * 4 + 5 * 4 + 4 + 4;
const UNDERFLOWS: usize = NAME_LEN + 4 + 5 * 4;
const SIZE: usize = INFO_LEN - 4;
/// `struct ipt_get_entries`: name, size, entries aligned to 8.
const ENTRIES: usize = NAME_LEN + 8;
/// Within `struct ipt_entry`: where its target begins.
const TARGET_OFFSET: usize = 88;
/// Within the target: its verdict, behind `struct xt_entry_target`.
const VERDICT: usize = 32;
/// -NF_DROP - 1.
const DROP: i32 = -1;
/// A table of so many bytes is not asked for.
const BYTES_MAX: usize = 64 << 20;

/// Whether the table is there and drops by default what this host forwards. Asks for no table that nobody has made:
/// asking would make it.
pub(super) fn forward_policy_is_drop() -> bool {
    let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    names.lines().any(|name| name.as_bytes() == NAME) && read().is_ok_and(|drops| drops)
}

fn read() -> io::Result<bool> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned it; nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = vec![0; INFO_LEN];
    info[..NAME.len()].copy_from_slice(&NAME);
    ask(&socket, GET_INFO, &mut info)?;
    let size =
        word(&info, SIZE).filter(|size| *size <= BYTES_MAX).ok_or(io::ErrorKind::InvalidData)?;
    let mut table = vec![0; ENTRIES + size];
    table[..NAME.len()].copy_from_slice(&NAME);
    let length = u32::try_from(size).expect("a bounded size");
    table[NAME_LEN..NAME_LEN + 4].copy_from_slice(&length.to_ne_bytes());
    ask(&socket, GET_ENTRIES, &mut table)?;
    Ok(policy_is_drop(&info, table.get(ENTRIES..).unwrap_or_default()))
}

fn ask(socket: &OwnedFd, what: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads the name from the buffer and writes at most `length` bytes into it, during the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            what,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn policy_is_drop(info: &[u8], entries: &[u8]) -> bool {
    let verdict = || {
        let entry = entries.get(word(info, UNDERFLOWS + 4 * FORWARD)?..)?;
        let target = entry.get(TARGET_OFFSET..TARGET_OFFSET + 2)?;
        let target = usize::from(u16::from_ne_bytes(target.try_into().ok()?));
        let verdict = entry.get(target..)?.get(VERDICT..VERDICT + 4)?;
        Some(i32::from_ne_bytes(verdict.try_into().ok()?))
    };
    verdict() == Some(DROP)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at + 4)?;
    usize::try_from(u32::from_ne_bytes(word.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_policy_is_the_verdict_at_the_underflow() {
        let mut info = vec![0; INFO_LEN];
        let at = UNDERFLOWS + 4 * FORWARD;
        info[at..at + 4].copy_from_slice(&40u32.to_ne_bytes());
        let mut entries = vec![0; 200];
        entries[40 + TARGET_OFFSET] = 112;
        let verdict = 40 + 112 + VERDICT;
        for (value, drops) in [(-1i32, true), (-2, false), (0, false)] {
            entries[verdict..verdict + 4].copy_from_slice(&value.to_ne_bytes());
            assert_eq!(policy_is_drop(&info, &entries), drops);
        }
    }

    proptest! {
        #[test]
        fn no_table_panics(
            info in prop::collection::vec(any::<u8>(), 0..100),
            entries in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            policy_is_drop(&info, &entries);
        }
    }
}
