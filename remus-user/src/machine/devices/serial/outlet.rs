//! A way out for what the guest says: a buffer, and a thread that empties it into a file.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::BUFFER;

/// How long the end of an outlet may take a file that does not take what is left.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// See the module. Its thread ends when the outlet is dropped and the file has taken what is left, which is waited for
/// a while: the guest's last words are worth most.
pub(super) struct Outlet(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: Vec<u8>,
    dropped: u64,
    is_closed: bool,
    /// The thread has seen that.
    is_done: bool,
}

impl Outlet {
    /// `name` is for people.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub(super) fn new(name: String, file: File) -> Result<Self> {
        let waiting = Vec::with_capacity(BUFFER);
        let state = State { waiting, dropped: 0, is_closed: false, is_done: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let run = move || of_thread.empty(&name, &file);
        let thread = thread::Builder::new().name("console".to_owned()).spawn(run);
        thread.context("start the console's thread")?;
        Ok(Self(shared))
    }

    /// Takes bytes, or drops what there is no room for. Never waits for the file.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        let room = (BUFFER - state.waiting.len()).min(bytes.len());
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(&bytes[..room]);
        state.dropped += (bytes.len() - room) as u64;
        if was_empty {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        self.0.changed.notify_all();
        let waited = self.0.changed.wait_timeout_while(state, LAST_WORDS, |state| !state.is_done);
        // Over either way.
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    fn empty(&self, name: &str, mut file: &File) {
        let mut taken = Vec::with_capacity(BUFFER);
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.is_closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.waiting.is_empty() {
                state.is_done = true;
                self.changed.notify_all();
                return;
            }
            std::mem::swap(&mut state.waiting, &mut taken);
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            if dropped > 0 {
                tracing::warn!("console: {dropped} bytes found no room on their way to {name}");
            }
            if let Err(e) = file.write_all(&taken) {
                tracing::warn!("console: {} bytes are lost: {name}: {e}", taken.len());
            }
            taken.clear();
        }
    }

    // What is under the lock is whole at any time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_file_that_takes_nothing_costs_bytes_and_no_time() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let outlet = Outlet::new("a pipe".to_owned(), File::from(OwnedFd::from(writer))).unwrap();
        // More than a pipe and two buffers hold.
        for _ in 0..(3 * BUFFER / 1024) {
            outlet.put(&[b'x'; 1024]);
        }
        assert!(outlet.0.lock().dropped > 0);
        drop(outlet);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert!(read.len() >= BUFFER && read.len() < 3 * BUFFER, "{}", read.len());
    }

    #[test]
    fn bytes_come_out_raw_and_in_order_and_the_rest_of_them_at_the_end() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let outlet = Outlet::new("a pipe".to_owned(), File::from(OwnedFd::from(writer))).unwrap();
        for byte in 0..=255 {
            outlet.put(&[byte]);
        }
        drop(outlet);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, (0..=255).collect::<Vec<u8>>());
    }
}
