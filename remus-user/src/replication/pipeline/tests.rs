use proptest::prelude::*;

use super::*;
use crate::{
    replication::stream::AckError,
    wire::{Ack, Ancestry, Digest, Features, GoodbyeWhy, Nonce, TermId},
};

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

/// Takes an ack, and tells nobody of the commits.
fn take(pipeline: &mut Pipeline, now: Moment, ack: &Ack) -> Result<Option<Stamp>, AckError> {
    let acked = pipeline.handle_ack(now, ack, |_, _| {})?;
    Ok(acked.map(|acked| acked.committed.stamp()))
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
    take(&mut pipeline, Moment(0), &ack(1, first)).unwrap().unwrap();
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
    let committed = take(&mut pipeline, Moment(76 * MS), &ack(1, two)).unwrap();
    assert_eq!(committed, Some(Stamp::new(Term::FIRST, two)));
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
        take(&mut pipeline, Moment(now * MS), &ack(1, epoch)).unwrap();
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
        take(&mut pipeline, now, &ack(1, two)),
        Err(AckError::NotSent(two)),
        "not encoded yet"
    );
    pipeline.handle_sent(session(1), two, Digest(2));
    let mut other = ack(1, two);
    other.digest = Digest(99);
    assert_eq!(take(&mut pipeline, now, &other), Err(AckError::Digest(two)));
    let beyond = two.next();
    assert_eq!(take(&mut pipeline, now, &ack(1, beyond)), Err(AckError::NotSent(beyond)));
    assert_eq!(take(&mut pipeline, now, &ack(2, two)), Err(AckError::OtherSession(session(2))));
    let term = Term::FIRST.next();
    assert_eq!(
        take(&mut pipeline, now, &Ack { term, ..ack(1, two) }),
        Err(AckError::OtherTerm(term))
    );
    assert_eq!(pipeline.acked(), Epoch::FIRST);
    assert!(take(&mut pipeline, now, &ack(1, two)).unwrap().is_some());
    assert_eq!(take(&mut pipeline, now, &ack(1, two)), Ok(None), "said twice");
}

#[test]
fn a_lost_session_stalls_and_its_late_acks_commit_nothing() {
    let mut pipeline = protected();
    let two = seal(&mut pipeline, 1, Moment(25 * MS));
    pipeline.handle_session_lost();
    assert_eq!(pipeline.standing(), Standing::Stalled);
    assert_eq!(take(&mut pipeline, Moment(26 * MS), &ack(1, two)), Err(AckError::NoSession));
    assert_eq!(pipeline.poll_seal(Moment(90 * MS)), SealWhen::NotYet);
    pipeline.handle_welcome(session(2), &welcome(2, 9)).unwrap();
    assert_eq!(
        take(&mut pipeline, Moment(99 * MS), &ack(1, two)),
        Err(AckError::OtherSession(session(1)))
    );
    pipeline.handle_sync_round(0);
    let sealed = pipeline.seal(Moment(100 * MS));
    assert_eq!((sealed.predecessor, sealed.next.is_first()), (Epoch::NONE, true));
    assert_eq!(sealed.checkpoint.epoch(), two.next());
}

#[test]
fn another_backup_is_not_taken_beside_one_that_may_be_promoted() {
    let mut pipeline = protected();
    pipeline.handle_session_lost();
    let bound = Instance::new(9).unwrap();
    let refused = pipeline.handle_welcome(session(2), &welcome(2, 8));
    assert_eq!(refused, Err(SessionError::OtherBackup { bound }));
    pipeline.run_unprotected(
        Fenced::by_operator(pipeline.term(), "backup-host").unwrap(),
        Policy::new(&Timing::default()),
        Moment(0),
    );
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
    assert!(sealed.next.is_first() && !pipeline.gate_is_open());
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
fn each_commit_is_told_with_the_time_since_its_seal_and_released_once() {
    let mut pipeline = protected();
    assert!(pipeline.handle_flushed(Moment(0)).is_some());
    let two = seal(&mut pipeline, 1, Moment(25 * MS));
    let three = seal(&mut pipeline, 1, Moment(50 * MS));
    assert_eq!(pipeline.unacked_for(Moment(60 * MS)), Some(Duration::from_millis(35)));
    let mut told = Vec::new();
    let acked = pipeline.handle_ack(Moment(70 * MS), &ack(1, three), |stamp, since_seal| {
        told.push((stamp.epoch(), since_seal));
    });
    let lease = Timing::default().lease;
    let until = acked.unwrap().unwrap().lease_until.map(|lease| lease.until());
    assert_eq!(until, Some(Moment(0) + lease));
    assert_eq!(told, [(two, Duration::from_millis(45)), (three, Duration::from_millis(20))]);
    assert!(pipeline.wants_flush());
    let newest = Stamp::new(Term::FIRST, three);
    let released = pipeline.handle_flushed(Moment(71 * MS));
    assert_eq!(released, Some((newest, Duration::from_millis(21))));
    assert_eq!(pipeline.handle_flushed(Moment(72 * MS)), None, "nothing new has left");
}

#[test]
fn an_answer_renews_the_lease_of_its_own_session_only() {
    let mut pipeline = protected();
    let sent = Moment(10 * MS);
    let until = pipeline.handle_answer(Moment(11 * MS), session(1), sent).unwrap();
    assert_eq!(until.map(|lease| lease.until()), Some(sent + Timing::default().lease));
    assert_eq!(pipeline.handle_answer(Moment(40 * MS), session(2), Moment(39 * MS)), Ok(None));
    let unchanged = pipeline.lease_until().map(|lease| lease.until());
    assert_eq!(unchanged, Some(sent + Timing::default().lease));
    assert!(pipeline.handle_answer(Moment(41 * MS), session(1), Moment(42 * MS)).is_err());
    pipeline.run_unprotected(
        Fenced::by_operator(pipeline.term(), "backup-host").unwrap(),
        Policy::new(&Timing::default()),
        Moment(50 * MS),
    );
    assert_eq!(pipeline.lease_until(), None, "a new term has a lease of its own");
}

#[test]
fn an_end_is_sealed_committed_and_released_before_the_goodbye_and_counts_once_it_is_answered() {
    let mut pipeline = protected();
    let give_up = Moment(900 * MS);
    pipeline.handle_flushed(Moment(0));
    pipeline.handle_end(GoodbyeWhy::PowerOff, give_up);
    assert_eq!(pipeline.poll_seal(Moment(0)), SealWhen::Now);
    assert_eq!(pipeline.poll_goodbye(), None);
    let two = seal(&mut pipeline, 1, Moment(0));
    assert_eq!(pipeline.poll_seal(Moment(500 * MS)), SealWhen::NotYet, "no seal after the last");
    assert_eq!(pipeline.poll_goodbye(), None);
    assert!(take(&mut pipeline, Moment(1), &ack(1, two)).unwrap().is_some());
    assert_eq!(pipeline.poll_goodbye(), None, "its last words are still held");
    pipeline.handle_flushed(Moment(2));
    assert_eq!(pipeline.poll_goodbye().map(|goodbye| goodbye.epoch), Some(two));
    assert_eq!(pipeline.poll_goodbye(), None, "said once");
    assert_eq!(pipeline.poll_stopped(Moment(3)), None);
    pipeline.handle_goodbye_answered();
    assert_eq!(pipeline.standing(), Standing::Stopped);
    assert_eq!(pipeline.poll_stopped(Moment(3)), Some(Stopped::Ended(GoodbyeWhy::PowerOff)));
}

#[test]
fn an_end_that_the_backup_has_not_acknowledged_does_not_count() {
    let mut pipeline = protected();
    let give_up = Moment(900 * MS);
    pipeline.handle_end(GoodbyeWhy::Stopped, give_up);
    assert_eq!(pipeline.poll_stopped(Moment(899 * MS)), None);
    let unheard = Some(Stopped::EndedUnheard(GoodbyeWhy::Stopped));
    assert_eq!(pipeline.poll_stopped(give_up), unheard);
    pipeline.handle_session_lost();
    assert_eq!(pipeline.poll_stopped(Moment(0)), unheard, "nobody is waited for any more");
    // Nobody could go on with this one.
    let mut alone = start();
    alone.handle_end(GoodbyeWhy::Stopped, give_up);
    assert_eq!(alone.poll_stopped(Moment(0)), Some(Stopped::Ended(GoodbyeWhy::Stopped)));
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
                    let committed = take(&mut pipeline, Moment(now), &ack);
                    prop_assert!(in_session || committed.is_err());
                    if let Ok(Some(committed)) = committed {
                        prop_assert!(committed.epoch() > acked && digest != 0);
                    }
                }
                6 => _ = pipeline.handle_flushed(Moment(now)),
                7 => pipeline.handle_session_lost(),
                _ => pipeline.handle_gate_filling(Moment(now)),
            }
            prop_assert!(pipeline.acked() >= acked);
        }
    }
}
