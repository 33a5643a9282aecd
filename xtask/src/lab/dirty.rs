//! `dirty PAGES`: writes one word to each of so many pages of its memory every 25 ms, the same pages again and again, and
//! never a value that was there before. A turn that comes late is not made up for.
//!
//! The Linux guest has it, for measurements (guest.sh); it is built without a library.

use std::{
    env,
    hint::black_box,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

const PERIOD: Duration = Duration::from_millis(25);
const PAGE_BYTES: usize = 4096;

#[repr(align(4096))]
#[derive(Clone)]
struct Page([u64; PAGE_BYTES / 8]);

fn main() -> ExitCode {
    let pages = env::args().nth(1).and_then(|pages| pages.parse().ok());
    let Some(pages) = pages else {
        eprintln!("dirty: how many pages?");
        return ExitCode::FAILURE;
    };
    let mut memory = vec![Page([0; PAGE_BYTES / 8]); pages];
    let mut due = Instant::now();
    for turn in 1.. {
        for page in &mut memory {
            page.0[turn % (PAGE_BYTES / 8)] = turn as u64;
        }
        black_box(&mut memory);
        due = (due + PERIOD).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    ExitCode::SUCCESS
}
