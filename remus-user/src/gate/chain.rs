//! Who sits where a link's frames come in or go out, and in which order: TCX programs first (Linux 6.6), then the
//! filters of the clsact qdisc by priority, and of one priority the newest first (`cls_bpf_change` in
//! net/sched/cls_bpf.c, 6.1 and 6.18: a filter is added at the head).
//!
//! A link is asked for by its number. A name would lead to whatever has that name now.

use std::io;

use aya::programs::TcAttachType;

use super::rtnl::{Attributes, Request, Rtnl, word};

/// TCX programs of a place that are looked at; the rest cannot be in front.
pub(super) const TCX_ROOM: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// One side of one link of the calling thread's network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) ifindex: u32,
    pub(super) side: Side,
}

/// A filter of the clsact qdisc.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter<'a> {
    pub(super) priority: u16,
    /// 0 for the entry that only says that there is a classifier of this priority.
    pub(super) handle: u32,
    /// The classifier: `bpf`, `flower`, ...
    pub(super) kind: &'a [u8],
    /// A BPF filter's name, and its program's id.
    pub(super) name: &'a [u8],
    pub(super) program: Option<u32>,
}

impl Side {
    pub(super) fn for_aya(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// `enum bpf_attach_type`.
    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }

    /// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS).
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// The ids of the TCX programs at `place`, in the order in which they run; `None` when this kernel has no TCX.
///
/// # Errors
/// ENODEV when there is no such link.
pub(super) fn tcx(place: Place, ids: &mut [u32; TCX_ROOM]) -> io::Result<Option<&[u32]>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    /// The part of `union bpf_attr` that this command reads and writes.
    #[repr(C)]
    struct Query {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
        more: [u64; 4],
    }
    let mut query = Query {
        ifindex: place.ifindex,
        attach_type: place.side.tcx(),
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).expect("a few"),
        padding: 0,
        more: [0; 4],
    };
    // SAFETY: the attributes and the array of ids live during the call, and their lengths are theirs.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // The attach type means nothing to this kernel.
            Some(libc::EINVAL) => Ok(None),
            // No program was ever here (6.6), or more than there is room for: the first ones are written.
            Some(libc::ENOENT) => Ok(Some(&[])),
            Some(libc::ENOSPC) => Ok(Some(&ids[..])),
            Some(_) | None => Err(error),
        };
    }
    Ok(Some(&ids[..ids.len().min(query.count as usize)]))
}

/// Hands `each` the filters of `place` in the order in which they run.
///
/// # Errors
/// What the kernel answers. A link that is gone has no filters, which is no error.
pub(super) fn filters(
    rtnl: &Rtnl,
    place: Place,
    each: &mut dyn FnMut(Filter<'_>),
) -> io::Result<()> {
    let request = Request::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, &tcmsg(place, 0, 0));
    rtnl.ask(request, &mut |body| {
        if let Some(filter) = filter(body, place) {
            each(filter);
        }
    })
}

/// Removes one filter of `place`.
///
/// # Errors
/// What the kernel answers: ENOENT or EINVAL when it is not there any more.
pub(super) fn remove_filter(
    rtnl: &Rtnl,
    place: Place,
    priority: u16,
    handle: u32,
) -> io::Result<()> {
    // The protocol stands below the priority, in network order: any.
    let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    let request = Request::new(libc::RTM_DELTFILTER, libc::NLM_F_ACK, &tcmsg(place, handle, info));
    rtnl.ask(request, &mut |_| {})
}

/// Whether `place` has the clsact qdisc.
///
/// # Errors
/// What the kernel answers, ENODEV for a link that is gone.
pub(super) fn has_clsact(rtnl: &Rtnl, place: Place) -> io::Result<bool> {
    const TC_H_CLSACT: u32 = 0xffff_fff1;
    /// Its handle. Where it was removed the kernel shows a qdisc that does nothing, and has none.
    const HANDLE: u32 = 0xffff_0000;
    let mut message = tcmsg(place, HANDLE, 0);
    message[12..16].copy_from_slice(&TC_H_CLSACT.to_ne_bytes());
    let request = Request::new(libc::RTM_GETQDISC, libc::NLM_F_ACK, &message);
    match rtnl.ask(request, &mut |_| {}) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
        Err(e) => Err(e),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an ethertype of 16 bits")]
const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
const TCMSG_BYTES: usize = 20;

/// `struct tcmsg` about the filters of `place`.
fn tcmsg(place: Place, handle: u32, info: u32) -> [u8; TCMSG_BYTES] {
    let mut message = [0; TCMSG_BYTES];
    message[4..8].copy_from_slice(&place.ifindex.to_ne_bytes());
    message[8..12].copy_from_slice(&handle.to_ne_bytes());
    message[12..16].copy_from_slice(&place.side.parent().to_ne_bytes());
    message[16..20].copy_from_slice(&info.to_ne_bytes());
    message
}

/// The filter in an answer, if it is one of chain 0 of `place`: others run only where that says so.
fn filter(body: &[u8], place: Place) -> Option<Filter<'_>> {
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    const CHAIN: u16 = 11;
    const BPF_NAME: u16 = 7;
    const BPF_ID: u16 = 11;
    if word(body, 4)? != place.ifindex || word(body, 12)? != place.side.parent() {
        return None;
    }
    let priority = u16::try_from(word(body, 16)? >> 16).ok()?;
    let mut filter =
        Filter { priority, handle: word(body, 8)?, kind: b"", name: b"", program: None };
    for (attribute, value) in Attributes(body.get(TCMSG_BYTES..)?) {
        match attribute {
            KIND => filter.kind = trimmed(value),
            CHAIN if word(value, 0) != Some(0) => return None,
            OPTIONS => {
                for (option, value) in Attributes(value) {
                    match option {
                        BPF_NAME => filter.name = trimmed(value),
                        BPF_ID => filter.program = word(value, 0),
                        // Other properties of a filter, and those of other classifiers.
                        _ => {}
                    }
                }
            }
            // Statistics and whatever a later kernel tells.
            _ => {}
        }
    }
    if filter.kind != b"bpf" {
        (filter.name, filter.program) = (b"", None);
    }
    Some(filter)
}

fn trimmed(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\0").unwrap_or(text)
}
