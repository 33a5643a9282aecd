//! The kernel's own way to hold output: sch_plug, with which Xen's Remus began. It holds what leaves a link, and a
//! guest's output arrives at its tap: so the tap's ingress is redirected to an IFB, whose egress the plug holds, and
//! which hands what leaves it on as if it had come from the tap just then.
//!
//! iproute2 sets it up; block and release are the messages that `tc qdisc change ... plug` sends, without the start of
//! a program, which no controller would pay for in each epoch.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::bed::{Bed, index_of};

const IFB: &str = "ifb0";
/// Frames that may wait in the IFB on their way back, and bytes in the plug: more than a run has.
const IFB_FRAMES: &str = "200000";
const PLUG_BYTES: &str = "400000000";
/// Of the redirection, so that it is known again.
const PREFERENCE: &str = "7";

const RTM_NEWQDISC: u16 = 36;
/// `1:`, as the plug is added.
const HANDLE: u32 = 1 << 16;
const TC_H_ROOT: u32 = u32::MAX;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// `TCQ_PLUG_BUFFER` and `TCQ_PLUG_RELEASE_ONE` of linux/pkt_sched.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// What comes from here on is the next epoch's.
    Block = 0,
    /// What came before the last block leaves.
    Release = 1,
}

/// A plug in front of the bed's tap, holding.
pub(super) struct Plug {
    socket: OwnedFd,
    tap: String,
    ifb: i32,
}

impl Plug {
    /// In the calling thread's network namespace.
    pub(super) fn install(bed: &Bed) -> Result<Self> {
        let tap = bed.tap.name.clone();
        run("ip", &["link", "add", IFB, "txqueuelen", IFB_FRAMES, "type", "ifb"])?;
        run("ip", &["link", "set", IFB, "up"])?;
        let plug = ["root", "handle", "1:", "plug", "limit", PLUG_BYTES];
        run("tc", &[&["qdisc", "add", "dev", IFB][..], &plug].concat())?;
        run("tc", &["qdisc", "replace", "dev", &tap, "clsact"])?;
        let redirect = ["matchall", "action", "mirred", "egress", "redirect", "dev", IFB];
        let at = ["filter", "add", "dev", &tap, "ingress", "pref", PREFERENCE];
        run("tc", &[&at[..], &redirect].concat())?;
        Ok(Self { socket: netlink()?, tap, ifb: index_of(IFB)? })
    }

    /// Ends the epoch.
    pub(super) fn block(&self) -> Result<()> {
        self.change(Action::Block)
    }

    /// Lets everything go that came before the last [`Plug::block`].
    pub(super) fn release(&self) -> Result<()> {
        self.change(Action::Release)
    }

    pub(super) fn remove(self) -> Result<()> {
        run("tc", &["filter", "del", "dev", &self.tap, "ingress", "pref", PREFERENCE])?;
        run("ip", &["link", "del", IFB])
    }

    fn change(&self, action: Action) -> Result<()> {
        let refused = || format!("sch_plug: {action:?}");
        let asked = message(self.ifb, action);
        // SAFETY: the buffer lives during the call, and is as long as the length says.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), asked.as_ptr().cast(), asked.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error()).with_context(refused);
        }
        let mut answer = [0_u8; 1024];
        // SAFETY: the buffer may be written for as long as the length says.
        let length = unsafe {
            libc::recv(self.socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error());
        acknowledged(&answer[..length.with_context(refused)?]).with_context(refused)
    }
}

/// The change of the plug at the link `ifb`: `struct nlmsghdr`, `struct tcmsg`, kind, `struct tc_plug_qopt`.
fn message(ifb: i32, action: Action) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend([0; 4]);
    body.extend(ifb.to_ne_bytes());
    for word in [HANDLE, TC_H_ROOT, 0] {
        body.extend(word.to_ne_bytes());
    }
    let options = [(action as u32).to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
    for (kind, content) in [(TCA_KIND, &b"plug\0"[..]), (TCA_OPTIONS, &options)] {
        let length = u16::try_from(4 + content.len()).expect("a few bytes");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(content);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + body.len()).expect("a few bytes");
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("two bits");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_NEWQDISC.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What the kernel says to a request: an error of 0 is none.
fn acknowledged(answer: &[u8]) -> Result<()> {
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let error: Option<[u8; 4]> = answer.get(HEADER..HEADER + 4).and_then(|e| e.try_into().ok());
    match (kind, error.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error).into()),
        _ => bail!("the kernel's answer is no acknowledgement"),
    }
}

fn netlink() -> Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("open netlink");
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let shown = || format!("{program} {}", words.join(" "));
    let output = Command::new(program).args(words).output().with_context(shown)?;
    if !output.status.success() {
        bail!("{}: {}", shown(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_the_one_that_tc_sends() {
        let release = message(5, Action::Release);
        let word = |at: usize| u32::from_ne_bytes(release[at..at + 4].try_into().unwrap());
        assert_eq!(u32::try_from(release.len()), Ok(word(0)));
        assert_eq!([word(20), word(24), word(28)], [5, 0x1_0000, u32::MAX]);
        assert_eq!(&release[40..45], b"plug\0");
        let options = 36 + 12;
        assert_eq!(release[options..options + 4], [12, 0, 2, 0]);
        assert_eq!([word(options + 4), word(options + 8)], [1, 0]);
        assert_eq!(release.len(), options + 12);
    }

    #[test]
    fn an_error_is_no_acknowledgement() {
        let answer = |error: i32| {
            let mut answer = vec![0; 4];
            answer.extend(NLMSG_ERROR.to_ne_bytes());
            answer.resize(HEADER, 0);
            answer.extend(error.to_ne_bytes());
            answer
        };
        assert!(acknowledged(&answer(0)).is_ok());
        assert!(acknowledged(&answer(-libc::ENOENT)).is_err());
        assert!(acknowledged(&answer(0)[..18]).is_err());
        assert!(acknowledged(&[]).is_err());
    }
}
