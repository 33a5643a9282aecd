use super::*;
use crate::names::VmName;
use crate::replication::{Detector, Suspicion};
use crate::wire::{Features, Hello, Refusal};
use proptest::prelude::*;
use std::time::Duration;

const WHOLE: Arrived = Arrived { pages: 1, state_len: 0, covers_ram: true };

fn me() -> Instance {
    Instance::new(9).unwrap()
}

fn nonce(n: u64) -> Nonce {
    Nonce::new(n).unwrap()
}

/// Terms up to `term`, in all of which `speaker` spoke.
fn spoken(speaker: u64, term: u32) -> Ancestry {
    (1..=term).fold(Ancestry::none(), |all, term| {
        all.spoken_in(TermId::new(Term::new(term).unwrap(), nonce(speaker)))
    })
}

/// What primary 5 says, which has spoken in every term before, or another, which has spoken in none.
fn hello(session: u64, primary: u64, term: u32) -> Hello {
    let before = term.saturating_sub(1).min(60);
    Hello {
        id: VmId::new(77).unwrap(),
        nonce: nonce(primary),
        ancestry: if primary == 5 { spoken(5, before) } else { Ancestry::none() },
        features: Features::OURS,
        vm: VmName::new("vm").unwrap(),
        session: Session::new(session).unwrap(),
        term: Term::new(term).unwrap(),
        ram_pages: 1,
        timing: Timing::default(),
        acks_to: None,
        shape: Vec::new(),
        cpu: Vec::new(),
    }
}

fn begin(session: u64, term: u32, epoch: u64, predecessor: u64) -> Begin {
    Begin {
        session: Session::new(session).unwrap(),
        term: Term::new(term).unwrap(),
        epoch: Epoch::new(epoch).unwrap(),
        predecessor: Epoch::new(predecessor).unwrap(),
        predecessor_digest: Digest(predecessor),
        sent: Moment(7),
        pages_max: 1,
        state_len: 0,
        reset: false,
    }
}

/// In these tests the chain's value after epoch n is n.
fn end(epoch: u64) -> End {
    End { epoch: Epoch::new(epoch).unwrap(), pages: 1, digest: Digest(epoch) }
}

/// Follows session 1 of primary 5 in term 1, with epoch 3 committed at `now`.
fn following(now: Moment) -> Backup {
    let mut backup = Backup::new(me(), Known::default());
    backup.handle_hello(&hello(1, 5, 1)).unwrap();
    backup.handle_attach(&Attach { session: Session::new(1).unwrap() }).unwrap();
    backup.handle_sync_pages().unwrap();
    backup.handle_begin(&begin(1, 1, 3, 0), Digest(0)).unwrap();
    let ack = backup.handle_end(now, &end(3), Digest(3), WHOLE).unwrap();
    assert_eq!((ack.epoch.get(), ack.digest, ack.sent), (3, Digest(3), Moment(7)));
    backup
}

fn suspicion(now: Moment) -> Suspicion {
    let mut detector = Detector::new(&Timing::default(), 1, now);
    detector.handle_closed(0);
    detector.handle_tick(now).unwrap()
}

#[test]
fn only_the_direct_successor_is_taken() {
    let backup = following(Moment(0));
    for wrong in [begin(1, 1, 5, 3), begin(1, 1, 3, 3), begin(1, 1, 4, 2), begin(1, 1, 4, 0)] {
        let refused = backup.clone().handle_begin(&wrong, Digest(3));
        assert_eq!(refused, Err(FollowError::NotTheSuccessor(wrong.epoch)), "{wrong:?}");
    }
    assert_eq!(
        backup.clone().handle_begin(&begin(2, 1, 4, 3), Digest(3)),
        Err(FollowError::NoSession)
    );
    let other_chain = backup.clone().handle_begin(&begin(1, 1, 4, 3), Digest(77));
    assert_eq!(other_chain, Err(FollowError::NotTheSuccessor(Epoch::new(4).unwrap())));
    assert_eq!(backup.clone().handle_begin(&begin(1, 1, 4, 3), Digest(3)), Ok(()));
}

#[test]
fn a_part_of_a_checkpoint_is_never_committed() {
    let mut backup = following(Moment(0));
    backup.handle_begin(&begin(1, 1, 4, 3), Digest(3)).unwrap();
    let four = Epoch::new(4).unwrap();
    for (end, chain, arrived) in [
        (end(4), Digest(5), WHOLE),
        (end(4), Digest(4), Arrived { pages: 0, ..WHOLE }),
        (end(4), Digest(4), Arrived { state_len: 1, ..WHOLE }),
        (end(5), Digest(5), WHOLE),
    ] {
        let refused = backup.clone().handle_end(Moment(1), &end, chain, arrived);
        assert_eq!(refused, Err(FollowError::NotWhole(four)));
    }
    backup.handle_session_lost();
    assert_eq!(backup.committed().map(|(_, epoch)| epoch.get()), Some(3));
}

#[test]
fn a_session_that_has_not_carried_every_page_commits_nothing() {
    let mut backup = Backup::new(me(), Known::default());
    backup.handle_hello(&hello(1, 5, 1)).unwrap();
    backup.handle_attach(&Attach { session: Session::new(1).unwrap() }).unwrap();
    backup.handle_begin(&begin(1, 1, 3, 0), Digest(0)).unwrap();
    let refused =
        backup.handle_end(Moment(0), &end(3), Digest(3), Arrived { covers_ram: false, ..WHOLE });
    assert_eq!(refused, Err(FollowError::PagesMissing(Epoch::new(3).unwrap())));
}

#[test]
fn the_image_survives_a_new_greeting_but_not_its_first_page() {
    let mut backup = following(Moment(0));
    backup.handle_session_lost();
    backup.handle_hello(&hello(2, 5, 1)).unwrap();
    backup.handle_attach(&Attach { session: Session::new(2).unwrap() }).unwrap();
    assert!(backup.committed().is_some());
    backup.handle_sync_pages().unwrap();
    assert_eq!(backup.poll_readiness(Moment(u64::MAX)), Readiness::Not(NotPromotable::NoImage));
}

#[test]
fn a_newer_term_of_the_primary_voids_the_image_before_it_is_answered() {
    let mut backup = following(Moment(0));
    let welcome = backup.handle_hello(&hello(2, 5, 2)).unwrap();
    assert_eq!((backup.newest().get(), backup.committed()), (2, None));
    assert_eq!(welcome.ancestry, spoken(5, 1));
    let outdated = backup.handle_hello(&hello(3, 5, 1)).unwrap_err();
    assert_eq!((outdated.why, outdated.newest.get()), (Refusal::OutdatedTerm, 2));
}

#[test]
fn a_second_primary_of_the_same_term_is_refused_even_after_the_first_is_gone() {
    let mut backup = following(Moment(0));
    backup.handle_session_lost();
    assert_eq!(backup.handle_hello(&hello(2, 6, 1)).unwrap_err().why, Refusal::OtherPrimary);
    assert!(backup.committed().is_some());
}

#[test]
fn a_strangers_newer_term_takes_neither_a_session_nor_an_image() {
    let mut backup = following(Moment(0));
    let before = backup.clone();
    assert_eq!(backup.handle_hello(&hello(2, 6, 2)).unwrap_err().why, Refusal::OtherPrimary);
    assert_eq!(backup, before);
    backup.handle_session_lost();
    let refused = backup.handle_hello(&hello(3, 6, 9)).unwrap_err();
    assert_eq!((refused.why, refused.newest), (Refusal::OtherPrimary, Term::FIRST));
    assert!(backup.committed().is_some());
    // One that syncs has no image yet, and is followed all the same.
    let mut backup = Backup::new(me(), Known::default());
    backup.handle_hello(&hello(1, 5, 1)).unwrap();
    assert_eq!(backup.handle_hello(&hello(2, 6, 2)).unwrap_err().why, Refusal::OtherPrimary);
    // Once it is gone there is nothing to take.
    backup.handle_session_lost();
    backup.handle_hello(&hello(2, 6, 2)).unwrap();
}

/// A host whose record says that it spoke by itself, as `nonce` in `term`.
fn that_spoke(n: u64, term: u32) -> Backup {
    let ancestry = Ancestry::none().spoken_in(TermId::new(Term::new(term).unwrap(), nonce(n)));
    let newest = Term::new(term).unwrap();
    let known = Known { id: VmId::new(77), newest, owner: Some(nonce(n)), ancestry };
    Backup::new(me(), known)
}

#[test]
fn two_that_spoke_without_knowing_of_each_other_are_split_whatever_the_numbers() {
    for (here, there) in [(1, 1), (1, 4), (4, 1)] {
        let mut backup = that_spoke(6, here);
        let before = backup.clone();
        let speaks = Hello { ancestry: spoken(5, there), ..hello(1, 5, there) };
        for hello in [speaks, hello(1, 5, there + 1)] {
            let refused = backup.handle_hello(&hello).unwrap_err();
            assert_eq!(refused.why, Refusal::Split);
            for word in [format!("term {here} (nonce "), format!("term {there} (nonce ")] {
                assert!(refused.text.contains(&word), "{}", refused.text);
            }
            assert!(refused.text.contains("remus clean vm --record"), "{}", refused.text);
            assert_eq!(refused.ancestry, Some(before.known().ancestry.clone()));
            assert_eq!(backup, before);
        }
    }
}

#[test]
fn a_host_that_spoke_follows_who_comes_from_its_term_and_nobody_else() {
    let mut backup = that_spoke(5, 1);
    // It has never spoken, and knows nothing of that term.
    let newcomer = backup.handle_hello(&hello(1, 6, 2)).unwrap_err();
    assert_eq!(newcomer.why, Refusal::OutdatedTerm);
    backup.handle_hello(&hello(2, 5, 2)).unwrap();
}

#[test]
fn another_vm_of_the_same_name_is_refused_by_its_id() {
    let other = |session, primary, term| Hello {
        id: VmId::new(78).unwrap(),
        ..hello(session, primary, term)
    };
    let mut backup = following(Moment(0));
    let refused = backup.handle_hello(&other(2, 6, 1)).unwrap_err();
    assert_eq!(refused.why, Refusal::OtherPrimary);
    let ids = format!("{} and {}", VmId::new(77).unwrap(), VmId::new(78).unwrap());
    let ids: Vec<_> = ids.split(" and ").collect();
    assert!(ids.iter().all(|id| refused.text.contains(id)), "{}", refused.text);
    // With nothing to keep, an id that is on record is enough.
    let known = backup.known().clone();
    let mut backup = Backup::new(me(), known);
    let refused = backup.handle_hello(&other(2, 6, 9)).unwrap_err();
    assert_eq!(refused.why, Refusal::OtherVm);
    assert!(refused.text.contains("remus clean vm --record"), "{}", refused.text);
    backup.handle_hello(&hello(2, 5, 1)).unwrap();
}

#[test]
fn a_promoted_host_tells_an_ancestor_from_a_split() {
    let Timing { lease, margin, .. } = Timing::default();
    let now = Moment(1) + lease + margin + Duration::from_nanos(1);
    let Promotion { promoted, .. } =
        following(Moment(1)).promote(now, suspicion(now), nonce(9)).unwrap();
    let speaks = |n, term| Hello { ancestry: spoken(n, term), ..hello(2, n, term) };
    for (hello, why, falls_silent) in [
        (speaks(5, 1), Refusal::Promoted, false),
        (hello(2, 6, 7), Refusal::Promoted, false),
        (speaks(6, 1), Refusal::Split, true),
        (speaks(6, 2), Refusal::Split, true),
        // It goes on from there without having been heard itself; and the old primary, which was told nothing.
        (hello(2, 5, 3), Refusal::Split, false),
        (Hello { id: VmId::new(78).unwrap(), ..speaks(6, 2) }, Refusal::Split, false),
    ] {
        assert_eq!(promoted.refuse(&hello).why, why, "{hello:?}");
        assert_eq!(promoted.must_fall_silent(&hello), falls_silent, "{hello:?}");
    }
}

#[test]
fn nothing_is_promoted_before_the_lease_is_over() {
    let Timing { lease, margin, .. } = Timing::default();
    let answered = Moment(1_000_000_000);
    let last = answered + lease + margin;
    let too_early = following(answered).promote(last, suspicion(last), nonce(9)).unwrap_err();
    assert_eq!(too_early.why, NotPromotable::Lease(last));
    let now = last + Duration::from_nanos(1);
    let taken = too_early.backup.promote(now, suspicion(now), nonce(9)).unwrap();
    assert_eq!((taken.of.get(), taken.epoch.get(), taken.fenced.term().get()), (1, 3, 2));
    assert_eq!(taken.promoted.refuse(&hello(2, 5, 1)).newest, taken.fenced.term());
    let own = TermId::new(taken.fenced.term(), nonce(9));
    assert_eq!(taken.ancestry, spoken(5, 1).ended_with(taken.epoch).spoken_in(own));
}

#[test]
fn a_goodbye_ends_without_promotion() {
    let mut backup = following(Moment(0));
    let epoch = Epoch::new(3).unwrap();
    let goodbye = Goodbye { term: Term::FIRST, epoch, why: crate::wire::GoodbyeWhy::PowerOff };
    backup.handle_goodbye(&goodbye).unwrap();
    let now = Moment(u64::MAX);
    assert_eq!(
        backup.promote(now, suspicion(now), nonce(9)).unwrap_err().why,
        NotPromotable::GuestEnded
    );
}

/// Anything a primary can put on the wire, near the values that mean something and at their limits.
#[derive(Clone, Debug)]
enum Said {
    Hello(u64, u64, u32),
    Attach(u64),
    SyncPages,
    Begin(Begin),
    Part,
    End(u64, u64, u32),
    Heartbeat(u32),
    Goodbye(u32),
    Lost,
}

fn said() -> impl Strategy<Value = Said> {
    let term = || prop_oneof![1u32..4, Just(Term::MAX.get())];
    let epoch = || prop_oneof![0u64..5, Just(Epoch::MAX.get() - 1), Just(Epoch::MAX.get())];
    let begin =
        (1u64..3, term(), epoch(), epoch()).prop_map(|(s, t, e, p)| Said::Begin(begin(s, t, e, p)));
    prop_oneof![
        2 => (1u64..3, 5u64..7, term()).prop_map(|(s, p, t)| Said::Hello(s, p, t)),
        2 => (1u64..3).prop_map(Said::Attach),
        1 => Just(Said::SyncPages),
        4 => begin,
        1 => Just(Said::Part),
        4 => (epoch(), epoch(), 0u32..2).prop_map(|(e, d, pages)| Said::End(e, d, pages)),
        1 => term().prop_map(Said::Heartbeat),
        1 => term().prop_map(Said::Goodbye),
        1 => Just(Said::Lost),
    ]
}

#[test]
fn a_heartbeat_of_an_engine_that_hangs_is_silence_once_there_is_an_image() {
    let detect = Timing::default().detect;
    let heartbeat =
        |engine_age| Heartbeat { term: Term::FIRST, seq: 1, sent: Moment(0), engine_age };
    let hung = heartbeat(Some(detect + Duration::from_millis(1)));
    let mut backup = following(Moment(0));
    let before = backup.clone();
    assert_eq!(backup.handle_heartbeat(Moment(50), &hung), Ok(None));
    assert_eq!(backup, before, "the lease is not renewed");
    assert!(backup.handle_heartbeat(Moment(50), &heartbeat(Some(detect))).unwrap().is_some());
    assert!(backup.handle_heartbeat(Moment(50), &heartbeat(None)).unwrap().is_some());
    // Nothing could be taken over yet.
    let mut fresh = Backup::new(me(), Known::default());
    fresh.handle_hello(&hello(1, 5, 1)).unwrap();
    assert!(fresh.handle_heartbeat(Moment(50), &hung).unwrap().is_some());
}

proptest! {
    #[test]
    fn no_order_and_no_value_of_messages_panics(messages in proptest::collection::vec(said(), 0..60)) {
        let mut backup = Backup::new(me(), Known::default());
        let mut committed = None;
        for message in messages {
            let before = backup.clone();
            let ok = match message {
                Said::Hello(session, primary, term) => backup.handle_hello(&hello(session, primary, term)).is_ok(),
                Said::Attach(n) => backup.handle_attach(&Attach { session: Session::new(n).unwrap() }).is_ok(),
                Said::SyncPages => backup.handle_sync_pages().is_ok(),
                Said::Begin(begin) => backup.handle_begin(&begin, begin.predecessor_digest).is_ok(),
                Said::Part => backup.handle_part().is_ok(),
                Said::End(epoch, digest, pages) => {
                    let end = End { epoch: Epoch::new(epoch).unwrap(), pages, digest: Digest(digest) };
                    let ack = backup.handle_end(Moment(1), &end, Digest(digest), WHOLE);
                    if let Ok(ack) = &ack {
                        committed = Some((ack.term, ack.epoch));
                        prop_assert_eq!(backup.committed(), committed);
                    }
                    ack.is_ok()
                }
                Said::Heartbeat(term) => {
                    let term = Term::new(term).unwrap();
                    backup.handle_heartbeat(Moment(1), &Heartbeat { term, seq: 0, sent: Moment(0), engine_age: None }).is_ok()
                }
                Said::Goodbye(term) => {
                    let (term, why) = (Term::new(term).unwrap(), crate::wire::GoodbyeWhy::Stopped);
                    backup.handle_goodbye(&Goodbye { term, epoch: Epoch::NONE, why }).is_ok()
                }
                Said::Lost => {
                    backup.handle_session_lost();
                    true
                }
            };
            prop_assert!(ok || backup == before, "what is refused changes nothing");
            prop_assert!(backup.committed().is_none() || backup.committed() == committed);
        }
        let now = Moment(u64::MAX);
        let was = backup.committed();
        if let Ok(promotion) = backup.promote(now, suspicion(now), nonce(9)) {
            prop_assert_eq!(was, Some((promotion.of, promotion.epoch)));
        }
    }
}
