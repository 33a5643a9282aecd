//! What the threads of one VM write and the status socket reads.
//!
//! The calls that are made in every epoch (`sealed`, `sent`, `committed`, `released`, `gate`) are a few atomic stores,
//! without lock or allocation. The calls that are rare (`stand`, `took_over`) take a short lock.
//!
//! Invariant of every document: `released <= acked <= captured < open`. It holds since within a term each of the four only
//! grows and they are read in that order, and since a stamp of another term than that of `open` is shown as 0.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use remus_abi::{
    Epoch, Stamp, Term,
    ack::{AckCounter, AckCounters},
    gate::{Counter, Counters, Mode},
};

use super::{
    epochs::{EpochRing, PauseParts, Stretch},
    histogram::Histogram,
    status::{
        Distribution, Epochs, Failover, Gate, Inbound, Lost, Protection, Role, Status, Trigger,
    },
    tally::Tally,
};
use crate::{
    names::{Moment, VmName},
    os::boot_now,
    outlet,
};

/// See the module. There is one for each VM; threads hold it in an [`Arc`].
pub struct Shared {
    vm: VmName,
    role: Role,
    state: Mutex<ProtectionState>,
    failover: Mutex<Option<Failover>>,
    /// This and the next three are [`Stamp`]s; the term in `open` is the current one.
    open: AtomicU64,
    captured: AtomicU64,
    acked: AtomicU64,
    released: AtomicU64,
    checkpoints: AtomicU64,
    lag_us: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_raw: AtomicU64,
    ring: EpochRing,
    pause_us: Histogram,
    parts_us: [Histogram; PauseParts::COUNT],
    commit_us: Histogram,
    dirty_pages: Histogram,
    /// Passed on, left out.
    inbound: [AtomicU64; 2],
    gate_mode: AtomicU64,
    /// Frames held, their bytes, the capacity in bytes.
    gate_fill: [AtomicU64; 3],
    /// Count, p50, p90, p99, max in microseconds.
    gate_residence: [AtomicU64; 5],
    gate_counters: Tally<Counter, { Counter::COUNT }>,
    ack_counters: Tally<AckCounter, { AckCounter::COUNT }>,
    lead_us: Histogram,
}

/// The VM's protection, since when it has that, and how long the VM was protected before.
struct ProtectionState {
    protection: Protection,
    reason: String,
    since: Moment,
    protected_before: Duration,
}

/// One reading of the gate's maps.
#[derive(Clone, Copy, Debug)]
pub struct GateReading {
    pub mode: Mode,
    /// Frames held now.
    pub waiting: u64,
    /// Bytes of the buffer that these frames take.
    pub waiting_bytes: u64,
    pub capacity_bytes: u64,
    /// How long released frames had waited, in microseconds.
    pub residence_us: Distribution,
    pub counters: Counters,
    pub acks: AckCounters,
}

impl Shared {
    /// Makes the state of a VM that waits for its backup, in term `term`, with epoch 1 open.
    pub fn new(vm: &VmName, role: Role, term: Term) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            vm: vm.clone(),
            role,
            state: Mutex::new(ProtectionState {
                protection: Protection::Waiting,
                reason: String::new(),
                since: boot_now(),
                protected_before: Duration::ZERO,
            }),
            failover: Mutex::new(None),
            open: AtomicU64::new(Stamp::new(term, Epoch::FIRST).bits()),
            captured: zero(),
            acked: zero(),
            released: zero(),
            checkpoints: zero(),
            lag_us: zero(),
            bytes_sent: zero(),
            bytes_raw: zero(),
            ring: EpochRing::new(),
            pause_us: Histogram::new(),
            parts_us: std::array::from_fn(|_| Histogram::new()),
            commit_us: Histogram::new(),
            dirty_pages: Histogram::new(),
            inbound: std::array::from_fn(|_| zero()),
            gate_mode: AtomicU64::new(Mode::Closed as u64),
            gate_fill: std::array::from_fn(|_| zero()),
            gate_residence: std::array::from_fn(|_| zero()),
            gate_counters: Tally::new("gate"),
            ack_counters: Tally::new("trigger"),
            lead_us: Histogram::new(),
        })
    }

    /// Sets the VM's protection. `reason` is for people, and empty when all is well.
    pub fn stand(&self, protection: Protection, reason: &str) {
        let mut state = lock(&self.state);
        let now = boot_now();
        state.protected_before = state.protected(now);
        state.since = now;
        state.protection = protection;
        reason.clone_into(&mut state.reason);
    }

    /// Begins a term: epoch 1 is open, nothing is captured, and checkpoints count from 0.
    pub fn begin_term(&self, term: Term) {
        self.checkpoints.store(0, Relaxed);
        self.open.store(Stamp::new(term, Epoch::FIRST).bits(), Release);
    }

    /// Notes that the engine sealed `stamp`: the guest stood still for the sum of `parts`, `dirty_pages` are captured, the
    /// next epoch is open. Only the engine thread may call this.
    pub fn sealed(&self, stamp: Stamp, parts: &PauseParts, dirty_pages: u32) {
        let pause_us = parts.sum_us();
        self.ring.seal(stamp, parts, dirty_pages);
        self.pause_us.record(pause_us);
        for (histogram, us) in self.parts_us.iter().zip(parts.0) {
            histogram.record(us);
        }
        self.dirty_pages.record(dirty_pages);
        self.open.store(Stamp::new(stamp.term(), stamp.epoch().next()).bits(), Release);
        self.captured.store(stamp.bits(), Release);
    }

    /// Adds the bytes of a checkpoint as sent, and as they would be if every dirty page were sent whole.
    pub fn sent(&self, bytes_sent: u64, bytes_raw: u64) {
        self.bytes_sent.fetch_add(bytes_sent, Relaxed);
        self.bytes_raw.fetch_add(bytes_raw, Relaxed);
    }

    /// Notes that the backup committed `stamp`, `commit_us` after its seal. Called once for each epoch.
    pub fn committed(&self, stamp: Stamp, commit_us: u32) {
        self.ring.commit(stamp, commit_us);
        self.commit_us.record(commit_us);
        self.checkpoints.fetch_add(1, Relaxed);
        self.acked.store(stamp.bits(), Release);
    }

    /// Notes that the output of `stamp` and of all earlier epochs has left, `lag_us` after the seal of `stamp`.
    pub fn released(&self, stamp: Stamp, lag_us: u32) {
        self.lag_us.store(lag_us.into(), Relaxed);
        self.released.store(stamp.bits(), Release);
    }

    /// Notes, on a backup, that `stamp` is committed to the image here.
    pub fn applied(&self, stamp: Stamp) {
        self.checkpoints.fetch_add(1, Relaxed);
        self.open.store(Stamp::new(stamp.term(), stamp.epoch().next()).bits(), Release);
        self.captured.store(stamp.bits(), Release);
        self.acked.store(stamp.bits(), Release);
    }

    /// Takes a reading of the gate.
    pub fn gate(&self, reading: &GateReading) {
        self.gate_mode.store(reading.mode as u64, Relaxed);
        let fill = [reading.waiting, reading.waiting_bytes, reading.capacity_bytes];
        let d = reading.residence_us;
        for (word, value) in self.gate_fill.iter().zip(fill) {
            word.store(value, Relaxed);
        }
        for (word, value) in self.gate_residence.iter().zip([d.count, d.p50, d.p90, d.p99, d.max]) {
            word.store(value, Relaxed);
        }
        self.gate_counters.store(&reading.counters);
        self.ack_counters.store(&reading.acks);
    }

    /// Sets the counters of frames that the guest was given, and that its backup keeps.
    pub fn relayed(&self, counters: Inbound) {
        let Inbound { passed_on, left_out } = counters;
        for (to, from) in self.inbound.iter().zip([passed_on, left_out]) {
            to.store(from, Relaxed);
        }
    }

    /// Notes that the kernel released on the word of a datagram, `lead_us` before the controller would have.
    pub fn kernel_lead(&self, lead_us: u32) {
        self.lead_us.record(lead_us);
    }

    /// Notes that this backup has taken over. May be called again as more is known of the takeover.
    pub fn took_over(&self, failover: Failover) {
        *lock(&self.failover) = Some(failover);
    }

    /// Returns the document as of now. With `since`, distributions are over the epochs after it that are remembered.
    pub fn status(&self, since: Option<Epoch>) -> Status {
        let read = |stamp: &AtomicU64| Stamp::from_bits(stamp.load(Acquire));
        let (released, acked) = (read(&self.released), read(&self.acked));
        let (captured, open) = (read(&self.captured), read(&self.open));
        let epoch = |stamp: Stamp| match stamp.term() == open.term() {
            true => stamp.epoch().get(),
            false => Epoch::NONE.get(),
        };
        let Stretch { pause_us, parts_us, commit_us, dirty_pages } = match since {
            Some(since) => self.ring.stretch(open.term(), since),
            None => Stretch {
                pause_us: self.pause_us.distribution(),
                parts_us: std::array::from_fn(|part| self.parts_us[part].distribution().p50),
                commit_us: self.commit_us.distribution(),
                dirty_pages: self.dirty_pages.distribution(),
            },
        };
        let state = lock(&self.state);
        let protected = state.protected(boot_now());
        Status {
            vm: self.vm.to_string(),
            role: self.role,
            protection: state.protection,
            term: open.term().get(),
            epochs: Epochs {
                open: epoch(open),
                captured: epoch(captured),
                acked: epoch(acked),
                released: epoch(released),
            },
            checkpoints: self.checkpoints.load(Relaxed),
            protected_ms: u64::try_from(protected.as_millis()).unwrap_or(u64::MAX),
            lag_ms: self.lag_us.load(Relaxed) as f64 / 1000.0,
            pause_us,
            pause_parts_us: PauseParts::NAMES
                .map(str::to_owned)
                .into_iter()
                .zip(parts_us)
                .collect(),
            commit_us,
            dirty_pages,
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_raw: self.bytes_raw.load(Relaxed),
            inbound: self.inbound_status(),
            gate: self.gate_status(),
            trigger: self.trigger_status(),
            lost: lost(),
            failover: *lock(&self.failover),
            reason: state.reason.clone(),
        }
    }

    fn inbound_status(&self) -> Inbound {
        let [passed_on, left_out] = self.inbound.each_ref().map(|word| word.load(Relaxed));
        Inbound { passed_on, left_out }
    }

    fn trigger_status(&self) -> Trigger {
        let counters = self.ack_counters.load();
        let lead_us = self.lead_us.distribution();
        Trigger { refused: counters.alarms(), lead_us, counters }
    }

    fn gate_status(&self) -> Gate {
        let read = |word: &AtomicU64| word.load(Relaxed);
        let modes = [(Mode::Hold, "hold"), (Mode::Open, "open")];
        let now = self.gate_mode.load(Relaxed);
        // As the gate itself does, this takes every unknown mode for closed.
        let mode = modes.iter().find(|(mode, _)| *mode as u64 == now).map_or("closed", |m| m.1);
        let [waiting, waiting_bytes, capacity_bytes] = self.gate_fill.each_ref().map(read);
        let [count, p50, p90, p99, max] = self.gate_residence.each_ref().map(read);
        Gate {
            mode: mode.to_owned(),
            waiting,
            waiting_bytes,
            capacity_bytes,
            residence_us: Distribution { count, p50, p90, p99, max },
            counters: self.gate_counters.load(),
        }
    }
}

fn lost() -> Lost {
    let (log_lines, console_bytes) = outlet::lost();
    Lost { log_lines, console_bytes }
}

impl ProtectionState {
    fn protected(&self, now: Moment) -> Duration {
        match self.protection {
            Protection::Protected => self.protected_before + now.since(self.since),
            Protection::Waiting
            | Protection::Syncing
            | Protection::Impaired
            | Protection::Stalled
            | Protection::Unprotected
            | Protection::Promoted
            | Protection::GateLost
            | Protection::Stopped => self.protected_before,
        }
    }
}

/// Locks, also after a panic: these locks guard plain values, which no panic leaves half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> VmName {
        VmName::new("demo").unwrap()
    }

    fn stamp(epoch: u64) -> Stamp {
        Stamp::new(Term::FIRST, Epoch::new(epoch).unwrap())
    }

    #[test]
    fn an_epoch_is_seen_through_seal_commit_and_release() {
        let shared = Shared::new(&demo(), Role::Primary, Term::FIRST);
        shared.sealed(stamp(1), &PauseParts([400, 0, 0, 0, 0, 0]), 1000);
        shared.sealed(stamp(2), &PauseParts([400, 100, 0, 0, 0, 0]), 10);
        shared.sent(5_000, 4_096_000);
        shared.committed(stamp(1), 1500);
        shared.released(stamp(1), 1600);
        let s = shared.status(None);
        let e = s.epochs;
        assert_eq!((e.open, e.captured, e.acked, e.released), (3, 2, 1, 1));
        assert_eq!((s.checkpoints, s.bytes_sent, s.lag_ms), (1, 5_000, 1.6));
        assert_eq!((s.pause_us.count, s.pause_us.max, s.commit_us.count), (2, 500, 1));
        let s = shared.status(Epoch::new(1));
        assert_eq!((s.pause_us.count, s.pause_us.p50, s.commit_us.count), (1, 500, 0));
    }

    #[test]
    fn only_protected_time_counts_as_protected() {
        let shared = Shared::new(&demo(), Role::Primary, Term::FIRST);
        let nap = Duration::from_millis(20);
        std::thread::sleep(nap);
        assert_eq!(shared.status(None).protected_ms, 0);
        shared.stand(Protection::Protected, "");
        std::thread::sleep(nap);
        shared.stand(Protection::Stalled, "no acks for 70 ms");
        let stalled = shared.status(None);
        assert!((20..1000).contains(&stalled.protected_ms), "{}", stalled.protected_ms);
        std::thread::sleep(nap);
        assert_eq!(shared.status(None).protected_ms, stalled.protected_ms);
        assert_eq!(stalled.reason, "no acks for 70 ms");
    }

    #[test]
    fn a_new_term_starts_at_its_first_epoch() {
        let shared = Shared::new(&demo(), Role::Backup, Term::FIRST);
        shared.applied(stamp(7));
        assert_eq!(shared.status(None).epochs.acked, 7);
        shared.begin_term(Term::FIRST.next());
        let s = shared.status(None);
        assert_eq!((s.term, s.epochs.open, s.epochs.acked, s.checkpoints), (2, 1, 0, 0));
    }

    #[test]
    fn a_gate_mode_that_nobody_knows_reads_closed() {
        let shared = Shared::new(&demo(), Role::Primary, Term::FIRST);
        let mut counters = Counters::default();
        counters.set(Counter::RefusedByLock, 3);
        let residence_us = Distribution::default();
        let (waiting, waiting_bytes, capacity_bytes) = (9, 900, 4096);
        shared.gate(&GateReading {
            mode: Mode::Hold,
            waiting,
            waiting_bytes,
            capacity_bytes,
            residence_us,
            counters,
            acks: AckCounters::default(),
        });
        let gate = shared.status(None).gate;
        assert_eq!((gate.mode.as_str(), gate.waiting, gate.counters.alarms()), ("hold", 9, 3));
        shared.gate_mode.store(77, Relaxed);
        assert_eq!(shared.status(None).gate.mode, "closed");
    }
}
