//! Where device threads stand in a pause.
//!
//! A thread beside the one that owns the machine touches guest RAM and devices only in its *turn*. Whoever pauses the
//! guest parks the threads: it waits for the turns that are under way, all of them short, and gives none until the
//! pause is over. Whoever takes the marks of written pages does the same, so that a mark is never taken between a
//! write and its being marked.
//!
//! Invariants: while parked no turn is under way; after [`Parking::shut`] none is given ever again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module. Free of cost, but for an uncontended lock, where there are no such threads.
#[derive(Default)]
pub(in crate::machine) struct Parking {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    turns: u32,
    /// Threads that wait for a turn: whom there is none to wake, no system call is made for.
    waiting: u32,
    is_parked: bool,
    is_shut: bool,
}

/// The right to touch guest RAM and devices, until it is dropped.
pub(in crate::machine) struct Turn<'a>(&'a Parking);

impl Parking {
    /// Waits for a turn; `None` when there will be none any more.
    pub(in crate::machine) fn enter(&self) -> Option<Turn<'_>> {
        let mut state = self.lock();
        state.waiting += 1;
        while state.is_parked && !state.is_shut {
            state = self.wait(state);
        }
        state.waiting -= 1;
        if state.is_shut {
            return None;
        }
        state.turns += 1;
        Some(Turn(self))
    }

    /// Waits until no turn is under way, and gives none until [`resume`](Self::resume).
    pub(in crate::machine) fn park(&self) {
        let mut state = self.lock();
        assert!(!state.is_parked, "parked twice");
        state.is_parked = true;
        while state.turns > 0 {
            state = self.wait(state);
        }
    }

    /// Gives turns again.
    pub(in crate::machine) fn resume(&self) {
        let mut state = self.lock();
        state.is_parked = false;
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Gives no turn any more.
    pub(in crate::machine) fn shut(&self) {
        self.lock().is_shut = true;
        self.changed.notify_all();
    }

    // What is under the lock is whole at any time: a panic elsewhere does not harm it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.turns -= 1;
        if state.turns == 0 && state.is_parked {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn nobody_has_a_turn_while_parked_and_all_go_on_after() {
        let parking = Arc::new(Parking::default());
        let count = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (parking, count) = (Arc::clone(&parking), Arc::clone(&count));
                thread::spawn(move || {
                    while let Some(_turn) = parking.enter() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            parking.park();
            let before = count.load(Ordering::Relaxed);
            thread::sleep(Duration::from_micros(200));
            assert_eq!(count.load(Ordering::Relaxed), before);
            parking.resume();
            while count.load(Ordering::Relaxed) == before {
                thread::yield_now();
            }
        }
        // Threads that stand end too.
        parking.park();
        parking.shut();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(parking.enter().is_none());
    }
}
