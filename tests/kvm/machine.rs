//! The machine with a guest in it: paused, captured, put together again.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use remus::checkpoint::{MachineState, Page, PageSet, Staging};
use remus::machine::{
    CpuProfile, End, Event, Kind, Machine, Memory, Offloads, Placement, Prepared, Shape, Software,
    fault_cost, open_tap, probe,
};

use super::small_guest::{self, After, Work};

pub(crate) const SHAPE: Shape = Shape {
    memory_mib: 64,
    vcpus: 1,
    mac: [2, 0, 0, 0, 0, 7],
    mtu_bytes: 1500,
    offloads: Offloads::None,
    disks: Vec::new(),
};

/// One guest at a time: they measure and need the cores.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tap in a network namespace that this thread enters and nobody else sees.
fn tap(name: &str) -> OwnedFd {
    // SAFETY: unshare takes a number and changes this thread's namespace only.
    let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(left, 0, "a network namespace needs root: {}", std::io::Error::last_os_error());
    open_tap(name).unwrap()
}

pub(crate) fn prepared(shape: &Shape, cpu: &CpuProfile) -> Prepared {
    // The guest on the second core, this thread on the first: a pause is a conversation of the two.
    let placement = Placement { vcpu_cpus: vec![1], ..Placement::default() };
    Prepared::new(shape, cpu, &placement, tap("remus0")).unwrap()
}

/// A bare-metal guest that is told nothing.
pub(crate) fn software(kernel: &Path) -> Software<'_> {
    Software { kernel, initrd: None, cmdline: "" }
}

pub(crate) fn started(shape: &Shape, work: Work) -> (Machine, CpuProfile) {
    let cpu = CpuProfile::of_host().unwrap();
    let mut machine = prepared(shape, &cpu);
    machine.load(software(small_guest::elf().path())).unwrap();
    small_guest::set_work(machine.memory(), work);
    (machine.start().unwrap(), cpu)
}

/// Serves the machine for a while, as its owner would.
pub(crate) fn serve(machine: &mut Machine, time: Duration) -> Option<End> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut ready = libc::pollfd { fd: machine.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: one pollfd and a time, both live.
        let n = unsafe { libc::ppoll(&raw mut ready, 1, &raw const timeout, std::ptr::null()) };
        match machine.service(&mut |_| {}).unwrap() {
            Event::Ended(end) => return Some(end),
            Event::Served if n <= 0 && left.is_zero() => return None,
            Event::Served => {}
        }
    }
}

pub(crate) fn copy_ram(from: &Memory, to: &Memory) {
    let mut page = [0; 4096];
    for n in 0..from.layout().pages() {
        from.read_page(Page(n), &mut page).unwrap();
        to.write_page(Page(n), &page).unwrap();
    }
}

#[test]
fn a_guest_goes_on_in_another_machine_generation_after_generation() {
    let _alone = alone();
    // The second vCPU waits for a start that never comes: it, too, is stopped and captured every time.
    for (after, vcpus) in [(After::GoOn, 1), (After::Sleep, 1), (After::Sleep, 2)] {
        let work = Work { vcpus: 1, pages: 20, spin: 0, after };
        let shape = Shape { vcpus, ..SHAPE };
        let (mut machine, cpu) = started(&shape, work);
        let mut state = MachineState::default();
        let mut encoded = Vec::new();
        for generation in 0..40 {
            serve(&mut machine, Duration::from_micros(2_000 + generation * 7_919 % 3_000));
            let mut successor = prepared(&shape, &cpu);
            let ram = Arc::clone(machine.memory());
            let mut paused = machine.pause().unwrap();
            paused.capture(&mut state).unwrap();
            copy_ram(&ram, successor.memory());
            drop(paused);
            small_guest::check(successor.memory(), work);
            encoded.clear();
            state.encode(&mut encoded);
            let rounds = small_guest::rounds(successor.memory());
            let ticks = small_guest::ticks(successor.memory());

            successor.restore(&MachineState::decode(&encoded).unwrap()).unwrap();
            machine = successor.start().unwrap();
            // A guest that goes on does so within a millisecond of CPU time; one that lost its timer never does.
            let slept = after == After::Sleep;
            let goes_on = |machine: &Machine| {
                let ram = machine.memory();
                small_guest::rounds(ram) > rounds && (!slept || small_guest::ticks(ram) > ticks)
            };
            let until = Instant::now() + Duration::from_secs(5);
            while !goes_on(&machine) {
                assert!(Instant::now() < until, "{after:?}: generation {generation} stands still");
                assert_eq!(serve(&mut machine, Duration::from_millis(1)), None);
            }
        }
    }
}

#[test]
fn harvests_hold_every_write_while_pages_stay_hot_and_go_cold() {
    let _alone = alone();
    for cold_after in [1, 4, 40] {
        let work = Work { vcpus: 1, pages: 400, spin: 200, after: After::GoOn };
        let (mut machine, cpu) = started(&SHAPE, work);
        let backup = prepared(&SHAPE, &cpu);
        let ram = Arc::clone(machine.memory());
        let pages = ram.layout().pages();
        let mut dirty = PageSet::new(pages);
        let mut staging = Staging::new(pages as usize);
        let mut state = MachineState::default();

        machine.track_dirty(true).unwrap();
        for round in 0..3 {
            machine.harvest_and_clear_live(&mut dirty).unwrap();
            assert!(round > 0 || dirty.len() == pages as usize, "the first harvest is all of RAM");
            staging.clear();
            machine.copy_live(dirty.iter(), &mut staging).unwrap();
            apply(&staging, backup.memory());
        }
        let mut unchanged = vec![0; pages as usize];
        for epoch in 0..60 {
            // Work moves now and then, so that hot pages go cold and come back.
            small_guest::set_first(&ram, Page(small_guest::FIRST.0 + epoch / 10 % 3 * 300));
            assert_eq!(serve(&mut machine, Duration::from_millis(4)), None);
            let mut paused = machine.pause().unwrap();
            paused.capture(&mut state).unwrap();
            paused.harvest(&mut dirty).unwrap();
            staging.clear();
            paused.copy(dirty.iter(), &mut staging).unwrap();
            let mut cold = PageSet::new(pages);
            for (page, copy) in staging.iter() {
                let mut before = [0; 4096];
                backup.memory().read_page(page, &mut before).unwrap();
                let quiet = &mut unchanged[page.0 as usize];
                *quiet = if before == *copy { *quiet + 1 } else { 0 };
                if *quiet >= cold_after {
                    *quiet = 0;
                    cold.insert(page);
                }
            }
            paused.reprotect(&cold).unwrap();
            apply(&staging, backup.memory());
            assert_eq!(ram.digest(), backup.memory().digest(), "epoch {epoch}, K = {cold_after}");
        }
        assert!(dirty.len() < 2_000, "{} pages dirty: nothing goes cold", dirty.len());
    }
}

#[test]
fn a_guest_that_switches_itself_off_is_still_captured() {
    let _alone = alone();
    let work = Work { vcpus: 1, pages: 8, spin: 0, after: After::PowerOff };
    let (mut machine, _) = started(&SHAPE, work);
    assert_eq!(serve(&mut machine, Duration::from_secs(2)), Some(End::PowerOff));
    let mut state = MachineState::default();
    for _ in 0..3 {
        machine.pause().unwrap().capture(&mut state).unwrap();
    }
    small_guest::check(machine.memory(), work);
    assert_eq!(small_guest::rounds(machine.memory()), 1);
    assert_eq!(serve(&mut machine, Duration::from_millis(5)), None, "an end is told once");
}

/// A reset, as a host and its backup see it: one of a guest that has dirtied RAM, registers and other vCPUs.
#[test]
fn a_reset_puts_the_guest_back_to_where_it_began_on_both_hosts() {
    let _alone = alone();
    for vcpus in [1, 2] {
        let work = Work { vcpus, pages: 300, spin: 0, after: After::PowerOff };
        let shape = Shape { vcpus, ..SHAPE };
        let cpu = CpuProfile::of_host().unwrap();
        let mut machine = prepared(&shape, &cpu);
        machine.load(software(small_guest::elf().path())).unwrap();
        small_guest::set_work(machine.memory(), work);
        let boot = machine.boot_image().unwrap();
        assert!(boot.pages().count() < 64, "{} pages are loaded", boot.pages().count());
        let (backup, begun) = (prepared(&shape, &cpu), machine.memory().digest());
        let mut machine = machine.start().unwrap();
        machine.track_dirty(true).unwrap();
        let pages = machine.memory().layout().pages();
        let (mut dirty, mut state) = (PageSet::new(pages), MachineState::default());
        let mut staging = Staging::new(pages as usize);
        for round in 0..20 {
            assert_eq!(serve(&mut machine, Duration::from_secs(5)), Some(End::PowerOff), "{round}");
            let rounds = |vcpu| small_guest::rounds_of(machine.memory(), vcpu);
            assert_eq!((0..vcpus).map(rounds).max(), Some(1), "round {round}");
            let mut paused = machine.pause().unwrap();
            paused.capture(&mut state).unwrap();
            paused.harvest(&mut dirty).unwrap();
            assert!(round == 0 || dirty.len() < 2_000, "{} pages", dirty.len());
            staging.clear();
            paused.copy(dirty.iter(), &mut staging).unwrap();
            drop(paused);
            // What a backup makes of it: the pages before the reset are not in the record.
            backup.memory().reset(&boot, &mut || {}).unwrap();
            assert_eq!(backup.memory().digest(), begun);
            apply(&staging, backup.memory());
            assert_eq!(machine.memory().digest(), backup.memory().digest(), "round {round}");
            machine.reboot(&boot, &mut || {}).unwrap();
        }
    }
}

#[test]
fn a_guest_that_faults_ends_with_the_place_and_harms_nobody() {
    let _alone = alone();
    let (mut machine, _) =
        started(&SHAPE, Work { vcpus: 1, pages: 8, spin: 0, after: After::Fault });
    match serve(&mut machine, Duration::from_secs(2)) {
        // On AMD the processor keeps nothing of a vCPU that has shut down, and KVM says where a reset one begins.
        Some(End::Fault(what)) => {
            let place = if probe().unwrap().kind == Kind::Svm { "rip 0xfff0" } else { "rip 0x1" };
            assert!(what.contains(place), "{what}");
        }
        other => panic!("{other:?}"),
    }
    machine.pause().unwrap().resume();
}

#[test]
fn a_state_of_another_shape_is_refused() {
    let _alone = alone();
    let cpu = CpuProfile::of_host().unwrap();
    assert!(cpu.lacks(&cpu).is_empty());
    let mut machine = prepared(&SHAPE, &cpu);
    let refused = machine.restore(&MachineState::default()).unwrap_err();
    assert!(refused.to_string().contains("0 vCPUs"), "{refused}");
    let text = format!("{:#}", machine.load(software("/dev/null".as_ref())).unwrap_err());
    assert!(text.contains("/dev/null"), "{text}");
}

#[test]
fn pauses_in_a_row_neither_hang_nor_stop_the_guest() {
    let _alone = alone();
    let work = Work { vcpus: 1, pages: 4, spin: 0, after: After::Sleep };
    let (mut machine, _) = started(&SHAPE, work);
    let mut state = MachineState::default();
    for n in 0..2_000 {
        let mut paused = machine.pause().unwrap();
        if n % 3 == 0 {
            paused.capture(&mut state).unwrap();
        }
    }
    let rounds = small_guest::rounds(machine.memory());
    serve(&mut machine, Duration::from_millis(10));
    assert!(small_guest::rounds(machine.memory()) > rounds);
}

/// Figures, printed; what they must be is a claim of the report, not of this test.
#[test]
fn the_pause_is_measured() {
    let _alone = alone();
    for (vcpus, pages) in [(1, 1), (1, 100), (1, 1_000), (1, 4_000), (2, 500), (4, 250)] {
        let work = Work { vcpus, pages, spin: 500, after: After::GoOn };
        let (mut machine, _) = started(&Shape { vcpus, ..SHAPE }, work);
        let pages = machine.memory().layout().pages();
        let mut dirty = PageSet::new(pages);
        let mut staging = Staging::new(pages as usize);
        let mut state = MachineState::default();
        machine.track_dirty(true).unwrap();
        machine.harvest_and_clear_live(&mut dirty).unwrap();
        let mut us: [Vec<u128>; 5] = Default::default();
        for _ in 0..100 {
            serve(&mut machine, Duration::from_millis(10));
            let start = Instant::now();
            let mut paused = machine.pause().unwrap();
            let stopped = start.elapsed();
            paused.capture(&mut state).unwrap();
            let captured = start.elapsed();
            paused.harvest(&mut dirty).unwrap();
            let harvested = start.elapsed();
            staging.clear();
            paused.copy(dirty.iter(), &mut staging).unwrap();
            let copied = start.elapsed();
            drop(paused);
            let all = start.elapsed();
            let parts =
                [stopped, captured - stopped, harvested - captured, copied - harvested, all];
            us.iter_mut().zip(parts).for_each(|(us, part)| us.push(part.as_micros()));
        }
        us.iter_mut().for_each(|us| us.sort_unstable());
        let [stop, capture, harvest, copy, all] = us.each_ref().map(|us| us[us.len() / 2]);
        println!(
            "{vcpus} vCPUs, {:5} pages: pause p50 {all} us (p90 {}, max {}) = stop {stop} + capture {capture} + \
             harvest {harvest} + copy {copy}",
            dirty.len(),
            us[4][90],
            us[4][99]
        );
    }
}

#[test]
fn a_fault_is_measured() {
    let _alone = alone();
    let cpu = CpuProfile::of_host().unwrap();
    let cost = fault_cost(&cpu).unwrap();
    println!("a write-protect fault costs {cost:?}");
    assert!((1..1_000_000).contains(&cost.as_nanos()), "{cost:?}");
}

/// What the first touch of its pages costs a guest that goes on elsewhere: its first round over them against later ones.
#[test]
fn first_touches_after_a_takeover_are_measured() {
    const PAGES: u32 = 4000;
    let _alone = alone();
    let work = Work { vcpus: 1, pages: PAGES, spin: 0, after: After::GoOn };
    let (mut machine, cpu) = started(&SHAPE, work);
    serve(&mut machine, Duration::from_millis(900));
    let mut state = MachineState::default();
    let mut paused = machine.pause().unwrap();
    paused.capture(&mut state).unwrap();
    let mut backup = prepared(&SHAPE, &cpu);
    copy_ram(paused.memory(), backup.memory());
    paused.keep();
    let begun = Instant::now();
    backup.restore(&state).unwrap();
    let mut promoted = backup.start().unwrap();
    let activated = begun.elapsed();
    let mut round = || {
        let (begun, before) = (Instant::now(), small_guest::rounds(promoted.memory()));
        while small_guest::rounds(promoted.memory()) == before {
            assert!(begun.elapsed() < Duration::from_secs(5), "the guest does not go on");
            serve(&mut promoted, Duration::from_micros(20));
        }
        begun.elapsed()
    };
    // The first is of a part of a round, the second of all pages that part has not touched.
    let first = round() + round();
    let mut later: Vec<_> = (0..21).map(|_| round()).collect();
    later.sort_unstable();
    let later = later[later.len() / 2];
    println!(
        "activated in {activated:?}; {PAGES} pages touched in {first:?}, then {later:?} a round: {:.2} us a page",
        first.saturating_sub(later).as_secs_f64() * 1e6 / f64::from(PAGES)
    );
    assert!(later < Duration::from_secs(1));
}

pub(crate) fn apply(staging: &Staging, to: &Memory) {
    for (page, bytes) in staging.iter() {
        to.write_page(page, bytes).unwrap();
    }
}
