//! An exhaustive walk of both brains, the gate's rule and the leases, over everything a network, a scheduler and a
//! bad moment can do to them.
//!
//! The brains are the real ones (`remus::replication`), and so are the messages, the gate's control words with the order in
//! which each change writes them, and the rule by which the kernel reads them. Modelled are what they steer: a guest of
//! four words in two pages, its dirty log, page deltas, the gate's slots, a network that loses, repeats and reorders, and
//! one clock. See [`world`] for what is in a step, and [`walk`]
//! for how the shortest path to a violation is found.
//!
//! A process that is stopped, or a host that is dead, is one whose steps are no longer chosen: every interleaving
//! in which either host stands still for any while is walked.
//!
//! The second half proves that the walk can see: each [`Fault`] takes out one thing that the design asks for, and
//! the walk must find the harm.
//!
//! [`session`] joins both ends by the bytes themselves instead: real pages, encoder, frames and assembly.

mod session;
mod walk;
mod world;

use walk::{Outcome, walk};
use world::{Fault, Limits, Seen, Start, World};

/// Walks the whole bounded space without a fault.
fn explore(start: Start, limits: Limits, states_min: usize, must_see: &[Seen]) {
    match walk(&World::new(start, limits, None)) {
        Outcome::Exhausted { states, depth, seen } => {
            println!("{start:?}: {states} states, {depth} steps deep");
            assert!(
                states >= states_min,
                "only {states} states: the walk has become too small to mean much"
            );
            for seen_once in must_see {
                assert!(
                    seen.has(*seen_once),
                    "no path on which {seen_once:?}: the bounds are too tight"
                );
            }
        }
        Outcome::Violated { violation, path } => panic!("{violation}\n{}", path.join("\n")),
    }
}

/// The walk finds the harm that `fault` does, and says how.
fn finds(fault: Fault, start: Start, limits: Limits) {
    match walk(&World::new(start, limits, Some(fault))) {
        Outcome::Violated { violation, path } => {
            println!("{fault:?}: {violation}, in {} steps\n  {}", path.len(), path.join("\n  "));
        }
        Outcome::Exhausted { states, .. } => panic!("{fault:?} went unnoticed in {states} states"),
    }
}

#[test]
fn nothing_seen_outside_is_ever_taken_back() {
    explore(
        Start::Shut,
        Limits {
            steps: 3,
            seals: 3,
            sessions: 1,
            ticks: 2,
            heartbeats: 0,
            lost: 1,
            repeated: 1,
            fences: 0,
            newcomers: 0,
            strangers: 0,
        },
        100_000,
        &[
            Seen::Released,
            Seen::Promoted,
            Seen::PromotedWithOutputOutside,
            Seen::LeaseStoppedFlush,
            Seen::SessionDroppedByBackup,
            Seen::TwoInFlight,
            Seen::RepeatedAckIgnored,
        ],
    );
}

#[test]
fn heartbeats_keep_the_lease_and_nothing_else() {
    explore(
        Start::Shut,
        Limits {
            steps: 2,
            seals: 2,
            sessions: 1,
            ticks: 3,
            heartbeats: 2,
            lost: 0,
            repeated: 0,
            fences: 0,
            newcomers: 0,
            strangers: 0,
        },
        100_000,
        &[Seen::Released, Seen::Promoted, Seen::LeaseStoppedFlush, Seen::ReleasedOnHeartbeatLease],
    );
}

#[test]
fn a_second_session_begins_anew_and_takes_nothing_from_the_first() {
    explore(
        Start::Shut,
        Limits {
            steps: 2,
            seals: 3,
            sessions: 2,
            ticks: 2,
            heartbeats: 0,
            lost: 0,
            repeated: 0,
            fences: 0,
            newcomers: 0,
            strangers: 0,
        },
        100_000,
        &[
            Seen::ReleasedInSecondSession,
            Seen::PromotedAfterSecondSession,
            Seen::RefusedHalfSynced,
            Seen::LateAckOfFirstSession,
            Seen::StoodDown,
        ],
    );
}

#[test]
fn a_guest_that_ran_unprotected_is_held_from_its_first_checkpoint_on() {
    explore(
        Start::Unprotected,
        Limits {
            steps: 3,
            seals: 2,
            sessions: 2,
            ticks: 2,
            heartbeats: 0,
            lost: 0,
            repeated: 0,
            fences: 0,
            newcomers: 0,
            strangers: 0,
        },
        50_000,
        &[Seen::PassedOpen, Seen::Released, Seen::PromotedWithOutputOutside],
    );
}

#[test]
fn a_new_term_leaves_nothing_of_the_old_one_to_promote() {
    explore(
        Start::Shut,
        Limits {
            steps: 2,
            seals: 2,
            sessions: 2,
            ticks: 2,
            heartbeats: 0,
            lost: 0,
            repeated: 0,
            fences: 1,
            newcomers: 0,
            strangers: 0,
        },
        100_000,
        &[
            Seen::PassedOpen,
            Seen::PromotedInSecondTerm,
            Seen::PromotedWithOutputOutside,
            Seen::KeptLeftThroughOpenGate,
            Seen::FlushStoppedWhileTermBegins,
        ],
    );
}

/// Unprotected, then protected again by another host, in a new term on the same gate.
const TWO_TERMS: Limits = Limits {
    steps: 2,
    seals: 3,
    sessions: 2,
    ticks: 2,
    heartbeats: 0,
    lost: 0,
    repeated: 0,
    fences: 1,
    newcomers: 1,
    strangers: 0,
};

#[test]
fn a_gate_that_begins_a_new_term_holds_and_releases_by_that_term_alone() {
    explore(
        Start::ShutWithLongLease,
        TWO_TERMS,
        100_000,
        &[
            Seen::PassedOpen,
            Seen::KeptLeftThroughOpenGate,
            Seen::FlushStoppedWhileTermBegins,
            Seen::ReleasedInSecondTerm,
            Seen::PromotedInSecondTerm,
        ],
    );
}

#[test]
fn a_strangers_word_takes_nothing_from_a_guest() {
    explore(
        Start::Shut,
        Limits {
            steps: 2,
            seals: 2,
            sessions: 2,
            ticks: 2,
            heartbeats: 0,
            lost: 0,
            repeated: 0,
            fences: 0,
            newcomers: 0,
            strangers: 1,
        },
        100_000,
        &[Seen::RefusedStranger, Seen::Released, Seen::PromotedWithOutputOutside, Seen::StoodDown],
    );
}

/// Bounds for two hosts that were heard before they met: the primary counts and asks, again and again.
const APART: Limits = Limits {
    steps: 4,
    seals: 1,
    sessions: 3,
    ticks: 3,
    heartbeats: 1,
    lost: 0,
    repeated: 0,
    fences: 0,
    strangers: 0,
    newcomers: 0,
};

/// As numbers go: equal, less, more.
const NUMBERS: [(u32, u32); 3] = [(2, 2), (2, 5), (5, 2)];

#[test]
fn two_that_spoke_without_knowing_of_each_other_neither_follow_nor_stand_down() {
    for (ours, theirs) in NUMBERS {
        for runs in [false, true] {
            let start = Start::Apart { ours, theirs, runs };
            explore(start, APART, 50, &[Seen::PassedOpen, Seen::Split]);
        }
    }
}

#[test]
fn a_split_that_is_judged_by_numbers_is_found() {
    for (ours, theirs) in [(2, 5), (5, 2)] {
        let start = Start::Apart { ours, theirs, runs: false };
        finds(Fault::SplitJudgedByNumbers, start, APART);
    }
    let start = Start::Apart { ours: 2, theirs: 5, runs: true };
    finds(Fault::SplitJudgedByNumbers, start, APART);
}

/// Bounds for the faults, each of which shows within one session.
const ONE_SESSION: Limits = Limits {
    steps: 3,
    seals: 3,
    sessions: 1,
    ticks: 3,
    heartbeats: 1,
    lost: 0,
    repeated: 0,
    fences: 0,
    newcomers: 0,
    strangers: 0,
};
/// And for those that take a reconnect.
const TWO_SESSIONS: Limits = Limits {
    steps: 2,
    seals: 3,
    sessions: 2,
    ticks: 3,
    heartbeats: 0,
    lost: 0,
    repeated: 0,
    fences: 0,
    newcomers: 0,
    strangers: 0,
};

#[test]
fn release_at_capture_is_found() {
    finds(Fault::ReleaseAtCapture, Start::Shut, ONE_SESSION);
}

#[test]
fn a_promoted_backup_that_acks_is_found() {
    finds(Fault::PromotedBackupAcks, Start::Shut, ONE_SESSION);
}

#[test]
fn a_delta_on_the_wrong_base_after_a_reconnect_is_found() {
    finds(Fault::ShadowSurvivesSession, Start::Shut, TWO_SESSIONS);
}

#[test]
fn clearing_the_log_after_resume_is_found() {
    finds(Fault::ClearAfterResume, Start::Shut, ONE_SESSION);
}

#[test]
fn a_late_release_without_a_lease_is_found() {
    finds(Fault::FlushIgnoresLease, Start::Shut, ONE_SESSION);
}

#[test]
fn a_lease_counted_from_the_answers_arrival_is_found() {
    finds(Fault::LeaseFromArrival, Start::Shut, ONE_SESSION);
}

#[test]
fn a_promotion_before_the_lease_is_over_is_found() {
    finds(Fault::PromotesDuringLease, Start::Shut, ONE_SESSION);
}

#[test]
fn promotion_of_a_half_synced_image_is_found() {
    finds(Fault::SyncKeepsImage, Start::Shut, TWO_SESSIONS);
}

#[test]
fn an_open_epoch_that_advances_after_resume_is_found() {
    finds(Fault::OpenAdvancesAfterResume, Start::Shut, ONE_SESSION);
}

#[test]
fn a_gate_that_closes_one_epoch_late_at_first_protection_is_found() {
    finds(Fault::HoldsFromFirstAck, Start::Unprotected, ONE_SESSION);
}

#[test]
fn an_outdated_image_that_survives_a_newer_term_is_found() {
    finds(
        Fault::NewerTermKeepsImage,
        Start::Shut,
        Limits { steps: 1, seals: 1, ticks: 2, fences: 1, ..TWO_SESSIONS },
    );
}

#[test]
fn a_stranger_that_is_believed_is_found() {
    finds(Fault::StrangersWordCounts, Start::Shut, Limits { strangers: 1, ..TWO_SESSIONS });
}

#[test]
fn a_lease_that_outlives_its_term_is_found() {
    let limits = Limits { steps: 1, seals: 2, heartbeats: 1, ..TWO_TERMS };
    finds(Fault::LeaseSurvivesTerm, Start::ShutWithLongLease, limits);
}

#[test]
fn a_word_of_the_new_term_that_is_written_first_is_found() {
    finds(Fault::TermWordFirst, Start::Shut, Limits { ticks: 1, ..TWO_TERMS });
}

#[test]
fn a_commit_of_the_old_term_that_counts_in_the_new_one_is_found() {
    let limits = Limits { steps: 1, seals: 4, newcomers: 0, ..TWO_TERMS };
    finds(Fault::OldTermsCommitCounts, Start::Shut, limits);
}
