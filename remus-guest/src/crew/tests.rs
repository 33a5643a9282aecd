use super::*;
use alloc::vec;

fn plan(region_pages: usize, pages_per_second: u64) -> Plan {
    Plan { shape: Shape::Seq, region_pages, bytes_per_page: 64, pages_per_second }
}

/// Lets boot CPU and helpers take turns until `end_ns`, on a clock that moves 10 us a turn and 1 us a look.
fn run(crew: &mut Crew<'_>, helpers: &mut [Helper<'_>], now_ns: &mut u64, end_ns: u64) {
    let mut clock = || {
        *now_ns += 1_000;
        *now_ns
    };
    while clock() < end_ns {
        crew.run(5_000, &mut clock);
        helpers.iter_mut().for_each(|helper| helper.run(5_000, &mut clock));
    }
}

/// Runs a plan for a second with three CPUs that have 8 pages each: what each did, and what each has touched.
fn three(plan: Plan) -> (Vec<u64>, Vec<usize>) {
    let mut arena = vec![0; 25 * PAGE];
    let desks = [Desk::default(), Desk::default()];
    let mut pieces_of = pieces(&mut arena, 3);
    let own = pieces_of.next().unwrap();
    let mut helpers: Vec<_> =
        pieces_of.zip(&desks).map(|(piece, desk)| Helper::new(piece, desk)).collect();
    let mut crew = Crew::new(own, desks.iter().collect());
    helpers.iter().for_each(Helper::arrive);
    assert_eq!(crew.cpus(), (3, 3));
    crew.start(plan).unwrap();
    assert!(crew.has_news() && !crew.has_news());
    let mut now_ns = 1_000_000_000;
    run(&mut crew, &mut helpers, &mut now_ns, 2_000_000_000);
    let did: Vec<_> = crew.progresses().collect();
    assert_eq!(crew.progress(), did.iter().sum());
    crew.stop();
    run(&mut crew, &mut helpers, &mut now_ns, 2_100_000_000);
    assert_eq!(crew.progresses().collect::<Vec<_>>(), did, "at work after a stop");
    let touched = |piece: &[u8]| piece.chunks(PAGE).filter(|page| page[..8] != [0; 8]).count();
    (did, arena.chunks(8 * PAGE).map(touched).collect())
}

#[test]
fn a_plan_is_divided_among_all() {
    let (did, touched) = three(plan(20, 3_002));
    assert_eq!(touched, [7, 7, 6, 0]);
    assert!(did.iter().all(|did| (990..=1_010).contains(did)), "{did:?}");
}

#[test]
fn fewer_pages_than_cpus_leave_some_idle() {
    let (did, touched) = three(plan(2, 0));
    assert_eq!(touched, [1, 1, 0, 0]);
    assert!(did[0] > 0 && did[1] > 0 && did[2] == 0, "{did:?}");
}

#[test]
fn a_rate_that_is_less_than_the_cpus_is_not_unlimited() {
    let (did, _) = three(plan(24, 1));
    // The debt of the first look, and a second.
    assert!(did.iter().all(|did| *did <= 2), "{did:?}");
}

#[test]
fn what_one_alone_could_not_do_is_refused_by_all() {
    let mut arena = vec![0; 16 * PAGE];
    let desk = Desk::default();
    let mut pieces_of = pieces(&mut arena, 2);
    let mut crew = Crew::new(pieces_of.next().unwrap(), vec![&desk]);
    let mut helper = Helper::new(pieces_of.next().unwrap(), &desk);
    assert_eq!(crew.start(plan(17, 0)), Err(PlanError::RegionPages { arena: 16 }));
    let short = Plan { bytes_per_page: 7, ..plan(16, 0) };
    assert_eq!(crew.start(short), Err(PlanError::BytesPerPage));
    assert!(!crew.has_news());
    crew.start(plan(16, 0)).unwrap();
    run(&mut crew, core::slice::from_mut(&mut helper), &mut 0, 1_000_000);
    assert!(crew.progresses().all(|did| did > 0));
}

#[test]
fn an_order_is_seen_whole_or_not_at_all_by_another_thread() {
    extern crate std;
    let desk = Desk::default();
    let orders = 20_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seen = 0;
            while seen < 2 * orders {
                let Some((version, order)) = desk.take(seen) else { continue };
                assert!(version > seen);
                seen = version;
                let order = order.unwrap();
                let n = order.region_pages;
                assert_eq!((order.bytes_per_page, order.pages_per_second), (n, n as u64));
            }
        });
        for n in 1..=orders as usize {
            let pages_per_second = n as u64;
            desk.put(Some(Plan { bytes_per_page: n, ..plan(n, pages_per_second) }));
        }
    });
}
