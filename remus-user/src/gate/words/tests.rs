use std::time::Duration;

use super::*;
use crate::{
    replication::{Pipeline, Policy, PrimaryLease, Standalone},
    wire::{Ancestry, Features, Instance, Moment, Session, Timing, Welcome},
};

/// The words as a program or a controller reads them.
struct Map([u64; remus_abi::gate::CONTROL_WORDS]);

impl Map {
    fn words(&self) -> ControlWords {
        ControlWords::read(|word| self.0[word as usize])
    }

    fn take(&mut self, writes: Writes) {
        for (word, to) in writes {
            self.0[word as usize] = to;
        }
    }
}

/// A gate of the first term that holds, with epoch 2 open and epoch 1 committed, and its brain.
fn holding() -> (Map, Standalone) {
    let (mut brain, fenced) = Standalone::begin();
    let mut map = Map([0; remus_abi::gate::CONTROL_WORDS]);
    let NewTerm { begin, .. } = map.words().begin_term(&fenced, Held::Discard);
    map.take(begin);
    map.take(map.words().hold());
    brain.handle_hold();
    let (sealed, next) = brain.handle_seal().unwrap();
    map.take(map.words().seal(&next));
    map.take(map.words().commit(&brain.handle_commit(sealed).unwrap().unwrap()));
    map.take(map.words().renew_lease(&brain.without_lease()));
    (map, brain)
}

fn stamp(term: u32, epoch: u64) -> Stamp {
    Stamp::new(Term::new(term).unwrap(), remus_abi::Epoch::new(epoch).unwrap())
}

fn all(term: &NewTerm) -> Vec<Write> {
    term.shut.into_iter().chain(term.begin).collect()
}

#[test]
fn releases_of_the_old_term_stop_before_any_word_of_the_new_one_is_written() {
    let (mut map, mut brain) = holding();
    let fenced = brain.handle_open();
    for (mode, before) in [
        (Mode::Hold, vec![(Control::LeaseUntil, 0)]),
        (Mode::Closed, vec![(Control::LeaseUntil, 0)]),
        (
            Mode::Open,
            vec![
                (Control::Queueing, 0),
                (Control::Mode, Mode::Hold as u64),
                (Control::LeaseUntil, 0),
            ],
        ),
    ] {
        map.take(if mode == Mode::Open {
            map.words().open(&fenced)
        } else {
            ControlWords::close()
        });
        if mode == Mode::Hold {
            map.take(map.words().hold());
        }
        let fenced = brain.clone().handle_discard().unwrap();
        let term = map.words().begin_term(&fenced, Held::Keep);
        assert_eq!(term.shut.into_iter().collect::<Vec<_>>(), before, "{mode:?}");
    }
}

#[test]
fn a_new_term_keeps_or_discards_and_has_no_commit_and_no_lease() {
    for (held, kept) in
        [(Held::Keep, Kept::from_bits(stamp(1, 3).bits())), (Held::Discard, Kept::NONE)]
    {
        let (mut map, mut brain) = holding();
        let fenced = brain.handle_discard().unwrap();
        let term = map.words().begin_term(&fenced, held);
        assert_eq!(term.held, held);
        for write in all(&term) {
            map.0[write.0 as usize] = write.1;
        }
        let words = map.words();
        assert_eq!((words.open, words.committed), (stamp(2, 3), stamp(2, 2)));
        assert_eq!((words.kept, words.lease_until_ns, words.mode), (kept, 0, Mode::Hold));
    }
}

#[test]
fn the_words_of_a_term_come_in_the_order_in_which_no_held_frame_is_taken_for_one_of_no_term() {
    let (map, mut brain) = holding();
    let term = map.words().begin_term(&brain.handle_discard().unwrap(), Held::Keep);
    let order: Vec<_> = term.begin.into_iter().map(|(word, _)| word).collect();
    assert_eq!(order, [Control::Kept, Control::Open, Control::Turns, Control::Committed]);
}

#[test]
fn a_first_seal_begins_to_hold_and_a_later_one_only_stamps() {
    let (map, mut brain) = holding();
    let (_, next) = brain.handle_seal().unwrap();
    let written: Vec<_> = map.words().seal(&next).into_iter().collect();
    assert_eq!(written, [(Control::Open, stamp(1, 3).bits())]);
    let first = first_of_a_session();
    assert!(first.is_first());
    let map = begun();
    let written: Vec<_> = map.words().seal(&first).into_iter().map(|(word, _)| word).collect();
    assert_eq!(written, [Control::Queueing, Control::Open, Control::Mode]);
}

/// A closed gate in the first epoch of the first term.
fn begun() -> Map {
    let mut map = Map([0; remus_abi::gate::CONTROL_WORDS]);
    map.take(map.words().begin_term(&Standalone::begin().1, Held::Discard).begin);
    map
}

/// What a primary's brain gives when it seals for the first time.
fn first_of_a_session() -> NextEpoch {
    let mut pipeline =
        Pipeline::start_shut(Standalone::begin().1, Policy::new(&Timing::default()), Moment(0));
    let (session, backup) = (Session::new(1).unwrap(), Instance::new(1).unwrap());
    let welcome = Welcome { session, features: Features::NONE, backup, ancestry: Ancestry::none() };
    pipeline.handle_welcome(session, &welcome).unwrap();
    pipeline.handle_sync_round(0);
    pipeline.seal(Moment(1)).next
}

#[test]
fn a_lease_is_not_shortened_and_a_commit_is_not_taken_back() {
    let (mut map, brain) = holding();
    let until = map.words().lease_until_ns;
    map.take(map.words().renew_lease(&brain.lease_until(Moment(7))));
    assert_eq!(map.words().lease_until_ns, until);
}

#[test]
#[should_panic(expected = "a lease of this gate's term")]
fn a_lease_of_another_term_is_not_taken() {
    let (map, mut brain) = holding();
    let mut old = PrimaryLease::new(brain.open().term(), Duration::from_millis(1));
    old.handle_answer(Moment(9), brain.open().term(), Moment(1)).unwrap();
    let mut map = map;
    let term = map.words().begin_term(&brain.handle_discard().unwrap(), Held::Keep);
    map.take(term.begin);
    map.take(map.words().renew_lease(&old.until().unwrap()));
}

#[test]
#[should_panic(expected = "permission for this gate's term")]
fn a_gate_does_not_open_by_the_permission_of_another_term() {
    let (map, mut brain) = holding();
    map.words().open(&brain.handle_discard().unwrap());
}

#[test]
#[should_panic(expected = "the epoch after the open one is opened")]
fn an_epoch_that_does_not_follow_is_not_opened() {
    let (map, mut brain) = holding();
    brain.handle_seal().unwrap();
    map.words().seal(&brain.handle_seal().unwrap().1);
}

#[test]
#[should_panic(expected = "begins in a gate of term 1")]
fn a_term_does_not_begin_twice() {
    let (map, mut brain) = holding();
    map.words().begin_term(&brain.handle_open(), Held::Discard);
}
