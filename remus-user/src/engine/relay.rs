//! What the guest is given, on its way to the backup.
//!
//! The engine notes each frame that it gives to the guest, with the open epoch, and hands over what it has when it has
//! served the devices; the control task sends that as soon as it comes to it. A promoted backup gives the guest again
//! what is of epochs that were not committed, so that a client whose request died with the primary need not find that out
//! by its timers. See `wire::Inbound`.
//!
//! Nothing waits here. A frame for which there is no room is not passed on, which is as if the network had lost it, and
//! an epoch has room for no more than one message: what a guest is sent in bulk is not worth the link's time.
//!
//! Deliberately absent: retries, acknowledgements, and any order between this and checkpoints. The epoch says which of
//! them a frame is in.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
};

use remus_abi::{Epoch, Term};
use tokio::sync::Notify;

use crate::{
    observe::status,
    wire::{Inbound, InboundFrames},
};

/// The engine's end.
pub(crate) struct Relay {
    handover: Arc<Handover>,
    /// Noted, and not handed over yet.
    noted: InboundFrames,
    epoch: Epoch,
    /// Bytes that the frames of `epoch` may still take.
    left: usize,
    counters: status::Inbound,
}

/// The control task's end.
pub(crate) struct Relayed {
    handover: Arc<Handover>,
    /// What is sent now: its buffer is used again.
    message: Inbound,
}

struct Handover {
    /// Handed over, and not sent yet: no more than one message.
    ready: Mutex<InboundFrames>,
    bell: Notify,
}

pub(crate) fn relay(term: Term) -> (Relay, Relayed) {
    let room = || InboundFrames::with_capacity(InboundFrames::BYTES_MAX);
    let handover = Arc::new(Handover { ready: Mutex::new(room()), bell: Notify::new() });
    let relayed =
        Relayed { handover: Arc::clone(&handover), message: Inbound { term, frames: room() } };
    let counters = status::Inbound::default();
    (Relay { handover, noted: room(), epoch: Epoch::NONE, left: 0, counters }, relayed)
}

impl Relay {
    /// The guest goes on in a new term, of which nothing was noted yet.
    pub(super) fn begin_term(&mut self) {
        self.noted.clear();
        (self.epoch, self.left) = (Epoch::NONE, 0);
    }

    /// The guest was given `frame`, in this open epoch.
    pub(super) fn note(&mut self, epoch: Epoch, frame: &[u8]) {
        if self.epoch != epoch {
            (self.epoch, self.left) = (epoch, InboundFrames::BYTES_MAX);
        }
        let room = self.left.min(InboundFrames::BYTES_MAX - self.noted.bytes());
        match InboundFrames::bytes_of(frame.len()) {
            Some(bytes) if bytes <= room => {
                self.noted.push(epoch, frame);
                self.left -= bytes;
                self.counters.passed_on += 1;
            }
            Some(_) | None => self.counters.left_out += 1,
        }
    }

    /// Hands over what was noted, as far as it can be done at once; the rest with the next call.
    pub(super) fn hand_over(&mut self) {
        if self.noted.is_empty() {
            return;
        }
        let mut ready = match self.handover.ready.try_lock() {
            Ok(ready) => ready,
            Err(TryLockError::Poisoned(whole)) => whole.into_inner(),
            // The task is just taking what is there.
            Err(TryLockError::WouldBlock) => return,
        };
        if ready.is_empty() {
            mem::swap(&mut *ready, &mut self.noted);
        } else if ready.bytes() + self.noted.bytes() <= InboundFrames::BYTES_MAX {
            ready.append(&self.noted);
            self.noted.clear();
        }
        drop(ready);
        self.handover.bell.notify_one();
    }

    pub(super) fn counters(&self) -> status::Inbound {
        self.counters
    }
}

impl Relayed {
    /// From now on frames are of `term`; those of the one before are not sent any more.
    pub(crate) fn begin_term(&mut self, term: Term) {
        lock(&self.handover.ready).clear();
        self.message.term = term;
    }

    /// Waits for frames. Cancel safe: none are taken before it returns.
    pub(crate) async fn next(&mut self) -> &Inbound {
        loop {
            self.handover.bell.notified().await;
            self.message.frames.clear();
            mem::swap(&mut *lock(&self.handover.ready), &mut self.message.frames);
            if !self.message.frames.is_empty() {
                return &self.message;
            }
        }
    }
}

/// Whoever panicked with the lock left the frames whole: each change is a swap, or appends what is whole.
fn lock(ready: &Mutex<InboundFrames>) -> MutexGuard<'_, InboundFrames> {
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    fn sent(relayed: &mut Relayed) -> Vec<(u64, usize)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let message = runtime.block_on(relayed.next());
        message.frames.iter().map(|(epoch, frame)| (epoch.get(), frame.len())).collect()
    }

    #[test]
    fn what_is_noted_is_sent_in_order_and_once() {
        let (mut relay, mut relayed) = relay(Term::FIRST);
        relay.note(epoch(1), &[0; 60]);
        relay.hand_over();
        relay.note(epoch(1), &[0; 70]);
        relay.note(epoch(2), &[0; 80]);
        relay.hand_over();
        assert_eq!(sent(&mut relayed), [(1, 60), (1, 70), (2, 80)]);
        relay.hand_over();
        relay.note(epoch(2), &[0; 90]);
        relay.hand_over();
        assert_eq!(sent(&mut relayed), [(2, 90)]);
        assert_eq!(relay.counters(), status::Inbound { passed_on: 4, left_out: 0 });
    }

    #[test]
    fn an_epoch_takes_one_message_and_the_next_has_room_again() {
        let (mut relay, mut relayed) = relay(Term::FIRST);
        let flood = |relay: &mut Relay, of| {
            for _ in 0..1000 {
                relay.note(epoch(of), &[0; 1500]);
                relay.hand_over();
            }
        };
        flood(&mut relay, 1);
        let first = sent(&mut relayed).len();
        assert!((40..44).contains(&first), "{first}");
        flood(&mut relay, 1);
        flood(&mut relay, 2);
        assert_eq!(sent(&mut relayed), vec![(2, 1500); first]);
        let passed_on = 2 * first as u64;
        assert_eq!(relay.counters(), status::Inbound { passed_on, left_out: 3000 - passed_on });
        relay.note(epoch(3), &[0; 65_535]);
        assert_eq!(relay.counters().left_out, 3001 - passed_on);
    }

    #[test]
    fn while_nothing_is_sent_no_more_is_kept_than_two_messages() {
        let (mut relay, mut relayed) = relay(Term::FIRST);
        for n in 1..100 {
            relay.note(epoch(n), &[0; 30_000]);
            relay.hand_over();
        }
        assert_eq!(sent(&mut relayed), [(1, 30_000), (2, 30_000)]);
        relay.hand_over();
        assert_eq!(sent(&mut relayed), [(3, 30_000), (4, 30_000)]);
    }
}
