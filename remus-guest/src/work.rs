//! The work generator: dirties memory at a set rate and in a set shape, and counts what it did.
//!
//! It owns the *arena*, a piece of RAM that nothing else uses, and works on the first pages of it, the
//! *region*. Each *touch* writes the first bytes of one page, with words that differ from those of every
//! earlier touch, and adds one to the progress count. With a rate of 0 pages a second it touches as fast as
//! it is let, and computes [`SPIN_STEPS`] steps beside each touch: progress then measures how much CPU the
//! guest gets and how often writing to a page costs it a fault, and not memory bandwidth.
//!
//! The work is done in quanta by whoever polls the network between them. The region is touched once
//! before the first counted touch, so that the rate is clean of first-touch faults.
//!
//! Invariant: progress never decreases, over starts and stops too.

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Steps of a xorshift generator computed beside each touch at unlimited rate: about 2000 cycles.
pub const SPIN_STEPS: u32 = 330;
/// At most this much work is owed when the clock has jumped or the guest was not let run; more is forgotten.
const DEBT_MAX_NS: u64 = 10_000_000;
/// A paced generator that sleeps does so for at least this long, and touches several pages when it wakes.
const PACE_NS: u64 = 1_000_000;
/// Touches between looks at the clock.
const TOUCHES_PER_LOOK: u64 = 8;

/// Which page is touched next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One after the other, and again from the first.
    Seq,
    /// Any of the region.
    Random,
    /// In turn: the next of the first eighth of the region, the next of the rest.
    Hot,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    pub shape: Shape,
    /// Pages from the beginning of the arena.
    pub region_pages: usize,
    /// Bytes written in each page: 8 to [`PAGE`], rounded down to whole words.
    pub bytes_per_page: usize,
    /// 0: as fast as it can.
    pub pages_per_second: u64,
}

/// Why a plan was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlanError {
    /// The region is empty, or larger than the arena, which has this many pages.
    RegionPages {
        arena: usize,
    },
    BytesPerPage,
}

#[derive(Debug)]
enum State {
    Stopped,
    /// Touching the region's pages that no plan has used before; the first of them is `Work::warm_pages`.
    Warming(Plan),
    Running {
        plan: Plan,
        cursor: Cursor,
        pace: Pace,
    },
}

/// Where each shape has got to.
#[derive(Debug)]
struct Cursor {
    seq: usize,
    hot: usize,
    random: u64,
    turn_is_hot: bool,
}

/// How many touches are due.
#[derive(Debug)]
enum Pace {
    Unlimited,
    /// `owed` counts nanoseconds times rate: 10^9 of them are one touch.
    Paced {
        rate: u64,
        owed: u128,
        seen_ns: u64,
    },
}

/// The generator.
#[derive(Debug)]
pub struct Work<'m> {
    arena: &'m mut [u8],
    warm_pages: usize,
    progress: u64,
    spin: u64,
    state: State,
}

impl<'m> Work<'m> {
    /// A stopped generator; it reads and writes nothing of `arena` before it is started.
    pub fn new(arena: &'m mut [u8]) -> Self {
        Self {
            arena,
            warm_pages: 0,
            progress: 0,
            spin: 0x9e37_79b9_7f4a_7c15,
            state: State::Stopped,
        }
    }

    /// Begins `plan`, in place of the one that runs.
    pub fn start(&mut self, plan: Plan) -> Result<(), PlanError> {
        let arena = self.arena.len() / PAGE;
        if plan.region_pages == 0 || plan.region_pages > arena {
            return Err(PlanError::RegionPages { arena });
        }
        if !(8..=PAGE).contains(&plan.bytes_per_page) {
            return Err(PlanError::BytesPerPage);
        }
        self.state = State::Warming(plan);
        Ok(())
    }

    pub fn stop(&mut self) {
        self.state = State::Stopped;
    }

    /// The plan that was started and not stopped.
    pub fn plan(&self) -> Option<Plan> {
        match self.state {
            State::Stopped => None,
            State::Warming(plan) | State::Running { plan, .. } => Some(plan),
        }
    }

    /// Touches so far, all plans together.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// When there is something to do: at once or earlier if not after `now_ns`; never if `None`.
    pub fn due_ns(&self, now_ns: u64) -> Option<u64> {
        match &self.state {
            State::Stopped => None,
            State::Warming(_) | State::Running { pace: Pace::Unlimited, .. } => Some(now_ns),
            State::Running { pace: Pace::Paced { rate, owed, seen_ns }, .. } => {
                let missing =
                    u128::from(NS_PER_S).saturating_sub(*owed).div_ceil(u128::from(*rate));
                let first = seen_ns + u64::try_from(missing).unwrap_or(NS_PER_S);
                Some(first.max(seen_ns + PACE_NS))
            }
        }
    }

    /// Works for about `quantum_ns`, or until nothing is due. `clock` gives nanoseconds.
    pub fn run(&mut self, quantum_ns: u64, mut clock: impl FnMut() -> u64) {
        let begin_ns = clock();
        if matches!(self.state, State::Stopped) || self.due_ns(begin_ns) > Some(begin_ns) {
            return;
        }
        self.accrue(begin_ns);
        while self.run_a_little() {
            if clock() >= begin_ns + quantum_ns {
                return;
            }
        }
    }

    fn accrue(&mut self, now_ns: u64) {
        if let State::Running { pace: Pace::Paced { rate, owed, seen_ns }, .. } = &mut self.state {
            let elapsed = now_ns.saturating_sub(*seen_ns).min(DEBT_MAX_NS);
            let most = u128::from(DEBT_MAX_NS) * u128::from(*rate) + u128::from(NS_PER_S);
            *owed = (*owed + u128::from(elapsed) * u128::from(*rate)).min(most);
            *seen_ns = now_ns;
        }
    }

    /// A few touches; whether more are due.
    fn run_a_little(&mut self) -> bool {
        match &mut self.state {
            State::Stopped => false,
            State::Warming(plan) => {
                let plan = *plan;
                if self.warm_pages < plan.region_pages {
                    write_page(self.arena, self.warm_pages, 8, 1);
                    self.warm_pages += 1;
                } else {
                    self.state =
                        State::Running { plan, cursor: Cursor::new(), pace: Pace::new(&plan) };
                }
                true
            }
            State::Running { plan, cursor, pace } => {
                for _ in 0..TOUCHES_PER_LOOK {
                    let spin_steps = match pace {
                        Pace::Unlimited => SPIN_STEPS,
                        Pace::Paced { owed, .. } => match owed.checked_sub(u128::from(NS_PER_S)) {
                            Some(rest) => {
                                *owed = rest;
                                0
                            }
                            None => return false,
                        },
                    };
                    self.progress += 1;
                    let page = cursor.next(plan);
                    write_page(self.arena, page, plan.bytes_per_page, self.progress);
                    self.spin = spin(self.spin, spin_steps);
                }
                true
            }
        }
    }
}

const NS_PER_S: u64 = 1_000_000_000;

impl Pace {
    fn new(plan: &Plan) -> Self {
        match plan.pages_per_second {
            0 => Self::Unlimited,
            // `seen_ns` 0 is long ago: the first accrual is cut to the largest debt.
            rate => Self::Paced { rate, owed: 0, seen_ns: 0 },
        }
    }
}

impl Cursor {
    fn new() -> Self {
        Self { seq: 0, hot: 0, random: 0x2545_f491_4f6c_dd1d, turn_is_hot: false }
    }

    fn next(&mut self, plan: &Plan) -> usize {
        let pages = plan.region_pages;
        match plan.shape {
            Shape::Seq => step(&mut self.seq, pages),
            Shape::Random => {
                self.random = spin(self.random, 1);
                // The remainder is below `pages`, a usize; its bias is below 2^-30.
                usize::try_from(self.random % pages as u64).unwrap_or(0)
            }
            Shape::Hot => {
                let hot_pages = pages.div_ceil(8);
                self.turn_is_hot = !self.turn_is_hot;
                if self.turn_is_hot || hot_pages == pages {
                    step(&mut self.hot, hot_pages)
                } else {
                    hot_pages + step(&mut self.seq, pages - hot_pages)
                }
            }
        }
    }
}

/// Counts through `0..len`; the number before the step.
fn step(cursor: &mut usize, len: usize) -> usize {
    let at = *cursor;
    *cursor = if at + 1 < len { at + 1 } else { 0 };
    at
}

/// Writes the first whole words of `bytes` bytes of a page.
fn write_page(arena: &mut [u8], page: usize, bytes: usize, seed: u64) {
    let start = page * PAGE;
    let (words, _) = arena[start..start + bytes].as_chunks_mut::<8>();
    let mut value = seed;
    for word in words {
        *word = value.to_le_bytes();
        value = value.wrapping_add(0x0001_0001_0001_0001);
    }
}

/// `steps` steps of xorshift64; each needs the one before.
fn spin(mut x: u64, steps: u32) -> u64 {
    for _ in 0..steps {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}

impl Shape {
    /// The word of the `WORK` command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seq => "seq",
            Self::Random => "random",
            Self::Hot => "hot",
        }
    }

    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Seq, Self::Random, Self::Hot]
            .into_iter()
            .find(|s| name.eq_ignore_ascii_case(s.name().as_bytes()))
    }
}

#[cfg(test)]
mod tests;
