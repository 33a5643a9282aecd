//! A gate does the same whichever way its program is attached.

use remus::gate::{Gate, Held, HookKind, Settings};
use remus_abi::gate::Counter;
use rig::permits::{self, long_lease};

use crate::{
    gate::{TERM, committed, committed_in, opened, opened_in, release_all},
    loss::holding,
    wire::{Wire, number_in, numbered},
};

/// The ways that this kernel has.
pub(crate) fn kinds() -> Vec<HookKind> {
    match HookKind::of_this_kernel().expect("ask the kernel: needs root") {
        HookKind::Tcx => vec![HookKind::Tcx, HookKind::Clsact],
        HookKind::Clsact => vec![HookKind::Clsact],
    }
}

/// Runs a claim about TCX, which kernels below 6.6 do not have: nothing to claim there.
pub(crate) fn with_tcx(claim: impl FnOnce(HookKind)) {
    if kinds().contains(&HookKind::Tcx) {
        claim(HookKind::Tcx);
    }
}

/// Runs a claim about clsact, which every kernel has.
pub(crate) fn with_clsact(claim: impl FnOnce(HookKind)) {
    claim(HookKind::Clsact);
}

fn filters(wire: &Wire) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use futures_util::TryStreamExt;
        let (connection, links, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        let index = i32::try_from(wire.tap.ifindex).unwrap();
        let all = links.traffic_filter(index).get().ingress().execute();
        let all: Vec<_> = all.try_collect().await.expect("list the filters");
        // Handle 0 is the entry of the classifier.
        all.iter().filter(|filter| u32::from(filter.header.handle) != 0).count()
    })
}

#[test]
fn a_gate_by_clsact_holds_and_releases_in_order() {
    let mut wire = Wire::new();
    let mut gate = holding(&wire, HookKind::Clsact);
    for n in 0..100 {
        wire.send(&numbered(n));
    }
    assert!(wire.arrivals().is_empty());
    gate.seal(&opened(2));
    wire.send(&numbered(100));
    gate.commit(&committed(1));
    release_all(&mut gate);
    let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
    assert_eq!(out, (0..100).collect::<Vec<_>>());
    assert_eq!(gate.counters().unwrap().get(Counter::RefusedByLock), 0);
}

#[test]
fn a_gate_by_clsact_outlives_its_controller_and_is_replaced_without_a_gap() {
    let mut wire = Wire::new();
    drop(holding(&wire, HookKind::Clsact));
    wire.send(&numbered(1));
    assert!(wire.arrivals().is_empty(), "held on without a controller");
    assert!(Gate::guards("guest0"));

    let mut next = Gate::install_by(
        HookKind::Clsact,
        wire.tap.clone(),
        wire.pins.path(),
        &Settings::default(),
    )
    .unwrap();
    next.begin_term(&permits::after(TERM), Held::Discard).unwrap();
    assert_eq!(filters(&wire), 1, "the older gate's filter is gone");
    next.hold();
    next.renew_lease(&long_lease(TERM.next()));
    wire.send(&numbered(2));
    next.seal(&opened_in(permits::after(TERM), 2));
    next.commit(&committed_in(permits::after(TERM), 1));
    release_all(&mut next);
    let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
    assert_eq!(out, [2], "the dead guest's frame is gone");
}

#[test]
fn a_gate_of_one_kind_replaces_one_of_the_other() {
    with_tcx(|_| {
        for (older, newer) in [(HookKind::Tcx, HookKind::Clsact), (HookKind::Clsact, HookKind::Tcx)]
        {
            let mut wire = Wire::new();
            drop(holding(&wire, older));
            let gate = holding(&wire, newer);
            wire.send(&numbered(1));
            assert!(wire.arrivals().is_empty());
            assert_eq!(gate.counters().unwrap().get(Counter::Held), 1, "the newer one judged it");
            assert_eq!(filters(&wire), usize::from(newer == HookKind::Clsact));
        }
    });
}

#[test]
fn a_removed_gate_leaves_no_filter() {
    let mut wire = Wire::new();
    holding(&wire, HookKind::Clsact).remove().unwrap();
    assert_eq!(filters(&wire), 0);
    assert!(!Gate::guards("guest0"));
    wire.send(&numbered(1));
    assert_eq!(wire.arrivals().len(), 1, "nothing is left that would hold");
    std::fs::create_dir(wire.pins.path()).unwrap();
}
