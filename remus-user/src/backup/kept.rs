//! What the guest was given after the newest committed checkpoint, as far as the primary has passed it on.
//!
//! The guest is given these frames again, should it go on from that checkpoint. They are kept beside the image, and no
//! longer than the image: frames of a committed epoch go, and so do those of an older term.

use remus_abi::{Epoch, Term};

use crate::wire::{Inbound, InboundFrames};

/// Most bytes that are kept: a primary has few epochs under way, and sends a message's worth of each.
const BYTES_MAX: usize = 16 * InboundFrames::BYTES_MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KeptFrames {
    term: Term,
    frames: InboundFrames,
}

impl KeptFrames {
    /// Keeps what arrived, unless that is too much.
    pub(super) fn take(&mut self, inbound: &Inbound) {
        let Inbound { term, frames } = inbound;
        if *term != self.term {
            self.term = *term;
            self.frames.clear();
        }
        if self.frames.bytes() + frames.bytes() <= BYTES_MAX {
            self.frames.append(frames);
        }
    }

    /// A checkpoint is committed: the guest remembers what it was given until then.
    pub(super) fn commit(&mut self, epoch: Epoch) {
        self.frames.drop_until(epoch);
    }

    /// What a guest that goes on from this checkpoint is to be given again, in its order.
    pub(super) fn after(&self, term: Term, epoch: Epoch) -> impl Iterator<Item = &[u8]> + Clone {
        let is_ours = self.term == term;
        let all = self.frames.iter().filter(move |(of, _)| is_ours && *of > epoch);
        all.map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    fn of(term: Term, epochs: &[u64]) -> Inbound {
        let mut frames = InboundFrames::default();
        epochs.iter().for_each(|n| frames.push(epoch(*n), &n.to_le_bytes()));
        Inbound { term, frames }
    }

    fn after(kept: &KeptFrames, term: Term, n: u64) -> Vec<u64> {
        let number = |frame: &[u8]| u64::from_le_bytes(frame.try_into().unwrap());
        kept.after(term, epoch(n)).map(number).collect()
    }

    #[test]
    fn only_what_the_checkpoint_does_not_know_is_given_again() {
        let mut kept = KeptFrames::default();
        kept.take(&of(Term::FIRST, &[1, 1, 2]));
        kept.take(&of(Term::FIRST, &[3, 4]));
        kept.commit(epoch(2));
        assert_eq!(kept.frames.iter().count(), 2);
        assert_eq!(after(&kept, Term::FIRST, 2), [3, 4]);
        // It may arrive after the checkpoint that has it.
        kept.take(&of(Term::FIRST, &[2, 5]));
        assert_eq!(after(&kept, Term::FIRST, 2), [3, 4, 5]);
        assert_eq!(after(&kept, Term::FIRST, 4), [5]);
    }

    #[test]
    fn another_term_is_another_guest() {
        let mut kept = KeptFrames::default();
        kept.take(&of(Term::FIRST, &[7]));
        assert_eq!(after(&kept, Term::FIRST.next(), 0), [0; 0]);
        kept.take(&of(Term::FIRST.next(), &[1]));
        assert_eq!(after(&kept, Term::FIRST.next(), 0), [1]);
    }

    #[test]
    fn a_primary_cannot_fill_memory() {
        let mut kept = KeptFrames::default();
        let mut frames = InboundFrames::default();
        frames.push(epoch(9), &[0; 60_000]);
        let much = Inbound { term: Term::FIRST, frames };
        (0..100).for_each(|_| kept.take(&much));
        assert_eq!(after_count(&kept), 17);
        kept.commit(epoch(9));
        kept.take(&much);
        assert_eq!(kept.frames.iter().count(), 1);
    }

    fn after_count(kept: &KeptFrames) -> usize {
        kept.after(Term::FIRST, Epoch::NONE).count()
    }
}
