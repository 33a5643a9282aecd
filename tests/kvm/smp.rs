//! Machines with several vCPUs: a pause stops all of them at one instant, a checkpoint holds that instant, and all
//! of them go on from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use remus::checkpoint::{MachineState, PageSet, Staging};
use remus::machine::{CpuProfile, End, Machine, Memory, Shape};

use super::machine::{SHAPE, alone, apply, copy_ram, prepared, serve, started};
use super::small_guest::{self, After, Work};

/// Long enough for anything that was about to happen: no vCPU spins for so long before it writes, no timer is set
/// for so long.
const MEANWHILE: Duration = Duration::from_millis(3);
const PATIENCE: Duration = Duration::from_secs(10);

fn smp(vcpus: u8) -> Shape {
    Shape { vcpus, memory_mib: 32, ..SHAPE }
}

/// Serves the machine until each vCPU that works has finished a round after those it had finished in `before`.
fn all_go_on(machine: &mut Machine, work: Work, before: &[u64]) {
    let until = Instant::now() + PATIENCE;
    while rounds(machine.memory(), work).iter().zip(before).any(|(now, before)| now <= before) {
        let now = rounds(machine.memory(), work);
        assert!(Instant::now() < until, "{:?}: rounds were {before:?} and are {now:?}", work.after);
        assert_eq!(serve(machine, Duration::from_millis(1)), None);
    }
}

fn rounds(memory: &Memory, work: Work) -> Vec<u64> {
    (0..work.vcpus).map(|vcpu| small_guest::rounds_of(memory, vcpu)).collect()
}

/// A machine in which every vCPU has begun its work.
fn at_work(shape: &Shape, work: Work) -> (Machine, CpuProfile) {
    let (mut machine, cpu) = started(shape, work);
    all_go_on(&mut machine, work, &vec![0; work.vcpus.into()]);
    (machine, cpu)
}

/// Moves the guest to a new machine, which gets its RAM in the pause.
fn move_on(machine: &mut Machine, shape: &Shape, cpu: &CpuProfile, work: Work) -> Machine {
    let mut state = MachineState::default();
    let mut encoded = Vec::new();
    let mut successor = prepared(shape, cpu);
    let ram = Arc::clone(machine.memory());
    let mut paused = machine.pause().unwrap();
    paused.capture(&mut state).unwrap();
    copy_ram(&ram, successor.memory());
    paused.keep();
    small_guest::check(successor.memory(), work);
    state.encode(&mut encoded);
    successor.restore(&MachineState::decode(&encoded).unwrap()).unwrap();
    successor.start().unwrap()
}

#[test]
fn all_vcpus_go_on_in_another_machine_generation_after_generation() {
    let _alone = alone();
    for (after, vcpus, generations) in [
        (After::GoOn, 2, 30),
        (After::Sleep, 2, 30),
        (After::Pass, 2, 30),
        (After::GoOn, 4, 30),
        (After::Pass, 4, 30),
        (After::Pass, 64, 4),
    ] {
        let work = Work { vcpus, pages: 20, spin: 10, after };
        let (mut machine, cpu) = at_work(&smp(vcpus), work);
        for generation in 0..generations {
            // An instant of its own each time: also between an interrupt that is sent and one that is taken.
            serve(&mut machine, Duration::from_micros(500 + generation * 7_919 % 1_000));
            let before = rounds(machine.memory(), work);
            machine = move_on(&mut machine, &smp(vcpus), &cpu, work);
            all_go_on(&mut machine, work, &before);
        }
    }
}

/// The start of a vCPU (INIT, SIPI, its way into long mode) takes some hundred instructions, each emulated where
/// KVM has no hardware below it; so instants within it are found by trying.
#[test]
fn a_vcpu_that_is_being_started_is_started_in_the_other_machine() {
    let _alone = alone();
    let work = Work { vcpus: 4, pages: 4, spin: 0, after: After::Sleep };
    let mut seen = BTreeSet::new();
    let mut after = Duration::ZERO;
    while !seen.contains(&4) {
        let (mut machine, cpu) = started(&smp(4), work);
        let until = Instant::now() + after;
        while Instant::now() < until {}
        let before = rounds(machine.memory(), work);
        seen.insert(before.iter().filter(|rounds| **rounds > 0).count());
        let mut machine = move_on(&mut machine, &smp(4), &cpu, work);
        all_go_on(&mut machine, work, &before);
        after += Duration::from_micros(100);
        assert!(after < PATIENCE);
    }
    assert!(seen.contains(&0), "{seen:?} vCPUs were at work when paused");
}

#[test]
fn an_image_of_hundreds_of_epochs_is_one_instant_of_all_vcpus_and_they_go_on_from_it() {
    let _alone = alone();
    for vcpus in [2, 4] {
        let work = Work { vcpus, pages: 200, spin: 200, after: After::GoOn };
        let (mut machine, cpu) = at_work(&smp(vcpus), work);
        let mut backup = prepared(&smp(vcpus), &cpu);
        let pages = machine.memory().layout().pages();
        let (mut dirty, mut staging) = (PageSet::new(pages), Staging::new(pages as usize));
        let mut state = MachineState::default();
        machine.track_dirty(true).unwrap();
        machine.harvest_and_clear_live(&mut dirty).unwrap();
        machine.copy_live(dirty.iter(), &mut staging).unwrap();
        apply(&staging, backup.memory());
        for epoch in 0..400 {
            assert_eq!(serve(&mut machine, Duration::from_micros(2_000)), None);
            let mut paused = machine.pause().unwrap();
            paused.capture(&mut state).unwrap();
            paused.harvest(&mut dirty).unwrap();
            staging.clear();
            paused.copy(dirty.iter(), &mut staging).unwrap();
            // All of them now and then: each page is then reported by its next write alone.
            if epoch % 3 == 0 {
                paused.reprotect(&dirty).unwrap();
            }
            apply(&staging, backup.memory());
            small_guest::check(backup.memory(), work);
            if epoch % 40 == 39 {
                assert_eq!(paused.memory().digest(), backup.memory().digest(), "epoch {epoch}");
            }
            if epoch == 399 {
                paused.keep();
                break;
            }
        }
        let before = rounds(backup.memory(), work);
        assert!(before.iter().all(|rounds| *rounds > 100), "{before:?}");
        backup.restore(&state).unwrap();
        let mut promoted = backup.start().unwrap();
        all_go_on(&mut promoted, work, &before);
    }
}

#[test]
fn no_vcpu_runs_between_the_barrier_and_the_end_of_the_pause() {
    let _alone = alone();
    // Two at work, two asleep until a timer that fires in the pause, or until each other, and two never started.
    for after in [After::GoOn, After::Sleep, After::Pass] {
        let work = Work { vcpus: 2, pages: 3, spin: 0, after };
        let (mut machine, _) = at_work(&smp(4), work);
        for _ in 0..100 {
            let before = rounds(machine.memory(), work);
            let paused = machine.pause().unwrap();
            let ram = paused.memory();
            let at_once = (small_guest::shared(ram), ram.digest());
            small_guest::check(ram, work);
            let until = Instant::now() + MEANWHILE;
            while Instant::now() < until {
                assert_eq!(small_guest::shared(ram), at_once.0, "{after:?}");
            }
            assert_eq!((small_guest::shared(ram), ram.digest()), at_once, "{after:?}");
            drop(paused);
            all_go_on(&mut machine, work, &before);
        }
    }
}

#[test]
fn a_guest_that_ends_on_one_vcpu_has_ended_on_all() {
    let _alone = alone();
    let work = Work { vcpus: 2, pages: 8, spin: 0, after: After::GoOn };
    let (mut machine, _) = at_work(&smp(2), work);
    small_guest::set_after(machine.memory(), 1, After::PowerOff);
    assert_eq!(serve(&mut machine, Duration::from_secs(2)), Some(End::PowerOff));
    let mut state = MachineState::default();
    machine.pause().unwrap().capture(&mut state).unwrap();
    let counted = small_guest::shared(machine.memory());
    assert_eq!(serve(&mut machine, MEANWHILE), None, "an end is told once");
    assert_eq!(small_guest::shared(machine.memory()), counted, "a vCPU ran after the end");
}
