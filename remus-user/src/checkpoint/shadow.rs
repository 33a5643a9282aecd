//! What the backup has: copies of pages as they were last sent in this session, as many as there are seats for.
//!
//! Invariants, over the pages of RAM:
//!
//! - A page is *unknown*, *zero*, or has a seat with its copy; a seat is free or one page's.
//! - Whatever is known was sent in this session. An unknown page may have been sent too: its copy had to go, or
//!   found no seat. It is sent whole, whatever it is; only a copy is proof that a page has not changed.
//! - Seats are never more than was asked for. Memory for them is taken in chunks, when first needed, and never again.
//!
//! Who has to go is found by a clock hand. A seat that was used in this run or the last is passed over, and one that was
//! used again since the hand last came by gets a second chance. The hand looks at few seats for each page: when all of
//! them are in use the page gets none. So a guest that dirties more in each epoch than there are seats for has copies of
//! as much as fits, where throwing out the oldest would leave it none in time for the next epoch.
//!
//! Absent: hashes of copies that are gone. They could say "unchanged" only with a probability, and a page must not be
//! left out on that.

use super::{PAGE_SIZE, Page};

/// Seats for which memory is taken at once.
const CHUNK: usize = 64;
/// Seats that the hand looks at for one page.
const LOOKS: usize = 16;
/// A seat is safe in the run of its last use, and in so many after it.
const RUNS_SAFE: u32 = 1;

/// Of a page: nothing is known.
const UNKNOWN: u32 = 0;
/// Of a page: it was last sent as zero.
const ZERO: u32 = 1;
/// Of a page: it has the seat of this number less `SEATED`.
const SEATED: u32 = 2;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Copy([u8; PAGE_SIZE]);

/// Who sits on a seat, if it is not free.
#[derive(Clone, Copy)]
struct Seat {
    page: Page,
    /// When it was last used.
    run: u32,
    /// It was used since it was taken, or since the hand came by.
    again: bool,
}

/// Copies of pages as last sent.
///
/// Call order: [`begin_run`](Self::begin_run) for each staging; for each of its pages [`known`](Self::known), and
/// then what it was sent as: [`keep`](Self::keep) or [`keep_zero`](Self::keep_zero), unless its copy was made equal.
pub(super) struct Shadow {
    /// By page.
    known: Box<[u32]>,
    seats: Vec<Seat>,
    chunks: Vec<Box<[Copy; CHUNK]>>,
    free: Vec<u32>,
    seats_max: usize,
    hand: usize,
    run: u32,
}

/// What the backup has of a page.
pub(super) enum Known<'a> {
    Unknown,
    Zero,
    Copy(&'a mut [u8; PAGE_SIZE]),
}

impl Shadow {
    /// Makes room for at most `copies` copies.
    pub(super) fn new(ram_pages: u32, copies: u32) -> Self {
        Self {
            known: vec![UNKNOWN; ram_pages as usize].into_boxed_slice(),
            seats: Vec::new(),
            chunks: Vec::new(),
            free: Vec::new(),
            seats_max: copies.min(ram_pages) as usize,
            hand: 0,
            run: 0,
        }
    }

    /// Forgets what was sent, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.known.fill(UNKNOWN);
        self.free.clear();
        let seats = to_u32(self.seats.len());
        // Taken from the end: in ascending order, as they lie in memory.
        self.free.extend((0..seats).rev());
    }

    pub(super) fn begin_run(&mut self) {
        self.run = self.run.wrapping_add(1);
    }

    pub(super) fn known(&mut self, page: Page) -> Known<'_> {
        match self.known[page.0 as usize] {
            UNKNOWN => Known::Unknown,
            ZERO => Known::Zero,
            seated => {
                let at = (seated - SEATED) as usize;
                let seat = &mut self.seats[at];
                (seat.run, seat.again) = (self.run, true);
                Known::Copy(self.copy_mut(at))
            }
        }
    }

    /// Returns a seat for a page that had none; the caller makes the copy there the page as it is sent. Returns `None`
    /// when no seat is free; the page is then unknown.
    pub(super) fn keep(&mut self, page: Page) -> Option<&mut [u8; PAGE_SIZE]> {
        debug_assert!(self.known[page.0 as usize] < SEATED, "it has one");
        self.known[page.0 as usize] = UNKNOWN;
        let at = self.free_seat().or_else(|| self.evict())?;
        self.seats[at] = Seat { page, run: self.run, again: false };
        self.known[page.0 as usize] = SEATED + to_u32(at);
        Some(self.copy_mut(at))
    }

    /// The page is sent as zero, which takes no seat; one that it had is free.
    pub(super) fn keep_zero(&mut self, page: Page) {
        let before = std::mem::replace(&mut self.known[page.0 as usize], ZERO);
        self.free.extend(before.checked_sub(SEATED));
    }

    fn free_seat(&mut self) -> Option<usize> {
        if self.free.is_empty() && self.seats.len() < self.seats_max {
            self.add_chunk();
        }
        self.free.pop().map(|at| at as usize)
    }

    fn add_chunk(&mut self) {
        let copies = vec![Copy([0; PAGE_SIZE]); CHUNK].into_boxed_slice();
        self.chunks.push(copies.try_into().ok().expect("CHUNK copies"));
        let (from, to) = (self.seats.len(), self.seats_max.min(self.seats.len() + CHUNK));
        self.seats.resize(to, Seat { page: Page(0), run: 0, again: false });
        // Every seat may be free at once: never again is memory taken for them.
        self.free.reserve(to);
        // The lowest is taken first.
        self.free.extend((from..to).rev().map(to_u32));
    }

    /// Takes a seat from whom has not used it of late. Only when none is free, so that each is somebody's.
    fn evict(&mut self) -> Option<usize> {
        for _ in 0..LOOKS.min(self.seats.len()) {
            let at = self.hand;
            self.hand = (at + 1) % self.seats.len();
            let seat = &mut self.seats[at];
            let safe = self.run.wrapping_sub(seat.run) <= RUNS_SAFE;
            if !safe && !std::mem::take(&mut seat.again) {
                self.known[seat.page.0 as usize] = UNKNOWN;
                return Some(at);
            }
        }
        None
    }

    fn copy_mut(&mut self, at: usize) -> &mut [u8; PAGE_SIZE] {
        &mut self.chunks[at / CHUNK][at % CHUNK].0
    }
}

fn to_u32(seat: usize) -> u32 {
    u32::try_from(seat).expect("no more seats than pages")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Shadow {
        /// Every seat is free or one page's, and there are not too many.
        fn check_invariants(&self) {
            let mut taken: Vec<_> = self.free.clone();
            for (page, known) in (0..).zip(&self.known) {
                if let Some(at) = known.checked_sub(SEATED) {
                    assert_eq!(self.seats[at as usize].page, Page(page));
                    taken.push(at);
                }
            }
            taken.sort_unstable();
            assert!(taken.into_iter().eq((0..).take(self.seats.len())), "each seat once");
            assert!(self.seats.len() <= self.seats_max);
        }

        fn has_copy(&self, page: u32) -> bool {
            self.known[page as usize] >= SEATED
        }
    }

    fn run(shadow: &mut Shadow, pages: impl IntoIterator<Item = u32>) -> usize {
        shadow.begin_run();
        let mut hits = 0;
        for page in pages {
            if let Known::Copy(_) = shadow.known(Page(page)) {
                hits += 1;
            } else if let Some(copy) = shadow.keep(Page(page)) {
                copy[..4].copy_from_slice(&page.to_le_bytes());
            }
        }
        shadow.check_invariants();
        hits
    }

    #[test]
    fn a_new_session_knows_no_page() {
        let mut shadow = Shadow::new(100, 100);
        run(&mut shadow, [70]);
        shadow.keep_zero(Page(71));
        shadow.clear();
        assert!(matches!(shadow.known(Page(70)), Known::Unknown));
        assert!(matches!(shadow.known(Page(71)), Known::Unknown));
        shadow.check_invariants();
    }

    #[test]
    fn zero_pages_take_no_seat_and_free_the_one_they_had() {
        let mut shadow = Shadow::new(100, 1);
        shadow.keep_zero(Page(1));
        assert!(matches!(shadow.known(Page(1)), Known::Zero));
        assert!(shadow.chunks.is_empty());
        assert!(shadow.keep(Page(2)).is_some());
        assert!(shadow.keep(Page(3)).is_none(), "the only seat is in use");
        shadow.keep_zero(Page(2));
        assert!(shadow.keep(Page(3)).is_some());
        shadow.check_invariants();
    }

    #[test]
    fn whoever_is_quiet_gives_way_and_whoever_is_busy_stays() {
        let mut shadow = Shadow::new(1000, 8);
        for fresh in (100..900).step_by(4) {
            run(&mut shadow, (0..4).chain(fresh..fresh + 4));
        }
        assert!((0..4).all(|page| shadow.has_copy(page)));
    }

    #[test]
    fn more_than_fits_in_every_run_has_copies_of_what_fits() {
        let mut shadow = Shadow::new(1000, 64);
        run(&mut shadow, 0..100);
        for _ in 0..50 {
            assert_eq!(run(&mut shadow, 0..100), 64);
        }
    }

    #[test]
    fn a_warm_cache_takes_no_memory() {
        let mut shadow = Shadow::new(10_000, 256);
        run(&mut shadow, 0..300);
        let warm = |s: &Shadow| (s.chunks.capacity(), s.seats.capacity(), s.free.capacity());
        let before = warm(&shadow);
        for from in (0..9_000).step_by(100) {
            run(&mut shadow, from..from + 300);
            shadow.keep_zero(Page(from));
        }
        shadow.clear();
        run(&mut shadow, 0..300);
        assert_eq!((warm(&shadow), shadow.seats.len()), (before, 256));
    }

    proptest! {
        #[test]
        fn a_copy_is_never_anothers(
            copies in 0u32..20,
            runs in proptest::collection::vec(proptest::collection::vec((0u32..64, any::<bool>()), 0..40), 0..20),
        ) {
            let mut shadow = Shadow::new(64, copies);
            for pages in runs {
                shadow.begin_run();
                for (page, zero) in pages {
                    match shadow.known(Page(page)) {
                        Known::Copy(copy) => prop_assert_eq!(&copy[..4], &page.to_le_bytes()),
                        Known::Unknown | Known::Zero if zero => {}
                        Known::Unknown | Known::Zero => {
                            if let Some(copy) = shadow.keep(Page(page)) {
                                copy[..4].copy_from_slice(&page.to_le_bytes());
                            }
                        }
                    }
                    if zero {
                        shadow.keep_zero(Page(page));
                    }
                    shadow.check_invariants();
                }
            }
        }
    }
}
