//! What the engine needs to tell an epoch's pages, and how the guest spent the epoch.

use std::time::Duration;

use crate::{
    checkpoint::{DirtyBook, HotSet, Page, PageSet, PauseBudget},
    machine::Machine,
    os::boot_now,
    wire::Moment,
};

/// The books of captures, and the buffers that a capture uses.
pub(super) struct Capture {
    pub(super) book: DirtyBook,
    pub(super) hot: HotSet,
    pub(super) budget: PauseBudget,
    pub(super) harvest: PageSet,
    pub(super) cool: PageSet,
    pub(super) stride: Vec<Page>,
    /// The guest was reset since the last checkpoint.
    pub(super) reset: bool,
    pub(super) activity: Activity,
}

/// How the guest spends the open epoch.
pub(super) struct Activity {
    /// When the open epoch began.
    since: Moment,
    /// CPU time of the vCPUs by then.
    vcpu_time: Duration,
    /// Frames that the guest had sent by then.
    sent: u64,
    /// Frames that the guest had sent when the brain was last told.
    told: u64,
}

impl Capture {
    /// For a machine of `ram_pages` pages. `cool_after` epochs without a write a page is protected again; `pause_max` is
    /// what a pause may take.
    pub(super) fn new(ram_pages: u32, cool_after: u8, pause_max: Duration) -> Self {
        Self {
            book: DirtyBook::new(ram_pages),
            hot: HotSet::new(ram_pages, cool_after),
            budget: PauseBudget::new(pause_max),
            harvest: PageSet::new(ram_pages),
            cool: PageSet::new(ram_pages),
            stride: Vec::new(),
            reset: false,
            activity: Activity { since: boot_now(), vcpu_time: Duration::ZERO, sent: 0, told: 0 },
        }
    }
}

impl Activity {
    /// A vCPU that uses less than one part in this many of an epoch is idle: pauses and timer ticks take some.
    const SHARE: u32 = 10;

    /// Whether the guest has sent something since this was last asked.
    pub(super) fn has_said_more(&mut self, machine: &Machine) -> bool {
        let sent = machine.net_counters().sent;
        std::mem::replace(&mut self.told, sent) != sent
    }

    /// Whether the guest is at work in the open epoch, by the CPU time of its vCPUs.
    pub(super) fn works(&self, machine: &Machine, now: Moment) -> bool {
        let used = machine.vcpu_time().saturating_sub(self.vcpu_time);
        used * Self::SHARE > now.since(self.since)
    }

    /// The epoch ends. Returns whether the guest was at work in it, and the number of frames that it sent.
    pub(super) fn seal(&mut self, machine: &Machine, now: Moment) -> (bool, u64) {
        let worked = self.works(machine, now);
        let sent = machine.net_counters().sent;
        let frames = sent - self.sent;
        (self.since, self.vcpu_time, self.sent) = (now, machine.vcpu_time(), sent);
        (worked, frames)
    }
}
