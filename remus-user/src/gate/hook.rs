//! A gate's program, attached in front of all others on one side of a link.
//!
//! By TCX where the kernel has it (Linux 6.6), else as the newest filter of the first priority of the clsact
//! qdisc, in direct action. Either way:
//! - A new hook is in front before an older one of the same program goes: at no moment does a frame pass unseen.
//! - It outlives the process. A TCX link is pinned, because the kernel detaches a link that nobody refers to;
//!   a filter stays until it is removed.
//!
//! The clsact qdisc stays when its last filter goes: others may have begun to use it.

use std::io;

use anyhow::{Context, Result, anyhow};
use aya::programs::{
    LinkOrder, ProgramInfo, SchedClassifier,
    links::{FdLink, PinnedLink},
    tc::{NlOptions, TcAttachOptions, TcError, qdisc_add_clsact},
};

use super::{
    chain::{self, Place, Side, TCX_ROOM},
    pins::Pins,
    rtnl::Rtnl,
};

/// The lowest number that a filter's priority can have: nothing runs before it.
const FIRST_PRIORITY: u16 = 1;

/// How a gate's program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookKind {
    /// Linux 6.6 and later.
    Tcx,
    /// A filter of the clsact qdisc, in every kernel that the gate supports.
    Clsact,
}

impl HookKind {
    /// The better one that this kernel has.
    ///
    /// # Errors
    /// When the kernel does not answer (privilege).
    pub fn of_this_kernel() -> io::Result<Self> {
        // The loopback interface is in every network namespace.
        let place = Place { ifindex: 1, side: Side::Ingress };
        Ok(match chain::tcx(place, &mut [0; TCX_ROOM])? {
            Some(_) => Self::Tcx,
            None => Self::Clsact,
        })
    }
}

/// The hook of one program.
pub(super) struct Hook {
    /// The name of the program, and of the pin of its link.
    pub(super) program: &'static str,
    pub(super) program_id: u32,
    pub(super) link: String,
    pub(super) place: Place,
    held_by: HeldBy,
}

enum HeldBy {
    /// The descriptor of a pinned link.
    Tcx(PinnedLink),
    Filter {
        priority: u16,
        handle: u32,
    },
}

/// Attaches `program` to the link called `link`, whose number and side are `place`, in front of whatever is there.
/// Then what an older gate has there is removed. A TCX link is pinned as `name`; the program is the caller's to pin
/// as `program_pin`, afterwards: until then the pin says which program is the older gate's.
///
/// # Errors
/// When the kernel refuses, or another link has the name by now; the older gate still stands then.
pub(super) fn attach(
    program: &mut SchedClassifier,
    name: &'static str,
    program_pin: &str,
    link: &str,
    place: Place,
    kind: HookKind,
    pins: &Pins,
) -> Result<()> {
    let id = program.info().with_context(|| format!("ask for the id of {name}"))?.id();
    let older = ProgramInfo::from_pin(pins.path(program_pin)).ok().map(|program| program.id());
    match kind {
        HookKind::Tcx => {
            let attached = attach_tcx(program, link, place.side)
                .with_context(|| format!("attach {name} to {link} by TCX"))?;
            // From here on the new one rules; the old one may go.
            pins.remove(name)?;
            attached.pin(pins.path(name)).with_context(|| format!("pin the link of {name}"))?;
        }
        HookKind::Clsact => {
            attach_filter(program, link, place.side)
                .with_context(|| format!("attach {name} to {link} as a clsact filter"))?;
            pins.remove(name)?;
        }
    }
    remove_older_filters(link, place, |filter| match place.side {
        // A tap has one gate, whatever has become of its pins.
        Side::Ingress => fills(name, filter.name) && filter.program != Some(id),
        // An uplink has the guards of several gates: only what this one's pin names is this one's.
        Side::Egress => older.is_some() && filter.program == older,
    })
}

impl Hook {
    /// The hook of the program that is pinned as `program_pin`, as [`attach`] left it, in this process or an
    /// earlier one. Whether it is still attached is [`check_hook`](super::health::check_hook)'s to say.
    ///
    /// # Errors
    /// When it is not pinned, or neither by a link nor by a filter.
    pub(super) fn open(
        name: &'static str,
        program_pin: &str,
        link: &str,
        place: Place,
        pins: &Pins,
    ) -> Result<Self> {
        let program_id = ProgramInfo::from_pin(pins.path(program_pin))
            .with_context(|| format!("open the pin of {name}"))?
            .id();
        let held_by = match PinnedLink::from_pin(pins.path(name)) {
            Ok(pinned) => HeldBy::Tcx(pinned),
            Err(_) => {
                let rtnl = Rtnl::open().context("open an rtnetlink socket")?;
                let filter = filter_of(&rtnl, place, program_id)?;
                let (priority, handle) =
                    filter.with_context(|| format!("{name} is not attached to {link}"))?;
                HeldBy::Filter { priority, handle }
            }
        };
        Ok(Self { program: name, program_id, link: link.to_owned(), place, held_by })
    }

    pub(super) fn kind(&self) -> HookKind {
        match self.held_by {
            HeldBy::Tcx(_) => HookKind::Tcx,
            HeldBy::Filter { .. } => HookKind::Clsact,
        }
    }

    /// The pin without which the program would be detached when this process ends.
    pub(super) fn pin(&self) -> Option<&'static str> {
        match self.held_by {
            HeldBy::Tcx(_) => Some(self.program),
            HeldBy::Filter { .. } => None,
        }
    }

    /// Takes the program off the link. Its pins are the caller's to remove.
    ///
    /// # Errors
    /// When the kernel refuses to remove a filter that is there.
    pub(super) fn detach(self) -> Result<()> {
        match self.held_by {
            // The link goes when neither a descriptor nor a pin refers to it.
            HeldBy::Tcx(pinned) => drop(pinned),
            HeldBy::Filter { priority, handle } => {
                let rtnl = Rtnl::open().context("open an rtnetlink socket")?;
                remove(&rtnl, self.place, priority, handle)
                    .with_context(|| format!("remove {} from {}", self.program, self.link))?;
            }
        }
        Ok(())
    }
}

/// Whether a program called `name` is in front at the ingress of the link `link`: of this build or another, of
/// this process or one that has died.
pub(super) fn is_in_front(name: &str, link: &str) -> bool {
    // No program there, or a kernel without TCX: the filters decide.
    if let Ok((_, programs)) = SchedClassifier::query_tcx(link, Side::Ingress.for_aya())
        && let Some(first) = programs.first()
    {
        return first.name_as_str().is_some_and(|found| fills(name, found.as_bytes()));
    }
    let found = || -> Result<bool> {
        let place = Place { ifindex: ifindex(link).context("no such link")?, side: Side::Ingress };
        first_filter_is(&Rtnl::open()?, place, name)
    };
    found().unwrap_or(false)
}

/// Whether the program called `found` is one for the place `name`: `hold`'s is also that of the engine `nfqueue`'s.
fn fills(name: &str, found: &[u8]) -> bool {
    found == name.as_bytes() || (name == "hold" && found == b"stamp")
}

/// The number of the link called `name` in the calling thread's network namespace.
pub(super) fn ifindex(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a terminated string that lives during the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Attaches `program` by TCX in front of whatever is there, for as long as the link that it returns lives.
///
/// # Errors
/// When the kernel refuses: it is older than Linux 6.6, or there is no such link.
pub(super) fn attach_tcx(program: &mut SchedClassifier, link: &str, side: Side) -> Result<FdLink> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = program.attach_with_options(link, side.for_aya(), order)?;
    Ok(program.take_link(attached)?.try_into()?)
}

fn attach_filter(program: &mut SchedClassifier, link: &str, side: Side) -> Result<()> {
    match qdisc_add_clsact(link) {
        Ok(()) => {}
        Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        Err(e) => return Err(anyhow!(e).context("add the clsact qdisc")),
    }
    let options = NlOptions { priority: FIRST_PRIORITY, ..NlOptions::default() };
    let attached = program
        .attach_with_options(link, side.for_aya(), TcAttachOptions::Netlink(options))
        .context("add the filter (has another classifier priority 1?)")?;
    // Dropped it would be detached, and the filter must stay whatever becomes of this process.
    std::mem::forget(program.take_link(attached)?);
    Ok(())
}

/// Removes the filters of an older gate. They lie behind the new hook, whichever kind that is, and would judge its
/// frames again.
fn remove_older_filters(
    link: &str,
    place: Place,
    is_older: impl Fn(&chain::Filter<'_>) -> bool,
) -> Result<()> {
    let rtnl = Rtnl::open().context("open an rtnetlink socket")?;
    let mut older = Vec::new();
    chain::filters(&rtnl, place, &mut |filter| {
        if is_older(&filter) {
            older.push((filter.priority, filter.handle));
        }
    })
    .with_context(|| format!("ask which filters sit on {link}"))?;
    for (priority, handle) in older {
        remove(&rtnl, place, priority, handle)
            .with_context(|| format!("remove an older gate's filter from {link}"))?;
    }
    Ok(())
}

/// Priority and handle of the filter that runs the program `id` at `place`.
fn filter_of(rtnl: &Rtnl, place: Place, id: u32) -> Result<Option<(u16, u32)>> {
    let mut found = None;
    chain::filters(rtnl, place, &mut |filter| {
        if filter.program == Some(id) {
            found.get_or_insert((filter.priority, filter.handle));
        }
    })
    .context("ask which filters sit on the link")?;
    Ok(found)
}

/// Whether the first filter of `place` runs a program called `name`.
fn first_filter_is(rtnl: &Rtnl, place: Place, name: &str) -> Result<bool> {
    let mut first = None;
    chain::filters(rtnl, place, &mut |filter| {
        // The entry of a classifier goes before its filters.
        if filter.handle != 0 {
            first.get_or_insert(fills(name, filter.name));
        }
    })
    .context("ask which filters sit on the link")?;
    Ok(first.unwrap_or(false))
}

/// Removes a filter; one that is gone already is as good.
fn remove(rtnl: &Rtnl, place: Place, priority: u16, handle: u32) -> io::Result<()> {
    match chain::remove_filter(rtnl, place, priority, handle) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Err(e)
        }
        _ => Ok(()),
    }
}
