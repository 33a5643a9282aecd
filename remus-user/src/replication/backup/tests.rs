use super::*;
use crate::names::VmName;
use crate::replication::Detector;
use proptest::prelude::*;
use std::time::Duration;

const WHOLE: Arrived = Arrived { pages: 1, state_len: 0, covers_ram: true };

fn me() -> Instance {
    Instance::new(9).unwrap()
}

fn hello(session: u64, primary: u64, term: u32) -> Hello {
    Hello {
        features: Features::OURS,
        vm: VmName::new("vm").unwrap(),
        session: Session::new(session).unwrap(),
        primary: Instance::new(primary).unwrap(),
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
    let mut backup = Backup::new(me(), Term::NONE, None);
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
    let mut backup = Backup::new(me(), Term::NONE, None);
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
    assert_eq!((welcome.newest.get(), backup.committed()), (2, None));
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
    let mut backup = Backup::new(me(), Term::NONE, None);
    backup.handle_hello(&hello(1, 5, 1)).unwrap();
    assert_eq!(backup.handle_hello(&hello(2, 6, 2)).unwrap_err().why, Refusal::OtherPrimary);
    // Once it is gone there is nothing to take.
    backup.handle_session_lost();
    backup.handle_hello(&hello(2, 6, 2)).unwrap();
}

#[test]
fn nothing_is_promoted_before_the_lease_is_over() {
    let Timing { lease, margin, .. } = Timing::default();
    let answered = Moment(1_000_000_000);
    let last = answered + lease + margin;
    let too_early = following(answered).promote(last, suspicion(last)).unwrap_err();
    assert_eq!(too_early.why, NotPromotable::Lease(last));
    let now = last + Duration::from_nanos(1);
    let taken = too_early.backup.promote(now, suspicion(now)).unwrap();
    assert_eq!((taken.of.get(), taken.epoch.get(), taken.fenced.term().get()), (1, 3, 2));
    assert_eq!(taken.promoted.refuse().newest, taken.fenced.term());
}

#[test]
fn a_goodbye_ends_without_promotion() {
    let mut backup = following(Moment(0));
    let epoch = Epoch::new(3).unwrap();
    let goodbye = Goodbye { term: Term::FIRST, epoch, why: crate::wire::GoodbyeWhy::PowerOff };
    backup.handle_goodbye(&goodbye).unwrap();
    let now = Moment(u64::MAX);
    assert_eq!(backup.promote(now, suspicion(now)).unwrap_err().why, NotPromotable::GuestEnded);
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
    let mut fresh = Backup::new(me(), Term::NONE, None);
    fresh.handle_hello(&hello(1, 5, 1)).unwrap();
    assert!(fresh.handle_heartbeat(Moment(50), &hung).unwrap().is_some());
}

proptest! {
    #[test]
    fn no_order_and_no_value_of_messages_panics(messages in proptest::collection::vec(said(), 0..60)) {
        let mut backup = Backup::new(me(), Term::NONE, None);
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
        if let Ok(promotion) = backup.promote(now, suspicion(now)) {
            prop_assert_eq!(was, Some((promotion.of, promotion.epoch)));
        }
    }
}
