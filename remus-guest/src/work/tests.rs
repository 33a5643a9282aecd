use super::*;
use alloc::vec;
use alloc::vec::Vec;

fn plan(shape: Shape, region_pages: usize, pages_per_second: u64) -> Plan {
    Plan { shape, region_pages, bytes_per_page: 64, pages_per_second }
}

/// Runs until `end_ns` on a clock that moves 100 us a call of `run` and 1 us a look.
fn run_until(work: &mut Work<'_>, now_ns: &mut u64, end_ns: u64) {
    while *now_ns < end_ns {
        work.run(50_000, || {
            *now_ns += 1_000;
            *now_ns
        });
        *now_ns += 100_000;
    }
}

#[test]
fn a_paced_generator_keeps_its_rate() {
    let mut arena = vec![0; 64 * PAGE];
    let mut work = Work::new(&mut arena);
    work.start(plan(Shape::Seq, 64, 40_000)).unwrap();
    let mut now_ns = 5_000_000_000;
    run_until(&mut work, &mut now_ns, 6_000_000_000);
    assert!((39_500..=40_500).contains(&work.progress()), "{}", work.progress());
}

#[test]
fn a_jump_of_the_clock_is_not_worked_off() {
    let mut arena = vec![0; 64 * PAGE];
    let mut work = Work::new(&mut arena);
    work.start(plan(Shape::Seq, 64, 1_000)).unwrap();
    let mut now_ns = 1_000_000_000;
    run_until(&mut work, &mut now_ns, 1_100_000_000);
    let before = work.progress();
    now_ns += 60_000_000_000;
    let end_ns = now_ns + 1_000_000;
    run_until(&mut work, &mut now_ns, end_ns);
    assert!(work.progress() - before <= 15, "{}", work.progress() - before);
}

#[test]
fn every_shape_stays_in_its_region_and_reaches_all_of_it() {
    for shape in [Shape::Seq, Shape::Random, Shape::Hot] {
        for pages in [1, 2, 8, 40] {
            let mut arena = vec![0; 48 * PAGE];
            let mut work = Work::new(&mut arena);
            work.start(plan(shape, pages, 0)).unwrap();
            let mut now_ns = 0;
            run_until(&mut work, &mut now_ns, 10_000_000);
            let touched: Vec<_> = arena.chunks(PAGE).map(|p| p[..64] != [0; 64]).collect();
            assert!(touched[..pages].iter().all(|t| *t), "{shape:?} {pages}");
            assert!(!touched[pages..].iter().any(|t| *t), "{shape:?} {pages}");
        }
    }
}

#[test]
fn progress_lives_through_stop_and_start() {
    let mut arena = vec![0; 4 * PAGE];
    let mut work = Work::new(&mut arena);
    work.start(plan(Shape::Hot, 4, 0)).unwrap();
    let mut now_ns = 0;
    run_until(&mut work, &mut now_ns, 1_000_000);
    let before = work.progress();
    assert!(before > 0);
    work.stop();
    assert_eq!(work.due_ns(now_ns), None);
    run_until(&mut work, &mut now_ns, 2_000_000);
    assert_eq!(work.progress(), before);
    work.start(plan(Shape::Hot, 4, 0)).unwrap();
    run_until(&mut work, &mut now_ns, 3_000_000);
    assert!(work.progress() > before);
}

#[test]
fn a_plan_beyond_the_arena_is_refused() {
    let mut arena = vec![0; 4 * PAGE];
    let mut work = Work::new(&mut arena);
    let refused = Err(PlanError::RegionPages { arena: 4 });
    assert_eq!(work.start(plan(Shape::Seq, 5, 0)), refused);
    assert_eq!(work.start(plan(Shape::Seq, 0, 0)), refused);
    let short = Plan { bytes_per_page: 7, ..plan(Shape::Seq, 1, 0) };
    assert_eq!(work.start(short), Err(PlanError::BytesPerPage));
}
