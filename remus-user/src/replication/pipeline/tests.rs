use super::*;
use crate::wire::{Ancestry, Features, Nonce};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn session(n: u64) -> Session {
    Session::new(n).unwrap()
}

fn welcome(n: u64, backup: u64) -> Welcome {
    let backup = Instance::new(backup).unwrap();
    let ancestry = Ancestry::none();
    Welcome { session: session(n), features: Features::OURS, backup, ancestry }
}

fn ack(n: u64, epoch: Epoch) -> Ack {
    let (term, digest) = (Term::FIRST, Digest(epoch.get()));
    Ack { session: session(n), term, epoch, digest, sent: Moment(0) }
}

fn start() -> Pipeline {
    Pipeline::start_shut(Fenced::first_start(), Policy::new(&Timing::default()), Moment(0))
}

/// Seals and hands to the sender, in session `n`.
fn seal(pipeline: &mut Pipeline, n: u64, now: Moment) -> Epoch {
    let sealed = pipeline.seal(now);
    let epoch = sealed.checkpoint.epoch();
    pipeline.handle_sent(session(n), epoch, Digest(epoch.get()));
    epoch
}

/// Protected in session 1, epoch 1 committed at 0.
fn protected() -> Pipeline {
    let mut pipeline = start();
    pipeline.handle_welcome(session(1), &welcome(1, 9)).unwrap();
    assert_eq!(pipeline.handle_sync_round(0), SyncNext::Seal);
    let first = seal(&mut pipeline, 1, Moment(0));
    pipeline.handle_ack(Moment(0), &ack(1, first)).unwrap().unwrap();
    assert_eq!(pipeline.standing(), Standing::Protected);
    pipeline
}

#[test]
fn a_full_pipeline_does_not_seal_until_an_ack_makes_room() {
    let mut pipeline = protected();
    assert_eq!(pipeline.poll_seal(Moment(0)), SealWhen::At(Moment(25 * MS)));
    let two = seal(&mut pipeline, 1, Moment(25 * MS));
    let three = seal(&mut pipeline, 1, Moment(50 * MS));
    assert_eq!(pipeline.poll_seal(Moment(75 * MS)), SealWhen::NotYet);
    let committed = pipeline.handle_ack(Moment(76 * MS), &ack(1, two)).unwrap().unwrap();
    assert_eq!(committed.stamp(), Stamp::new(Term::FIRST, two));
    assert_eq!(pipeline.poll_seal(Moment(76 * MS)), SealWhen::Now);
    assert_eq!(
        (pipeline.acked(), pipeline.captured(), pipeline.open()),
        (two, three, three.next())
    );
}

#[test]
fn late_seals_keep_to_the_grid_and_do_not_bunch_up() {
    let mut pipeline = protected();
    let mut at = |now: u64| {
        let epoch = seal(&mut pipeline, 1, Moment(now * MS));
        pipeline.handle_ack(Moment(now * MS), &ack(1, epoch)).unwrap();
        pipeline.poll_seal(Moment(now * MS))
    };
    assert_eq!(at(27), SealWhen::At(Moment(50 * MS)));
    assert_eq!(at(53), SealWhen::At(Moment(75 * MS)));
    assert_eq!(at(170), SealWhen::At(Moment(195 * MS)), "a whole epoch late: a new grid");
}

#[test]
fn waiting_output_seals_early_where_the_policy_says_so() {
    let mut pipeline = protected();
    pipeline.handle_output_waiting(Moment(5 * MS));
    assert_eq!(pipeline.poll_seal(Moment(6 * MS)), SealWhen::Now);
}

#[test]
fn an_ack_of_what_was_not_sent_commits_nothing() {
    let mut pipeline = protected();
    let two = pipeline.seal(Moment(25 * MS)).checkpoint.epoch();
    let now = Moment(30 * MS);
    assert_eq!(
        pipeline.handle_ack(now, &ack(1, two)),
        Err(AckError::NotSent(two)),
        "not encoded yet"
    );
    pipeline.handle_sent(session(1), two, Digest(2));
    let mut other = ack(1, two);
    other.digest = Digest(99);
    assert_eq!(pipeline.handle_ack(now, &other), Err(AckError::Digest(two)));
    let beyond = two.next();
    assert_eq!(pipeline.handle_ack(now, &ack(1, beyond)), Err(AckError::NotSent(beyond)));
    assert_eq!(pipeline.handle_ack(now, &ack(2, two)), Err(AckError::OtherSession(session(2))));
    let term = Term::FIRST.next();
    assert_eq!(
        pipeline.handle_ack(now, &Ack { term, ..ack(1, two) }),
        Err(AckError::OtherTerm(term))
    );
    assert_eq!(pipeline.acked(), Epoch::FIRST);
    assert!(pipeline.handle_ack(now, &ack(1, two)).unwrap().is_some());
    assert_eq!(pipeline.handle_ack(now, &ack(1, two)), Ok(None), "said twice");
}

#[test]
fn a_lost_session_stalls_and_its_late_acks_commit_nothing() {
    let mut pipeline = protected();
    let two = seal(&mut pipeline, 1, Moment(25 * MS));
    pipeline.handle_session_lost();
    assert_eq!(pipeline.standing(), Standing::Stalled);
    assert_eq!(pipeline.handle_ack(Moment(26 * MS), &ack(1, two)), Err(AckError::NoSession));
    assert_eq!(pipeline.poll_seal(Moment(90 * MS)), SealWhen::NotYet);
    pipeline.handle_welcome(session(2), &welcome(2, 9)).unwrap();
    assert_eq!(
        pipeline.handle_ack(Moment(99 * MS), &ack(1, two)),
        Err(AckError::OtherSession(session(1)))
    );
    pipeline.handle_sync_round(0);
    let sealed = pipeline.seal(Moment(100 * MS));
    assert_eq!((sealed.predecessor, sealed.is_first), (Epoch::NONE, true));
    assert_eq!(sealed.checkpoint.epoch(), two.next());
}

#[test]
fn another_backup_is_not_taken_beside_one_that_may_be_promoted() {
    let mut pipeline = protected();
    pipeline.handle_session_lost();
    let bound = Instance::new(9).unwrap();
    let refused = pipeline.handle_welcome(session(2), &welcome(2, 8));
    assert_eq!(refused, Err(SessionError::OtherBackup { bound }));
    pipeline.run_unprotected(Fenced::by_operator(pipeline.term(), "backup-host"), Moment(0));
    assert!(pipeline.gate_is_open());
    pipeline.handle_welcome(session(3), &welcome(3, 8)).unwrap();
}

#[test]
fn holding_begins_in_the_pause_of_the_first_whole_checkpoint() {
    let policy = Policy::new(&Timing::default());
    let mut pipeline = Pipeline::start_unprotected(Fenced::first_start(), policy, Moment(0));
    pipeline.handle_welcome(session(1), &welcome(1, 9)).unwrap();
    assert_eq!(pipeline.handle_sync_round(policy.sync_pages_max + 1), SyncNext::Round);
    assert!(pipeline.gate_is_open());
    assert_eq!(pipeline.handle_sync_round(10), SyncNext::Seal);
    let sealed = pipeline.seal(Moment(0));
    assert!(sealed.is_first && !pipeline.gate_is_open());
    pipeline.handle_session_lost();
    assert_eq!(pipeline.standing(), Standing::Stalled, "that checkpoint may be committed");
}

#[test]
fn a_newer_term_stops_it_for_good() {
    let mut pipeline = protected();
    let ours = pipeline.ancestry().clone();
    assert_eq!(pipeline.handle_newer_term(&ours), Relation::Same);
    let newer = TermId::new(Term::FIRST.next(), Nonce::new(5).unwrap());
    assert_eq!(pipeline.handle_newer_term(&ours.spoken_in(newer)), Relation::Descendant);
    assert_eq!(pipeline.standing(), Standing::Stopped);
    assert_eq!(pipeline.handle_welcome(session(2), &welcome(2, 9)), Err(SessionError::NotNow));
}

#[test]
fn in_a_split_the_guest_falls_silent_and_does_not_end() {
    let nonce = |n| Nonce::new(n).unwrap();
    let heard_in = |term, n| Ancestry::none().spoken_in(TermId::new(term, nonce(n)));
    let policy = Policy::new(&Timing::default());
    let open = Pipeline::start_unprotected(Fenced::first_start(), policy, Moment(0))
        .in_line(nonce(7), Ancestry::none());
    for theirs in [heard_in(Term::FIRST, 8), heard_in(Term::FIRST.next(), 8)] {
        for speaks in [true, false] {
            let mut pipeline = open.clone();
            let relation = match speaks {
                true => pipeline.handle_newer_term(&theirs),
                false => pipeline.handle_refused(&theirs),
            };
            assert_eq!(relation, Relation::Split);
            assert!(!pipeline.gate_is_open());
            assert_eq!(pipeline.standing(), Standing::Waiting);
            // Once the other one's state is given up, this guest is protected as any other.
            pipeline.handle_welcome(session(1), &welcome(1, 9)).unwrap();
        }
        let mut pipeline = open.clone();
        let welcome = Welcome { ancestry: theirs, ..welcome(1, 9) };
        let refused = pipeline.handle_welcome(session(1), &welcome).unwrap_err();
        assert!(matches!(refused, SessionError::Split { .. }), "{refused}");
        assert!(!pipeline.gate_is_open());
    }
    // A record of a descendant is no speaker: this may be the last copy.
    let mut pipeline = open.clone();
    let newer = TermId::new(Term::FIRST.next(), nonce(8));
    let theirs = open.ancestry().clone().spoken_in(newer);
    assert_eq!(pipeline.handle_refused(&theirs), Relation::Descendant);
    assert_eq!(pipeline.standing(), Standing::Waiting);
    assert_eq!(pipeline.handle_newer_term(&theirs), Relation::Descendant);
    assert_eq!(pipeline.standing(), Standing::Stopped);
}

#[test]
fn the_goodbye_waits_for_the_last_commit() {
    let mut pipeline = protected();
    let two = seal(&mut pipeline, 1, Moment(0));
    pipeline.handle_guest_ended(GoodbyeWhy::PowerOff);
    assert_eq!(pipeline.poll_goodbye(), None);
    assert!(pipeline.handle_ack(Moment(1), &ack(1, two)).unwrap().is_some());
    assert_eq!(pipeline.poll_goodbye().map(|goodbye| goodbye.epoch), Some(two));
    pipeline.handle_goodbye_answered();
    assert_eq!(pipeline.standing(), Standing::Stopped);
}

#[test]
#[should_panic(expected = "released")]
fn releasing_what_is_not_acked_is_a_bug() {
    protected().handle_released(Epoch::new(2).unwrap());
}

proptest! {
    /// The invariants are asserted inside; here everything is thrown at them.
    #[test]
    fn no_ack_and_no_order_of_events_breaks_an_invariant(
        events in proptest::collection::vec((0u8..9, 0u64..6, 0u64..4, 0u64..4), 0..80)
    ) {
        let mut pipeline = start();
        let mut now = 0;
        for (event, epoch, session_asked, digest) in events {
            now += 10 * MS;
            let acked = pipeline.acked();
            let asked = session(session_asked + 1);
            match event {
                0 => _ = pipeline.handle_welcome(asked, &welcome(session_asked + 1, 9)),
                1 => _ = pipeline.handle_sync_round(usize::from(digest == 0) << 20),
                2 | 3 if pipeline.poll_seal(Moment(now)) == SealWhen::Now => {
                    let at = pipeline.session().unwrap().get();
                    seal(&mut pipeline, at, Moment(now));
                }
                2 | 3 => {}
                4 | 5 => {
                    let mut ack = ack(session_asked + 1, Epoch::new(epoch).unwrap());
                    if digest == 0 {
                        ack.digest = Digest(999);
                    }
                    let in_session = pipeline.session() == Some(asked);
                    let committed = pipeline.handle_ack(Moment(now), &ack);
                    prop_assert!(in_session || committed.is_err());
                    if let Ok(Some(committed)) = committed {
                        prop_assert!(committed.stamp().epoch() > acked && digest != 0);
                    }
                }
                6 => pipeline.handle_released(pipeline.acked()),
                7 => pipeline.handle_session_lost(),
                _ => pipeline.handle_gate_filling(Moment(now)),
            }
            prop_assert!(pipeline.acked() >= acked);
        }
    }
}
