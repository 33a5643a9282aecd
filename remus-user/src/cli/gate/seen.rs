//! Gates as they are found below the run directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{
    cli::nothing_below,
    gate::{Attachment, Pinned},
    names::VmName,
    net::{IfIndex, Links},
    observe::{Holder, holder},
    standalone::mode_name,
};

/// A directory below the run directory with the pins of a gate, or without them when they are gone.
pub(super) struct Place {
    pub(super) name: VmName,
    pub(super) pins: PathBuf,
}

/// A gate, as JSON has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Seen {
    pub(super) name: String,
    /// The tap's name in this network namespace, if it is there.
    pub(super) tap: Option<String>,
    /// Whether the gate is in front of it: first, behind, elsewhere, gone.
    pub(super) attached: &'static str,
    /// The interface that released frames leave by; `None` when they go back into the tap.
    pub(super) uplink: Option<String>,
    pub(super) mode: &'static str,
    pub(super) term: u32,
    pub(super) open: u64,
    pub(super) committed: u64,
    pub(super) held: Held,
    pub(super) controller: Option<Controller>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Held {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    /// The size of the buffer.
    pub(super) capacity: u64,
    /// Frames of committed epochs: they are on their way out if there is a controller.
    pub(super) committed: u64,
}

/// A live process that has the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Controller {
    /// `None` when the process has not written its number.
    pub(super) pid: Option<u32>,
}

/// Returns every directory below `run_dir` that has, or had, a gate's pins, by name.
///
/// # Errors
/// When the directory is there and cannot be read.
pub(super) fn places(run_dir: &Path) -> Result<Vec<Place>> {
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", run_dir.display())),
    };
    let mut places: Vec<_> = entries
        .flatten()
        .filter_map(|entry| VmName::new(entry.file_name().to_str()?).ok())
        .map(|name| Place { pins: run_dir.join(name.as_str()).join("bpf"), name })
        .filter(|place| place.pins.is_dir())
        .collect();
    places.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(places)
}

/// Returns the gate called `wanted`, or else the one on the tap `wanted`.
///
/// # Errors
/// When there is none, or several are on that tap.
pub(super) fn find(run_dir: &Path, wanted: &str) -> Result<(Place, Pinned)> {
    let links = Links::open()?;
    let mut on_tap = Vec::new();
    for place in places(run_dir)? {
        let named = place.name.as_str() == wanted;
        let Some(pinned) = Pinned::find(&place.pins)? else {
            if named {
                bail!("gate {wanted} is gone: {}", lost(&place));
            }
            continue;
        };
        if named {
            return Ok((place, pinned));
        }
        let tap = links.at(IfIndex(pinned.view().tap_index))?;
        if tap.is_some_and(|tap| tap.name == wanted) && pinned.attachment(Some(wanted))?.is_on_tap()
        {
            on_tap.push((place, pinned));
        }
    }
    if on_tap.len() > 1 {
        let names: Vec<_> = on_tap.iter().map(|(place, _)| place.name.as_str()).collect();
        bail!("several gates are on {wanted}: name one of {}", names.join(", "));
    }
    if on_tap.is_empty() {
        // A run directory that does not exist is another mistake.
        nothing_below(run_dir, "gate")?;
    }
    on_tap.pop().with_context(|| {
        format!("there is no gate {wanted}, by name or tap, below {}", run_dir.display())
    })
}

/// Says what has become of a gate whose directory has no pins.
pub(super) fn lost(place: &Place) -> String {
    format!(
        "{} has no pins: its bpffs is gone with its mount namespace, and nothing holds the tap's frames",
        place.pins.display()
    )
}

impl Seen {
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn of(
        run_dir: &Path,
        place: &Place,
        pinned: &Pinned,
        links: &Links,
    ) -> Result<Self> {
        let view = pinned.view();
        let here = links.at(IfIndex(view.tap_index))?.map(|link| link.name);
        let attachment = pinned.attachment(here.as_deref())?;
        let held = pinned.held()?;
        Ok(Self {
            name: place.name.as_str().to_owned(),
            // An interface with that number that does not have the gate is another interface.
            tap: here.filter(|_| attachment.is_on_tap()),
            attached: match attachment {
                Attachment::First => "first",
                Attachment::Behind(_) => "behind",
                Attachment::Elsewhere => "elsewhere",
                Attachment::Gone => "gone",
            },
            uplink: match view.uplink_index {
                0 => None,
                index => {
                    let link = links.at(IfIndex(index))?;
                    Some(link.map_or_else(|| format!("link {index}, gone"), |link| link.name))
                }
            },
            mode: mode_name(view.mode),
            term: view.open.term().get(),
            open: view.open.epoch().get(),
            committed: view.committed.epoch().get(),
            held: Held {
                frames: held.frames,
                bytes: held.bytes,
                capacity: view.capacity_bytes,
                committed: held.committed,
            },
            controller: match holder(run_dir, &place.name)? {
                Holder::Nobody => None,
                Holder::Process(pid) => Some(Controller { pid }),
            },
        })
    }
}

impl Controller {
    pub(super) fn shown(controller: Option<Self>) -> String {
        match controller {
            None => "none".to_owned(),
            Some(Self { pid: Some(pid) }) => format!("process {pid}"),
            Some(Self { pid: None }) => "alive".to_owned(),
        }
    }
}
