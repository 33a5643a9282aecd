//! Ways out for text that no thread of a guest may wait for: the log, and what a guest says on its console.
//!
//! An [`Outlet`] is a bounded buffer and a thread that empties it into a file. A thread that puts text into it holds a
//! short lock, and nothing writes under that lock; so a file that is full, stalled or gone costs text and never time.
//! The outlet's own thread may wait for its file as long as that takes.
//!
//! Text is lost when there is no room for it, and when the file refuses it. Both are counted ([`lost`]), and the status
//! shows the counts. A line of the log is kept whole or lost whole. The file is tried again with whatever comes next: a
//! file system that has room again is written to again.
//!
//! Deliberately absent: a second try for text that a file has refused. A pipe without a reader would fill the buffer for
//! good, and the newest text is worth more than the oldest.

mod complaint;
mod hook;
mod log;
mod pump;
mod room;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub(crate) use self::hook::report_panics;
pub(crate) use self::log::{finish, put_event, say, start_log};
use self::pump::Pump;
pub(crate) use self::pump::write_patiently;
use self::room::Room;

/// The number of bytes that may wait for a file.
pub(crate) const CAPACITY: usize = 256 << 10;
/// How long an outlet that ends, or the process, waits for a file that does not take what is left.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(300);

/// Lines of log, and bytes of consoles, that this process has lost.
static LOST: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Returns how many lines of its log, and how many bytes of its guests' consoles, this process has lost.
pub(crate) fn lost() -> (u64, u64) {
    (LOST[Kind::Log as usize].load(Relaxed), LOST[Kind::Console as usize].load(Relaxed))
}

/// What an outlet carries, which decides what is lost as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Lines. A loss is reported in the file itself, once the file takes something again.
    Log,
    /// Bytes. A loss is reported in the log.
    Console,
}

impl Kind {
    /// Returns the number of units in `bytes`: lines of a log, bytes of a console.
    fn measure(self, bytes: &[u8]) -> u64 {
        match self {
            Self::Log => bytes.split_inclusive(|byte| *byte == b'\n').count() as u64,
            Self::Console => bytes.len() as u64,
        }
    }

    fn count_lost(self, units: u64) {
        LOST[self as usize].fetch_add(units, Relaxed);
    }
}

/// See the module. When an outlet is dropped, it waits up to [`LAST_WORDS`] for its file to take what is left: the last
/// words of a guest are worth most.
pub(crate) struct Outlet {
    kind: Kind,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    room: Room,
    is_closed: bool,
    /// Bytes that have left the room: the file has them, or they are lost.
    dealt_with: u64,
}

impl Outlet {
    /// Makes an outlet for what a guest says; `name` tells people which file `file` is.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn of_console(name: &str, file: File) -> io::Result<Self> {
        Self::start(Kind::Console, name, file)
    }

    fn start(kind: Kind, name: &str, file: File) -> io::Result<Self> {
        let state = State { room: Room::new(kind), is_closed: false, dealt_with: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let pump = Pump::new(kind, name, file);
        let of_thread = Arc::clone(&shared);
        let name = match kind {
            Kind::Log => "log",
            Kind::Console => "console",
        };
        thread::Builder::new().name(name.to_owned()).spawn(move || of_thread.empty(pump))?;
        Ok(Self { kind, shared })
    }

    /// Takes `bytes`: a log takes all of them or none, a console as many as there is room for. Never waits for the file.
    pub(crate) fn put(&self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        let was_empty = state.room.is_empty();
        let lost = state.room.put(bytes);
        drop(state);
        if was_empty {
            self.shared.changed.notify_all();
        }
        self.kind.count_lost(lost);
    }

    /// Waits until everything that was put is dealt with, but no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) {
        let state = self.shared.lock();
        let until = state.dealt_with + state.room.len() + state.room.under_way();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| state.dealt_with < until);
        // Done, or out of patience: either way the wait is over.
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        self.wait(LAST_WORDS);
    }
}

impl Shared {
    fn empty(&self, mut pump: Pump) {
        let mut taken = Vec::with_capacity(CAPACITY);
        loop {
            let mut state = self.lock();
            while state.room.is_empty() && !state.is_closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.room.is_empty() {
                return;
            }
            let missing = state.room.take(&mut taken);
            drop(state);
            pump.write(&taken, missing);
            let mut state = self.lock();
            state.dealt_with += state.room.dealt_with();
            drop(state);
            self.changed.notify_all();
        }
    }

    // The value under the lock is whole at any time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
