//! Claims about a gate that outlives its term: unprotected, then protected again, on the same gate and tap.

use std::time::{Duration, Instant};

use remus::{
    gate::{Engine, Flushed, Gate, Held, HookKind, Release, Settings},
    names::LinkName,
};
use remus_abi::{
    Term,
    gate::{Counter, Mode},
};
use rig::permits::{self, Epochs, long_lease};

use crate::{
    gate::{TERM, begun, committed, opened, release_all},
    hook::kinds,
    nfqueue::{ip, numbers},
    wire::{Wire, number_in, numbered},
};

/// A way in which a gate can be built, with frames that such a gate holds by its engine.
#[derive(Clone, Copy, Debug)]
enum Build {
    ReEntry,
    Uplink,
    NfQueue,
}

/// A guest behind a gate.
struct Stage {
    wire: Wire,
    gate: Gate,
    build: Build,
}

impl Build {
    const ALL: [Self; 3] = [Self::ReEntry, Self::Uplink, Self::NfQueue];

    fn settings(self, wire: &Wire) -> Settings {
        match self {
            Self::ReEntry => Settings::default(),
            Self::Uplink => {
                let uplink = LinkName::new(wire.uplink()).unwrap();
                Settings { release: Release::Uplink(uplink), ..Settings::default() }
            }
            Self::NfQueue => Settings { engine: Engine::NfQueue, ..Settings::default() },
        }
    }
}

impl Stage {
    /// The gate holds in the first term, under a lease that lasts.
    fn new(build: Build, kind: HookKind) -> Self {
        let wire = Wire::new();
        let (tap, settings) = (wire.tap.clone(), build.settings(&wire));
        let installed = Gate::install_by(kind, tap, wire.pins.path(), &settings);
        let mut gate = begun(installed.expect("install the gate"));
        gate.hold();
        gate.renew_lease(&long_lease(TERM));
        Self { wire, gate, build }
    }

    fn says(&mut self, said: impl IntoIterator<Item = u32>) {
        for number in said {
            let frame = match self.build {
                Build::ReEntry | Build::Uplink => numbered(number),
                Build::NfQueue => ip(number),
            };
            self.wire.send(&frame);
        }
    }

    /// Flushes, unless that is refused, and returns what was heard outside since this was last asked.
    fn heard(&mut self) -> Vec<u32> {
        let until = Instant::now() + Duration::from_secs(20);
        while self.gate.flush().unwrap() == Flushed::Pending {
            assert!(Instant::now() < until, "frames are still under way after 20 s");
        }
        let out = self.wire.arrivals();
        match self.build {
            Build::ReEntry | Build::Uplink => out.iter().map(|frame| number_in(frame)).collect(),
            Build::NfQueue => numbers(&out),
        }
    }

    fn hears_nothing(&mut self, why: &str) {
        assert_eq!(self.heard(), [] as [u32; 0], "{:?}: {why}", self.build);
    }

    fn count(&self, which: Counter) -> u64 {
        self.gate.counters().unwrap().get(which)
    }

    fn is_well(&self) {
        let refused = self.count(Counter::RefusedByLock) + self.count(Counter::RefusedStale);
        assert_eq!((refused, self.count(Counter::CommitNotBelowOpen)), (0, 0), "{:?}", self.build);
        self.gate.verify().expect("well");
    }
}

/// Runs a claim about every build with every hook, each in namespaces of its own.
fn every_gate(claim: impl Fn(Stage) + Sync) {
    for build in Build::ALL {
        for kind in kinds() {
            std::thread::scope(|scope| {
                scope.spawn(|| claim(Stage::new(build, kind)));
            });
        }
    }
}

/// Numbers `from` up to and without `to`.
fn range(from: u32, to: u32) -> Vec<u32> {
    (from..to).collect()
}

#[test]
fn a_guest_goes_on_unprotected_and_is_protected_again_in_a_new_term_on_the_same_gate() {
    every_gate(|mut stage| {
        stage.says(0..20);
        stage.gate.seal(&opened(2));
        stage.says(20..40);
        stage.gate.commit(&committed(1));
        assert_eq!(stage.heard(), range(0, 20));

        let fenced = permits::after(TERM);
        stage.gate.begin_term(&fenced, Held::Keep).unwrap();
        stage.says(40..45);
        stage.hears_nothing("the gate holds until it is opened");
        stage.gate.open(&fenced);
        stage.says(45..50);
        assert_eq!(stage.heard(), range(20, 50), "what was held leaves first, and in order");
        stage.says(50..60);
        assert_eq!(stage.heard(), range(50, 60), "what is said while the gate is open passes");
        assert_eq!(stage.gate.held(), 0);

        let mut epochs = Epochs::begin(fenced);
        stage.gate.seal(&epochs.seal());
        stage.says(60..70);
        stage.hears_nothing("nothing is committed in the new term");
        stage.gate.commit(&epochs.commit());
        stage.hears_nothing("the lease of the old term is over");
        stage.gate.renew_lease(&long_lease(TERM.next()));
        stage.hears_nothing("the epoch that is committed ended before these were said");
        stage.gate.seal(&epochs.seal());
        stage.says(70..80);
        stage.gate.commit(&epochs.commit());
        assert_eq!(stage.heard(), range(60, 70));
        assert_eq!(stage.gate.open_epoch().term(), TERM.next());
        stage.is_well();
    });
}

#[test]
fn what_is_kept_and_not_let_through_leaves_with_the_first_commit_of_the_new_term() {
    every_gate(|mut stage| {
        stage.says(0..10);
        stage.gate.seal(&opened(2));
        stage.gate.seal(&opened(3));
        stage.says(10..20);
        let fenced = permits::after(TERM);
        stage.gate.begin_term(&fenced, Held::Keep).unwrap();
        stage.gate.renew_lease(&long_lease(TERM.next()));
        stage.says(20..30);
        stage.hears_nothing("under a lease, but nothing is committed");
        let mut epochs = Epochs::begin(fenced);
        stage.gate.seal(&epochs.seal());
        stage.says(30..40);
        stage.hears_nothing("sealed is not committed");
        stage.gate.commit(&epochs.commit());
        assert_eq!(stage.heard(), range(0, 30));
        stage.is_well();
    });
}

#[test]
fn what_is_discarded_never_leaves() {
    every_gate(|mut stage| {
        stage.says(0..10);
        stage.gate.seal(&opened(2));
        stage.says(10..20);
        stage.gate.seal(&opened(3));
        let fenced = permits::after(TERM);
        stage.gate.begin_term(&fenced, Held::Discard).unwrap();
        assert_eq!((stage.gate.held(), stage.count(Counter::Discarded)), (0, 20));
        stage.gate.renew_lease(&long_lease(TERM.next()));
        stage.says(20..30);
        // Up to the epochs in which the old term's frames were stamped, and beyond.
        let mut epochs = Epochs::begin(fenced);
        for _ in 0..4 {
            stage.gate.seal(&epochs.seal());
        }
        stage.gate.commit(&epochs.commit());
        assert_eq!(stage.heard(), range(20, 30));
        let fenced = permits::after(TERM.next());
        stage.gate.begin_term(&fenced, Held::Keep).unwrap();
        stage.gate.open(&fenced);
        stage.says(30..35);
        assert_eq!(stage.heard(), range(30, 35), "nor through a later term that keeps");
        stage.is_well();
    });
}

#[test]
fn what_is_kept_over_several_terms_leaves_in_order() {
    every_gate(|mut stage| {
        let mut term = TERM;
        for n in 0..6 {
            stage.says(n * 10..n * 10 + 10);
            stage.gate.begin_term(&permits::after(term), Held::Keep).unwrap();
            term = term.next();
        }
        stage.hears_nothing("no term has opened or committed");
        assert_eq!(stage.gate.held(), 60);
        stage.gate.open(&permits::after(Term::new(term.get() - 1).unwrap()));
        stage.says(60..70);
        match stage.build {
            Build::ReEntry | Build::Uplink => assert_eq!(stage.heard(), range(0, 70)),
            // A mark tells four terms apart. Frames that waited longer are lost, not let out before their time.
            Build::NfQueue => {
                let heard = stage.heard();
                assert!(heard.is_sorted() && heard.ends_with(&range(60, 70)), "{heard:?}");
            }
        }
    });
}

#[test]
fn an_open_gate_that_begins_a_term_holds_until_it_is_opened_again() {
    every_gate(|mut stage| {
        stage.says(0..10);
        stage.gate.open(&permits::first());
        stage.says(10..20);
        let fenced = permits::after(TERM);
        stage.gate.begin_term(&fenced, Held::Keep).unwrap();
        stage.says(20..30);
        assert_eq!(stage.gate.mode(), Mode::Hold);
        stage.hears_nothing("the permission of the old term is over");
        stage.gate.open(&fenced);
        assert_eq!(stage.heard(), range(0, 30));
        stage.is_well();
    });
}

#[test]
fn a_closed_gate_that_begins_a_term_stays_closed_and_keeps_what_it_held() {
    every_gate(|mut stage| {
        stage.says(0..10);
        stage.gate.close();
        let fenced = permits::after(TERM);
        stage.gate.begin_term(&fenced, Held::Keep).unwrap();
        stage.says(10..20);
        stage.hears_nothing("closed");
        stage.gate.open(&fenced);
        stage.says(20..30);
        assert_eq!(stage.heard(), [range(0, 10), range(20, 30)].concat());
    });
}

#[test]
fn a_gate_that_was_adopted_or_put_back_goes_on_in_its_term_and_begins_the_next() {
    for kind in kinds() {
        let mut stage = Stage::new(Build::ReEntry, kind);
        stage.says(0..10);
        stage.gate.begin_term(&permits::after(TERM), Held::Keep).unwrap();
        let Stage { wire, gate, build } = stage;
        drop(gate);
        let adopted = Gate::adopt(wire.tap.clone(), wire.pins.path()).unwrap();
        let mut stage = Stage { wire, gate: adopted.expect("it is there"), build };
        assert_eq!(stage.gate.open_epoch().term(), TERM.next());
        stage.gate.begin_term(&permits::after(TERM.next()), Held::Keep).unwrap();
        stage.gate.open(&permits::after(TERM.next()));
        assert_eq!(stage.heard(), range(0, 10), "kept twice, by two controllers");

        stage.gate = stage.gate.again().expect("put the gate back");
        assert_eq!((stage.gate.mode(), stage.gate.open_epoch().term().get()), (Mode::Closed, 3));
        stage.gate.open(&permits::after(TERM.next()));
        stage.says(10..20);
        assert_eq!(stage.heard(), range(10, 20));
    }
}

#[test]
fn a_full_buffer_is_discarded_in_no_time() {
    const FRAMES: u32 = 100_000;
    let mut stage = Stage::new(Build::ReEntry, HookKind::of_this_kernel().unwrap());
    stage.says(0..FRAMES);
    let began = Instant::now();
    stage.gate.begin_term(&permits::after(TERM), Held::Discard).unwrap();
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!((stage.gate.held(), stage.gate.fill().bytes), (0, 0));
    stage.says(0..10);
    stage.gate.open(&permits::after(TERM));
    release_all(&mut stage.gate);
    assert_eq!(stage.heard(), range(0, 10), "there is room, and it works as ever");
}
