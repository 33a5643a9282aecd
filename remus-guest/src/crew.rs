//! The work of all vCPUs: one plan, and a generator for each of them.
//!
//! The boot CPU serves clients, so it is the one that is told what to do. It divides a plan's region and rate among
//! all CPUs, does its own part as it always did, and puts the others' on their [`Desk`]s, a word at a time: CPUs
//! share atomic words and nothing else. Each CPU works on a piece of the arena of its own.
//!
//! ```text
//! Crew (boot CPU): Work over arena[0]         Helper (CPU 1): Work over arena[1]
//!        | order: plan, versioned   ->  Desk 1   ->  |
//!        | <-  progress, whether it is there         |
//! ```
//!
//! A helper that sleeps must be woken after an order: that is the machine's, see [`Crew::has_news`].
//!
//! Invariant: the progress of every CPU, hence that of all together, never decreases.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::work::{PAGE, Plan, PlanError, Shape, Work};

/// What the boot CPU and one other tell each other.
#[derive(Debug, Default)]
pub struct Desk {
    order: Order,
    report: Report,
}

/// Written by the boot CPU, now and then.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Order {
    /// Odd while the words are written; grows with each order.
    version: AtomicU64,
    /// 0 to stop, else a [`Shape`].
    shape: AtomicU64,
    region_pages: AtomicU64,
    bytes_per_page: AtomicU64,
    pages_per_second: AtomicU64,
}

/// Written by the other CPU, all the time: in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Report {
    here: AtomicBool,
    progress: AtomicU64,
}

/// The boot CPU's side.
#[derive(Debug)]
pub struct Crew<'m> {
    own: Work<'m>,
    others: Vec<&'m Desk>,
    /// Pages of the smallest piece of the arena.
    piece_pages: usize,
    plan: Option<Plan>,
    news: bool,
}

/// Another CPU's side.
#[derive(Debug)]
pub struct Helper<'m> {
    work: Work<'m>,
    desk: &'m Desk,
    /// Version of the order that is carried out.
    seen: u64,
}

/// The arena in a piece of whole pages for each CPU, all equally long.
///
/// # Panics
/// When there is not a page for each.
pub fn pieces(arena: &mut [u8], cpus: usize) -> impl Iterator<Item = &mut [u8]> {
    let pages = arena.len() / PAGE / cpus;
    assert!(pages > 0, "too little RAM for {cpus} CPUs");
    arena.chunks_exact_mut(pages * PAGE).take(cpus)
}

impl<'m> Crew<'m> {
    /// The boot CPU by itself.
    pub fn alone(arena: &'m mut [u8]) -> Self {
        Self::new(arena, Vec::new())
    }

    /// The boot CPU with others, whose pieces of the arena are as long as `piece`.
    pub fn new(piece: &'m mut [u8], others: Vec<&'m Desk>) -> Self {
        let piece_pages = piece.len() / PAGE;
        Self { own: Work::new(piece), others, piece_pages, plan: None, news: false }
    }

    /// Begins `plan`, in place of the one that runs. Each CPU gets one page and one page a second at least.
    pub fn start(&mut self, plan: Plan) -> Result<(), PlanError> {
        let cpus = 1 + self.others.len();
        let arena = self.piece_pages * cpus;
        if plan.region_pages == 0 || plan.region_pages > arena {
            return Err(PlanError::RegionPages { arena });
        }
        let workers = cpus.min(plan.region_pages);
        let part = |n| Plan {
            region_pages: part(plan.region_pages, workers, n),
            pages_per_second: match plan.pages_per_second {
                0 => 0,
                // 0 would be another thing than little.
                rate => part(usize::try_from(rate).unwrap_or(usize::MAX), workers, n).max(1) as u64,
            },
            ..plan
        };
        // Checked by the first, before anybody is told anything.
        self.own.start(part(0))?;
        for (n, desk) in (1..).zip(&self.others) {
            desk.put((n < workers).then(|| part(n)));
        }
        self.plan = Some(plan);
        self.news = true;
        Ok(())
    }

    pub fn stop(&mut self) {
        self.own.stop();
        self.others.iter().for_each(|desk| desk.put(None));
        self.plan = None;
        self.news = true;
    }

    /// The plan that was started and not stopped.
    pub fn plan(&self) -> Option<Plan> {
        self.plan
    }

    /// Touches so far, all plans and all CPUs together.
    pub fn progress(&self) -> u64 {
        self.progresses().sum()
    }

    /// The same for each CPU.
    pub fn progresses(&self) -> impl Iterator<Item = u64> {
        let others = self.others.iter().map(|desk| desk.report.progress.load(Ordering::Acquire));
        core::iter::once(self.own.progress()).chain(others)
    }

    /// CPUs that there are, and those of them that are there.
    pub fn cpus(&self) -> (usize, usize) {
        let here = self.others.iter().filter(|desk| desk.report.here.load(Ordering::Acquire));
        (1 + self.others.len(), 1 + here.count())
    }

    /// Whether the others were told something since the last call, and must be woken.
    pub fn has_news(&mut self) -> bool {
        core::mem::take(&mut self.news)
    }

    /// When the boot CPU has something to do, as [`Work::due_ns`].
    pub fn due_ns(&self, now_ns: u64) -> Option<u64> {
        self.own.due_ns(now_ns)
    }

    /// The boot CPU's part, as [`Work::run`].
    pub fn run(&mut self, quantum_ns: u64, clock: impl FnMut() -> u64) {
        self.own.run(quantum_ns, clock);
    }
}

/// What the `n`th of `workers` gets of `whole`.
fn part(whole: usize, workers: usize, n: usize) -> usize {
    whole / workers + usize::from(n < whole % workers)
}

impl<'m> Helper<'m> {
    pub fn new(piece: &'m mut [u8], desk: &'m Desk) -> Self {
        Self { work: Work::new(piece), desk, seen: 0 }
    }

    /// Says that this CPU is there.
    pub fn arrive(&self) {
        self.desk.report.here.store(true, Ordering::Release);
    }

    /// Carries out what was ordered, for about `quantum_ns`, as [`Work::run`].
    pub fn run(&mut self, quantum_ns: u64, clock: impl FnMut() -> u64) {
        if let Some((version, plan)) = self.desk.take(self.seen) {
            self.seen = version;
            match plan.map(|plan| self.work.start(plan)) {
                // The crew has checked it for a piece as long as this one.
                Some(Ok(())) => {}
                None | Some(Err(_)) => self.work.stop(),
            }
        }
        let before = self.work.progress();
        self.work.run(quantum_ns, clock);
        if self.work.progress() != before {
            self.desk.report.progress.store(self.work.progress(), Ordering::Release);
        }
    }

    /// When there is something to do, as [`Work::due_ns`]. An order that came since counts only once it is seen.
    pub fn due_ns(&self, now_ns: u64) -> Option<u64> {
        self.work.due_ns(now_ns)
    }
}

impl Desk {
    /// A new order. Only the boot CPU gives any.
    fn put(&self, plan: Option<Plan>) {
        let order = &self.order;
        let version = order.version.load(Ordering::Relaxed);
        order.version.store(version + 1, Ordering::Relaxed);
        // Whoever sees a word of this order sees that the version has changed.
        fence(Ordering::Release);
        let shape = plan.map_or(0, |plan| match plan.shape {
            Shape::Seq => 1,
            Shape::Random => 2,
            Shape::Hot => 3,
        });
        let number = |of: fn(&Plan) -> u64| plan.as_ref().map_or(0, of);
        order.shape.store(shape, Ordering::Relaxed);
        order.region_pages.store(number(|p| p.region_pages as u64), Ordering::Relaxed);
        order.bytes_per_page.store(number(|p| p.bytes_per_page as u64), Ordering::Relaxed);
        order.pages_per_second.store(number(|p| p.pages_per_second), Ordering::Relaxed);
        order.version.store(version + 2, Ordering::Release);
    }

    /// The order that is there, whole, and its version, if that is not `seen`. One that is being written is not
    /// there yet: its writer wakes the reader when it is.
    fn take(&self, seen: u64) -> Option<(u64, Option<Plan>)> {
        let order = &self.order;
        let version = order.version.load(Ordering::Acquire);
        if version == seen || !version.is_multiple_of(2) {
            return None;
        }
        let shape = match order.shape.load(Ordering::Relaxed) {
            1 => Some(Shape::Seq),
            2 => Some(Shape::Random),
            3 => Some(Shape::Hot),
            _ => None,
        };
        let size = |word: &AtomicU64| usize::try_from(word.load(Ordering::Relaxed)).ok();
        let (region_pages, bytes_per_page) =
            (size(&order.region_pages), size(&order.bytes_per_page));
        let pages_per_second = order.pages_per_second.load(Ordering::Relaxed);
        // The words were read before the version is read again.
        fence(Ordering::Acquire);
        if order.version.load(Ordering::Relaxed) != version {
            return None;
        }
        let plan = shape.zip(region_pages).zip(bytes_per_page);
        Some((
            version,
            plan.map(|((shape, region_pages), bytes_per_page)| Plan {
                shape,
                region_pages,
                bytes_per_page,
                pages_per_second,
            }),
        ))
    }
}

#[cfg(test)]
mod tests;
