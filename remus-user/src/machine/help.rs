//! Work in a pause that the threads of parked vCPUs help with.
//!
//! Their cores have nothing else to do then, and they look out for the end of the pause anyway. It is the copying: one
//! core does not use all of the memory's bandwidth; two copy 4,096 pages in two thirds of the time.
//!
//! The pausing thread offers the work and does it itself. Who helps takes parts of it, so that nobody waits for a helper
//! that has not come: one that sleeps, or is not on a core of its own, does not. In the end the offer is withdrawn, and
//! the pausing thread waits for those that are still at a part of it.
//!
//! Invariant: what is offered outlives everybody who works on it. A helper says that it is in *before* it looks for the
//! offer; the offer is withdrawn *before* it is asked who is in; all of it sequentially consistent.

use std::{
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use crate::os::boot_now;

/// Work that any number of threads may do together: each call does parts of it until there is none left.
pub(super) type Work<'a> = &'a (dyn Fn() + Sync);

/// Where work is offered. One at a time.
#[derive(Default)]
pub(super) struct Help {
    /// A [`Work`] of the pausing thread, while it waits in [`share`](Self::share).
    offer: AtomicPtr<()>,
    inside: AtomicU32,
}

impl Help {
    /// Does `work`, with whoever comes. Nobody is at it any more on return.
    pub(super) fn share(&self, work: Work<'_>) {
        let offer = ptr::from_ref(&work).cast_mut().cast();
        let earlier = self.offer.swap(offer, SeqCst);
        assert!(earlier.is_null(), "one pause at a time");
        work();
        self.offer.store(ptr::null_mut(), SeqCst);
        while self.inside.load(SeqCst) != 0 {
            spin_loop();
        }
    }

    /// Looks out for work while `waits`, for as long as `span`, and helps with what there is; after that, for as long
    /// again.
    pub(super) fn lend_a_hand(&self, span: Duration, waits: impl Fn() -> bool) {
        let mut since = boot_now();
        while boot_now().since(since) < span {
            for _ in 0..64 {
                if !waits() {
                    return;
                }
                if self.help() {
                    since = boot_now();
                }
                spin_loop();
            }
        }
    }

    /// Helps with what is offered; whether there was anything.
    fn help(&self) -> bool {
        if self.offer.load(SeqCst).is_null() {
            return false;
        }
        self.inside.fetch_add(1, SeqCst);
        let offer = self.offer.load(SeqCst).cast::<Work<'static>>();
        let found = !offer.is_null();
        if found {
            // SAFETY: it was offered by `share`, which does not return, nor end the borrow of what it was given, before
            // `inside` is 0 again; the offer was seen after this thread was counted in. The lifetime is shortened to
            // that by calling at once and keeping nothing.
            let work = unsafe { *offer };
            work();
        }
        self.inside.fetch_sub(1, SeqCst);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    #[test]
    fn every_part_is_done_once_and_nobody_is_in_after_it() {
        let (help, done) = (Help::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| help.lend_a_hand(Duration::MAX, || !done.load(SeqCst)));
            }
            for round in 0..2000 {
                let parts: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
                let next = AtomicUsize::new(0);
                help.share(&|| {
                    while let Some(part) = parts.get(next.fetch_add(1, SeqCst)) {
                        part.fetch_add(1, SeqCst);
                    }
                });
                assert!(parts.iter().all(|part| part.load(SeqCst) == 1), "round {round}");
            }
            done.store(true, SeqCst);
        });
    }

    #[test]
    fn work_is_done_when_nobody_comes() {
        let count = AtomicUsize::new(0);
        Help::default().share(&|| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.load(SeqCst), 1);
    }
}
