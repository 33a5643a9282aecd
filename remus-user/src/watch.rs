//! Asks once a second, on a thread of its own, whether a guest is served through this host, or would be after a takeover.
//!
//! The thread is there because netlink and disks may keep whoever asks them waiting, and neither the engine nor a follower
//! may wait. Both fetch the findings without waiting ([`Watch::news`]).
//!
//! One fault is mended rather than reported: where the guest runs and its bridge appears, or was made again, the tap joins
//! that bridge. A tap that somebody took out of a bridge that stayed is left alone and reported.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tracing::{debug, info, warn};

use crate::{
    checks::{
        Check, Outcome,
        wiring::{self, Part, Wanted},
    },
    names::VmName,
    net::{IfIndex, Kind, Links},
    os::boot_now,
    store::{Record, Store},
};

/// The time between two questions.
const EVERY: Duration = Duration::from_secs(1);

/// What the thread asks about.
pub(crate) struct Subject {
    pub(crate) vm: VmName,
    pub(crate) wanted: Wanted,
    /// The tap that the gate guards.
    pub(crate) tap: IfIndex,
    /// The records, into which a takeover is written.
    pub(crate) store: Store,
}

/// What the thread found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    /// Everything that is not as it should be.
    pub(crate) doubts: Vec<Check>,
    /// The ports of the bridge, where there is one.
    pub(crate) ports: Option<Vec<IfIndex>>,
    /// How often the tap has joined its bridge again.
    pub(crate) joined: u32,
}

impl Found {
    /// Returns what keeps clients from the guest, or would after a takeover, in words; empty when nothing does.
    pub(crate) fn refusals(&self) -> String {
        self.words(Outcome::Refused)
    }

    /// Returns what may keep clients from the guest, in words.
    pub(crate) fn warnings(&self) -> String {
        self.words(Outcome::Warning)
    }

    fn words(&self, outcome: Outcome) -> String {
        let words = self.doubts.iter().filter(|check| check.outcome == outcome);
        words.map(|check| check.found.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// The thread's owner. The thread ends when this is dropped.
pub(crate) struct Watch {
    board: Arc<Board>,
    seen: u64,
}

struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// `None` when nobody wants to know any more.
    part: Option<Part>,
    /// The record of a takeover, kept ready on disk.
    reserve: Option<Record>,
    found: Found,
    /// The number of times that the findings have changed.
    changes: u64,
}

impl Watch {
    /// Starts the thread, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(subject: Subject, part: Part) -> Result<Self> {
        let state = State { part: Some(part), reserve: None, found: Found::default(), changes: 0 };
        let board = Arc::new(Board { state: Mutex::new(state), changed: Condvar::new() });
        let of_thread = Arc::clone(&board);
        let run = move || of_thread.ask_on(&subject);
        thread::Builder::new().name("watch".to_owned()).spawn(run).context("start the watch")?;
        Ok(Self { board, seen: 0 })
    }

    /// Keeps `record` ready on disk from now on, for a takeover.
    pub(crate) fn reserve(&self, record: Record) {
        self.board.lock().reserve = Some(record);
        self.board.changed.notify_all();
    }

    /// Notes that the guest runs here from now on, and asks at once.
    pub(crate) fn speak(&self) {
        self.board.lock().part = Some(Part::Speaks);
        self.board.changed.notify_all();
    }

    /// Returns the findings, if they have changed since the last call. Never waits.
    pub(crate) fn news(&mut self) -> Option<Found> {
        let state = self.board.state.try_lock().ok()?;
        if state.changes == self.seen {
            return None;
        }
        self.seen = state.changes;
        Some(state.found.clone())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.board.lock().part = None;
        self.board.changed.notify_all();
    }
}

impl Board {
    fn ask_on(&self, subject: &Subject) {
        let mut asker = Asker::default();
        let mut state = self.lock();
        while let Some(part) = state.part {
            let reserve = state.reserve.clone();
            drop(state);
            let begun = boot_now();
            let found = asker.ask(subject, part, reserve.as_ref());
            debug!("asking the host took {:?}", boot_now().since(begun));
            state = self.lock();
            if state.found != found {
                tell(&subject.vm, &state.found, &found);
                state.found = found;
                state.changes += 1;
            }
            if (state.part, &state.reserve) == (Some(part), &reserve) {
                let waited = self.changed.wait_timeout(state, EVERY);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    // The value under the lock is whole at any time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the findings that are new and those that are gone.
fn tell(vm: &VmName, before: &Found, now: &Found) {
    let is_in = |doubts: &[Check], doubt: &Check| doubts.contains(doubt);
    for doubt in now.doubts.iter().filter(|doubt| !is_in(&before.doubts, doubt)) {
        warn!("VM {vm}: {}. {}", doubt.found, doubt.remedy);
    }
    for doubt in before.doubts.iter().filter(|doubt| !is_in(&now.doubts, doubt)) {
        info!("VM {vm}: resolved: {}", doubt.found);
    }
}

#[derive(Default)]
struct Asker {
    links: Option<Links>,
    /// The bridge that the tap was last seen in.
    joined_to: Option<IfIndex>,
    joined: u32,
}

impl Asker {
    fn ask(&mut self, subject: &Subject, part: Part, reserve: Option<&Record>) -> Found {
        let mut found = self.ask_links(subject, part).unwrap_or_else(|e| {
            // The next question opens another socket.
            self.links = None;
            Found { doubts: vec![wiring::no_links(&e)], ..Found::default() }
        });
        if subject.wanted.bridge.is_some() {
            found.doubts.push(wiring::forwarding());
        }
        if let (Part::Waits, Some(record)) = (part, reserve) {
            let kept = subject.store.keep_reserved(&subject.vm, record);
            found.doubts.extend(kept.err().map(|e| {
                let remedy = "repair it: a takeover waits until it can be put on record";
                Check::refused("record", format!("{e:#}"), remedy)
            }));
        }
        found.doubts.retain(|check| check.outcome != Outcome::Ok);
        found.joined = self.joined;
        found
    }

    fn ask_links(&mut self, subject: &Subject, part: Part) -> Result<Found> {
        let links = match self.links.take() {
            Some(links) => links,
            None => Links::open()?,
        };
        let links = self.links.insert(links);
        let Subject { wanted, tap, .. } = subject;
        let mut all = links.all()?;
        let bridge = wanted.bridge.as_ref().and_then(|name| {
            let named = all.iter().find(|link| link.name == name.as_str())?;
            matches!(named.kind, Kind::Bridge { .. }).then_some(named.index)
        });
        let is_in = all.iter().find(|link| link.index == *tap).and_then(|link| link.controller);
        if let (Part::Speaks, Some(bridge)) = (part, bridge) {
            if is_in == Some(bridge) {
                self.joined_to = is_in;
            } else if self.joined_to != Some(bridge) {
                links.join(*tap, bridge)?;
                info!("VM {}: {} has joined its bridge", subject.vm, wanted.tap);
                self.joined_to = Some(bridge);
                self.joined += 1;
                all = links.all()?;
            }
        }
        let ports = bridge.map(|bridge| {
            let ports = all.iter().filter(|link| link.controller == Some(bridge));
            ports.map(|link| link.index).collect()
        });
        Ok(Found { doubts: wiring::judge(&all, wanted, Some(*tap), part), ports, joined: 0 })
    }
}
