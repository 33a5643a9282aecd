//! The commit ack as a datagram, for the program `ack` at the primary's replication link: its bytes, what makes
//! one genuine, and the maps through which the program and the controller speak.
//!
//! ```text
//!  0        4        6       8          16       20      24       32            40           48
//! ┌────────┬────────┬───────┬──────────┬────────┬───────┬────────┬─────────────┬────────────┐
//! │ "RmAk" │version │ 0     │ session  │ term   │ 0     │ epoch  │ sent, ns    │ SipHash-2-4│
//! │        │ u16    │ u16   │ u64      │ u32    │ u32   │ u64    │ u64         │ of 0..40   │
//! └────────┴────────┴───────┴──────────┴────────┴───────┴────────┴─────────────┴────────────┘
//! ```
//!
//! Little-endian, one UDP payload. It says what the `Ack` on the bulk connection says, a moment earlier; losing
//! it costs that moment. `sent` is the primary's own CLOCK_BOOTTIME from the checkpoint's `Begin`: from it runs
//! the lease.
//!
//! - Nothing of a datagram is believed before its tag holds under the session's key; only then is it compared
//!   with what the gate knows ([`Genuine::judge`]): the same term, an epoch that is new and below the open one,
//!   a moment that has been.
//! - Both judgements are pure, here, and the program's only ones: tests run them on the host.
//! - Words are written by one side: [`Trigger`] by the controller, [`Acked`] by the program under its flush lock.
//!
//! Deliberately absent: the digest (the backup compared it before it committed, and the controller compares the
//! one in the TCP ack), and any secrecy of what is said: only its origin is proven.

use core::fmt;

use crate::{Epoch, Stamp, Term, counters::counters, siphash::SipHash24};

/// Bytes of the UDP payload.
pub const DATAGRAM_LEN: usize = 48;
/// 64-bit words of the payload, the tag among them.
pub const DATAGRAM_WORDS: usize = DATAGRAM_LEN / 8;
/// Bytes that the tag is of.
const TAGGED_LEN: u64 = 40;
/// One more whenever a byte of the datagram changes its meaning.
pub const DATAGRAM_VERSION: u16 = 1;
/// Magic, version and zeros, as the first word of the payload.
const OPENING: u64 = u32::from_le_bytes(*b"RmAk") as u64 | (DATAGRAM_VERSION as u64) << 32;

/// The secret of a session, by which its backup proves a datagram. Random, of one session alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AckKey(pub [u64; 2]);

impl fmt::Debug for AckKey {
    /// Not its value: keys do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AckKey(..)")
    }
}

/// What a datagram says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckDatagram {
    pub session: u64,
    pub term: Term,
    pub epoch: Epoch,
    /// As it came in the checkpoint's `Begin`: ns of the primary's CLOCK_BOOTTIME.
    pub sent_ns: u64,
}

impl AckDatagram {
    /// The payload, tagged with `key`.
    pub fn encode(&self, key: AckKey) -> [u8; DATAGRAM_LEN] {
        let Self { session, term, epoch, sent_ns } = *self;
        let words = [OPENING, session, term.get().into(), epoch.get(), sent_ns];
        let mut bytes = [0; DATAGRAM_LEN];
        let tag = tag_of(key, &words);
        for (to, word) in
            bytes.as_chunks_mut::<8>().0.iter_mut().zip(words.into_iter().chain([tag]))
        {
            *to = word.to_le_bytes();
        }
        bytes
    }
}

/// What the words of a payload turn out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Something else, or of another version.
    Foreign,
    /// A datagram of another session.
    OtherSession,
    /// It names this session, and whoever made it does not have its key; or it was damaged.
    BadTag,
    /// Made by the session's backup.
    Genuine(Genuine),
}

/// A datagram whose tag held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Genuine {
    pub stamp: Stamp,
    pub sent_ns: u64,
}

/// Judges a payload, read as little-endian words, for `session`, whose key is `key`. The cheap comparisons come
/// first: whoever does not even know the session costs no hash.
#[inline(always)]
pub fn examine(words: &[u64; DATAGRAM_WORDS], session: u64, key: AckKey) -> Claim {
    let [opening, named, term, epoch, sent_ns, tag] = *words;
    if opening != OPENING {
        return Claim::Foreign;
    }
    if named != session {
        return Claim::OtherSession;
    }
    if tag_of(key, &[opening, named, term, epoch, sent_ns]) != tag {
        return Claim::BadTag;
    }
    // What does not fit was tagged by a peer that is broken.
    if term > Term::MAX.get() as u64 || epoch > Epoch::MAX.get() {
        return Claim::BadTag;
    }
    Claim::Genuine(Genuine { stamp: Stamp::from_bits(term << 40 | epoch), sent_ns })
}

/// What the gate knows when a datagram comes.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The epoch that the guest executes now.
    pub open: Stamp,
    /// The newest commit that the gate has heard of, from whomever.
    pub committed: Stamp,
    /// CLOCK_BOOTTIME, ns.
    pub now_ns: u64,
}

impl Genuine {
    /// Whether it may move the gate; else which refusal to count.
    ///
    /// # Errors
    /// The first that applies of: another term, not below the open epoch, nothing new, from the future.
    #[inline(always)]
    pub fn judge(self, known: Known) -> Result<(), AckCounter> {
        if self.stamp.term().get() != known.open.term().get() {
            return Err(AckCounter::OtherTerm);
        }
        if self.stamp.bits() >= known.open.bits() {
            return Err(AckCounter::NotBelowOpen);
        }
        if self.stamp.bits() <= known.committed.bits() {
            return Err(AckCounter::Stale);
        }
        if self.sent_ns > known.now_ns {
            return Err(AckCounter::FromTheFuture);
        }
        Ok(())
    }
}

#[inline(always)]
fn tag_of(key: AckKey, words: &[u64; 5]) -> u64 {
    let [a, b, c, d, e] = *words;
    SipHash24::new(key.0).word(a).word(b).word(c).word(d).word(e).finish(TAGGED_LEN, 0)
}

/// Words of the one value in the map `TRIGGER`. Only the controller writes them. It takes the session out before
/// it changes the others, and puts the new one in last; a mixture in between fits no datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Trigger {
    /// Whose datagrams count; 0 for none: every frame passes.
    Session = 0,
    /// The two words of its [`AckKey`].
    KeyLow = 1,
    KeyHigh = 2,
    /// The UDP port to which they come, in host order.
    Port = 3,
    /// How long after `sent` a release is allowed, ns.
    LeaseNs = 4,
}
pub const TRIGGER_WORDS: usize = 8;

/// Words of the one value in the map `ACKED`. Only the programs write them, holding the flush lock: `ack`, by which they
/// only grow, and `turn`, which zeroes them when a term ends. What may leave is the later of these and the controller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Acked {
    /// [`Stamp`] of the newest checkpoint that a datagram acked.
    Stamp = 0,
    /// CLOCK_BOOTTIME ns until which it lets the gate release.
    LeaseUntil = 1,
    /// CLOCK_BOOTTIME ns at which it came.
    At = 2,
}
pub const ACKED_WORDS: usize = 4;

counters! {
    /// Words of the map `ACKS`, one `u64` per CPU each.
    pub enum AckCounter, values AckCounters {
        Taken = "taken", Datagrams, Normal, "on whose word the kernel released by itself (`gate.release.trigger = \"kernel\"`)";
        OtherSession = "other_session", Datagrams, Normal, "that name another session, and were passed on to the host. Harmless: a session begins or ends";
        BadTag = "bad_tag", Datagrams, Alarm, "that name the session, and were not made with its key: somebody on the replication link tries";
        OtherTerm = "other_term", Datagrams, Alarm, "that are genuine, and of another term. Please report it";
        Stale = "stale", Datagrams, Normal, "that are genuine, and repeated or slower than the ack on the bulk connection. Harmless";
        NotBelowOpen = "not_below_open", Datagrams, Alarm, "that are genuine, and of an epoch that was not sealed. Please report it";
        FromTheFuture = "from_the_future", Datagrams, Alarm, "that are genuine, and carry a time that had not come. Please report it";
        LeftToController = "left_to_controller", Datagrams, Normal, "that are genuine, and were left to the controller, since the gate was busy or did not hold. Harmless";
    }
}
const _: () = assert!(AckCounter::WORDS == 32, "the map has another size: raise the gate's LAYOUT");

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    const KEY: AckKey = AckKey([7, 8]);
    const SESSION: u64 = 0x0102_0304_0506_0708;

    fn datagram() -> AckDatagram {
        AckDatagram {
            session: SESSION,
            term: Term::new(3).unwrap(),
            epoch: Epoch::new(9).unwrap(),
            sent_ns: 1_000,
        }
    }

    fn words(bytes: &[u8; DATAGRAM_LEN]) -> [u64; DATAGRAM_WORDS] {
        let mut words = [0; DATAGRAM_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        words
    }

    fn stamp(term: u32, epoch: u64) -> Stamp {
        Stamp::new(Term::new(term).unwrap(), Epoch::new(epoch).unwrap())
    }

    fn judged(genuine: Genuine) -> Result<(), AckCounter> {
        genuine.judge(Known { open: stamp(3, 11), committed: stamp(3, 8), now_ns: 2_000 })
    }

    #[test]
    fn what_the_backup_says_is_what_the_gate_hears() {
        let claim = examine(&words(&datagram().encode(KEY)), SESSION, KEY);
        assert_eq!(claim, Claim::Genuine(Genuine { stamp: stamp(3, 9), sent_ns: 1_000 }));
    }

    #[test]
    fn the_bytes_of_version_1_are_these() {
        let bytes = datagram().encode(KEY);
        assert_eq!(bytes[..8], *b"RmAk\x01\0\0\0");
        assert_eq!(bytes[8..16], SESSION.to_le_bytes());
        assert_eq!(bytes[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..32], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..40], 1_000u64.to_le_bytes());
    }

    #[test]
    fn a_datagram_with_any_bit_changed_is_not_genuine() {
        let good = datagram().encode(KEY);
        for bit in 0..DATAGRAM_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let expected = match bit / 64 {
                0 => Claim::Foreign,
                1 => Claim::OtherSession,
                _ => Claim::BadTag,
            };
            assert_eq!(examine(&words(&bad), SESSION, KEY), expected, "bit {bit}");
        }
    }

    #[test]
    fn another_key_makes_another_tag() {
        for other in [AckKey([7, 9]), AckKey([6, 8]), AckKey([8, 7])] {
            assert_eq!(examine(&words(&datagram().encode(other)), SESSION, KEY), Claim::BadTag);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_even_with_a_tag_that_holds() {
        let mut bytes = datagram().encode(KEY);
        bytes[20] = 1;
        let mut changed = words(&bytes);
        changed[5] = tag_of(KEY, changed[..5].first_chunk().unwrap());
        assert_eq!(examine(&changed, SESSION, KEY), Claim::BadTag);
    }

    #[test]
    fn only_a_new_epoch_of_this_term_below_the_open_one_moves_the_gate() {
        let genuine = |term, epoch| Genuine { stamp: stamp(term, epoch), sent_ns: 1_000 };
        assert_eq!(judged(genuine(3, 9)), Ok(()));
        assert_eq!(judged(genuine(3, 10)), Ok(()));
        assert_eq!(judged(genuine(3, 8)), Err(AckCounter::Stale));
        assert_eq!(judged(genuine(3, 11)), Err(AckCounter::NotBelowOpen));
        assert_eq!(judged(genuine(2, 9)), Err(AckCounter::OtherTerm));
        assert_eq!(judged(genuine(4, 1)), Err(AckCounter::OtherTerm));
    }

    #[test]
    fn an_echo_of_a_moment_to_come_is_refused() {
        let genuine = Genuine { stamp: stamp(3, 9), sent_ns: 2_001 };
        assert_eq!(judged(genuine), Err(AckCounter::FromTheFuture));
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{KEY:?}"), "AckKey(..)");
    }
}
