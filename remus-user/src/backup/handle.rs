//! How the daemon reaches the follower of a VM: connections go in, and what becomes of the follower is seen.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Result;

use crate::{
    engine::Input,
    link::Accepted,
    os::{Inbox, Post, inbox},
    replication::Promoted,
    wire::{Hello, Session},
};

/// A connection whose first message told which VM it is about.
pub(super) enum Call {
    /// A primary asks for a session.
    Hello { hello: Box<Hello>, stream: Accepted },
    /// The bulk connection of a session.
    Attached { session: Session, stream: Accepted },
}

/// The daemon's end.
#[derive(Clone)]
pub(super) struct Handle {
    calls: Post<Call>,
    board: Arc<Board>,
    alive: Weak<()>,
}

/// The follower's end.
pub(super) struct Calls {
    calls: Inbox<Call>,
    board: Arc<Board>,
    _alive: Arc<()>,
}

/// What the follower shows the daemon.
struct Board {
    /// The session whose bulk connection may come; 0 is none.
    awaited: AtomicU64,
    part: Mutex<Part>,
}

/// What the follower's thread does.
#[derive(Clone)]
enum Part {
    Follows,
    /// The guest is being put together here.
    TakesOver(Promoted),
    /// The thread is the guest's engine, and hears this.
    Runs(Promoted, Post<Input>),
}

/// # Errors
/// When no descriptor is free.
pub(super) fn handle() -> Result<(Handle, Calls)> {
    let (inbox, post) = inbox()?;
    let board = Arc::new(Board { awaited: AtomicU64::new(0), part: Mutex::new(Part::Follows) });
    let alive = Arc::new(());
    let handle = Handle { calls: post, board: Arc::clone(&board), alive: Arc::downgrade(&alive) };
    Ok((handle, Calls { calls: inbox, board, _alive: alive }))
}

impl Handle {
    pub(super) fn send(&self, call: Call) {
        self.calls.send(call);
    }

    /// What answers a primary once the guest runs here: the follower is busy being its engine.
    pub(super) fn promoted(&self) -> Option<Promoted> {
        match &*self.board.part() {
            Part::Follows => None,
            Part::TakesOver(promoted) | Part::Runs(promoted, _) => Some(promoted.clone()),
        }
    }

    /// Whether the bulk connection of `session` belongs here: the follower has welcomed that session.
    pub(super) fn awaits_bulk_of(&self, session: Session) -> bool {
        self.board.awaited.load(Relaxed) == session.get()
    }

    /// Ends the guest that runs here on purpose, if one does.
    pub(super) fn end_guest(&self) {
        if let Part::Runs(_, engine) = &*self.board.part() {
            engine.send(Input::Stop);
        }
    }

    /// The guest that runs here must not be heard any more, since it is in a split: why, in words.
    pub(super) fn silence_guest(&self, text: String) {
        if let Part::Runs(_, engine) = &*self.board.part() {
            engine.send(Input::Split { text });
        }
    }

    /// Whether a guest runs here.
    pub(super) fn has_guest(&self) -> bool {
        self.is_open() && matches!(*self.board.part(), Part::Runs(..))
    }

    /// Whether the thread lives, as a follower or as an engine.
    pub(super) fn is_open(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

impl Calls {
    pub(super) fn next(&mut self) -> Option<Call> {
        self.calls.quiet();
        self.calls.next()
    }

    /// A session is about to be welcomed: its bulk connection is to come here.
    pub(super) fn await_bulk_of(&self, session: Session) {
        self.board.awaited.store(session.get(), Relaxed);
    }

    /// From now on the daemon refuses by itself.
    pub(super) fn take_over(&self, promoted: Promoted) {
        *self.board.part() = Part::TakesOver(promoted);
    }

    /// From now on this thread is the guest's engine, and hears `engine`.
    pub(super) fn run_guest(&self, promoted: Promoted, engine: Post<Input>) {
        *self.board.part() = Part::Runs(promoted, engine);
    }
}

impl Board {
    // Each change is one assignment: what is behind a poisoned lock is whole.
    fn part(&self) -> MutexGuard<'_, Part> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for Calls {
    fn as_raw_fd(&self) -> RawFd {
        self.calls.as_raw_fd()
    }
}
