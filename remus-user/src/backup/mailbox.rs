//! How the daemon reaches the follower of a VM.

use std::{
    net::TcpStream,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, Sender},
    },
};

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    primary::{Input, Post},
    replication::Promoted,
    wire::{Hello, Session},
};

/// A connection whose first message told which VM it is about.
pub(super) enum Letter {
    /// A primary asks for a session.
    Hello { hello: Box<Hello>, stream: TcpStream },
    /// The bulk connection of a session.
    Attached { session: Session, stream: TcpStream },
}

/// The daemon's end.
#[derive(Clone)]
pub(super) struct Mailbox {
    letters: Sender<Letter>,
    bell: Arc<EventFd>,
    promoted: Arc<OnceLock<Promoted>>,
    engine: Arc<OnceLock<Post>>,
    /// The session whose bulk connection may come; 0 is none.
    awaited: Arc<AtomicU64>,
    alive: Weak<()>,
}

/// The follower's end.
pub(super) struct Letters {
    letters: Receiver<Letter>,
    bell: Arc<EventFd>,
    promoted: Arc<OnceLock<Promoted>>,
    engine: Arc<OnceLock<Post>>,
    awaited: Arc<AtomicU64>,
    _alive: Arc<()>,
}

pub(super) fn mailbox() -> Result<(Mailbox, Letters)> {
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK).context("make an eventfd")?);
    let (sender, receiver) = mpsc::channel();
    let (promoted, engine) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
    let awaited = Arc::new(AtomicU64::new(0));
    let alive = Arc::new(());
    let letters = Letters {
        letters: receiver,
        bell: Arc::clone(&bell),
        promoted: Arc::clone(&promoted),
        engine: Arc::clone(&engine),
        awaited: Arc::clone(&awaited),
        _alive: Arc::clone(&alive),
    };
    Ok((
        Mailbox { letters: sender, bell, promoted, engine, awaited, alive: Arc::downgrade(&alive) },
        letters,
    ))
}

impl Mailbox {
    pub(super) fn send(&self, letter: Letter) {
        if self.letters.send(letter).is_ok() {
            // Only a counter at its limit refuses, and then the follower is rung for already.
            self.bell.write(1).ok();
        }
    }

    /// The guest runs here: whoever asks is refused by this, since the follower is busy being its engine.
    pub(super) fn promoted(&self) -> Option<Promoted> {
        self.promoted.get().cloned()
    }

    /// Whether the bulk connection of `session` belongs here: the follower has welcomed that session.
    pub(super) fn awaits_bulk_of(&self, session: Session) -> bool {
        self.awaited.load(Relaxed) == session.get()
    }

    /// Ends the guest that runs here on purpose, if one does.
    pub(super) fn end_guest(&self) {
        if let Some(engine) = self.engine.get() {
            engine.send(Input::Stop);
        }
    }

    /// The guest that runs here must not be heard any more, since it is in a split: why, in words.
    pub(super) fn silence_guest(&self, text: String) {
        if let Some(engine) = self.engine.get() {
            engine.send(Input::Split { text });
        }
    }

    /// A guest runs here.
    pub(super) fn has_guest(&self) -> bool {
        self.is_open() && self.engine.get().is_some()
    }

    /// The follower is there, or has become the guest's engine.
    pub(super) fn is_open(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

impl Letters {
    pub(super) fn next(&self) -> Option<Letter> {
        self.bell.read().ok();
        self.letters.try_recv().ok()
    }

    /// A session is about to be welcomed: its bulk connection is to come here.
    pub(super) fn await_bulk_of(&self, session: Session) {
        self.awaited.store(session.get(), Relaxed);
    }

    /// From now on this thread is the guest's engine, and hears this.
    pub(super) fn set_engine(&self, post: Post) {
        // A follower is promoted once.
        self.engine.set(post).ok();
    }

    /// From now on the daemon refuses by itself.
    pub(super) fn set_promoted(&self, promoted: Promoted) {
        // A follower is promoted once.
        self.promoted.set(promoted).ok();
    }
}

impl AsRawFd for Letters {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}
