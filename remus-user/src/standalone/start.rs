//! The start: the gate of an earlier controller is taken over with what it holds, or a new gate is put on the tap.

use std::path::Path;

use anyhow::{Context, Result, bail};
use remus_abi::{Stamp, gate::Mode};
use tracing::{info, warn};

use super::{
    StandaloneOptions,
    answer::mode_name,
    keeper::{Keeper, Lease},
};
use crate::{
    gate::{Attachment, Gate, Held, InSlots, Pinned, Release, Settings, Tap},
    net::Links,
    observe::VmDir,
    replication::Standalone,
};

/// Puts a gate on the tap that `options` names, or takes over the one that is there, and returns its keeper.
///
/// # Errors
/// When the tap cannot be guarded, or its gate is of another name.
pub(super) fn keeper(options: &StandaloneOptions, directory: &VmDir) -> Result<Keeper> {
    let name = options.tap.as_str();
    let found = Links::open()?.foreign_tap(name)?;
    let pins = directory.path().join("bpf");
    let tap = Tap { name: name.to_owned(), ifindex: found.index.0 };
    let lease = |until_ns| match options.lease_max {
        None => Lease::None,
        Some(max) => Lease::Renewed { max, until_ns },
    };

    if let Some(taken) = take_over(options, &tap, &pins)? {
        return Ok(Keeper::new(taken.gate, taken.brain, lease(taken.lease_until_ns)));
    }
    if Gate::guards(name) {
        bail!(
            "{name} already has a gate, with another name or run directory: `remus gate list` finds it, --name takes it \
             over, `remus gate remove` removes it"
        );
    }
    if found.up {
        warn!("{name} was up before it had a gate: what its guest has sent until now is out");
    }
    let (brain, fenced) = Standalone::begin();
    let mut gate = Gate::install(tap, &pins, &options.settings)?;
    gate.begin_term(&fenced, Held::Discard)?;
    info!("a closed gate is on {name}");
    Ok(Keeper::new(gate, brain, lease(0)))
}

/// The gate of an earlier controller, and how far that controller had come.
struct Taken {
    gate: Gate,
    brain: Standalone,
    lease_until_ns: u64,
}

/// Takes over the gate that an earlier controller left on `tap`.
fn take_over(options: &StandaloneOptions, tap: &Tap, pins: &Path) -> Result<Option<Taken>> {
    let Some(pinned) = Pinned::find(pins)? else { return Ok(None) };
    let view = pinned.view();
    let on_this_tap = view.tap_index == tap.ifindex;
    match pinned.attachment(Some(&tap.name))? {
        Attachment::First if on_this_tap => {}
        Attachment::Behind(why) if on_this_tap => {
            bail!("{why}: remove that, or this gate (`remus gate remove`)")
        }
        Attachment::Gone => {
            let held = pinned.held()?;
            warn!(
                "the tap of this gate is gone, and with it the way out for the {} frames that the gate held",
                held.frames
            );
            return Ok(None);
        }
        Attachment::First | Attachment::Behind(_) | Attachment::Elsewhere => bail!(
            "the gate of this name is on another tap (link {}, perhaps in another network namespace): give this gate \
             another --name, or remove that one with `remus gate remove`",
            view.tap_index
        ),
    }
    if options.lease_max.is_some() && view.lease_until_ns == u64::MAX {
        bail!(
            "the gate on {} was made without a lease, and a lease never gets shorter: start without --lease-ms, or \
             remove the gate first (`remus gate remove`)",
            tap.name
        );
    }
    if view.mode == Mode::Closed && view.open == Stamp::NONE {
        // Its controller died before it had begun a term; nothing was ever held.
        let (brain, fenced) = Standalone::begin();
        let mut gate = adopt(tap, pins)?;
        gate.begin_term(&fenced, Held::Discard)?;
        return Ok(Some(Taken { gate, brain, lease_until_ns: 0 }));
    }
    let brain = Standalone::resume(view.mode, view.open, view.committed)
        .inspect_err(|_| pinned.close())
        .with_context(|| {
            format!(
                "the gate on {} cannot be trusted and was closed; remove it with `remus gate remove`",
                tap.name
            )
        })?;
    info!(
        "took over the gate on {}: {}, term {}, epoch {} open, {} committed; {}",
        tap.name,
        mode_name(view.mode),
        view.open.term(),
        view.open.epoch(),
        view.committed.epoch(),
        describe(pinned.held()?)
    );
    let Settings { buffer_mib, release, engine: _ } = &options.settings;
    let same_way = (*release == Release::ReEntry) == (view.uplink_index == 0);
    if view.capacity_bytes != u64::from(*buffer_mib) << 20 || !same_way {
        warn!(
            "the gate keeps the buffer and the way out that it was made with, until `remus gate remove` removes it"
        );
    }
    let gate = adopt(tap, pins)?;
    Ok(Some(Taken { gate, brain, lease_until_ns: view.lease_until_ns }))
}

fn adopt(tap: &Tap, pins: &Path) -> Result<Gate> {
    Gate::adopt(tap.clone(), pins)?
        .with_context(|| format!("the gate on {} went away meanwhile", tap.name))
}

fn describe(held: InSlots) -> String {
    if held.frames == 0 {
        return "it holds nothing".to_owned();
    }
    format!(
        "it holds {} frames ({} bytes) of epochs {} to {}, {} of them committed",
        held.frames,
        held.bytes,
        held.first.epoch(),
        held.last.epoch(),
        held.committed
    )
}
