//! What a person watching a run sees: a line for each step, and under it a line that lives.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::Duration,
};

use remus::observe::status::Status;
use tokio::time::{Instant, sleep_until};

use crate::remus::status;

const TICK: Duration = Duration::from_millis(200);
/// On what is not a terminal the living line is printed anew, but not that often.
const TICKS_A_PLAIN_LINE: u32 = 5;

#[derive(Debug)]
pub struct Display {
    began: Instant,
    living: bool,
    last: Option<(Instant, u64)>,
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

impl Display {
    pub fn new() -> Self {
        let living = std::io::stdout().is_terminal();
        Self { began: Instant::now(), living, last: None }
    }

    /// A step of the story.
    pub fn step(&mut self, text: &str) {
        self.clear();
        println!("[{:6.2}s] {text}", self.began.elapsed().as_secs_f64());
    }

    /// Lets `time` pass, showing what the daemon behind `socket` says of itself.
    pub async fn watch(&mut self, socket: &Path, time: Duration) {
        let until = Instant::now() + time;
        for tick in 1.. {
            let next = Instant::now() + TICK;
            if next > until {
                break;
            }
            sleep_until(next).await;
            // A daemon that does not answer is noticed by those who need its answer.
            if let Ok(status) = status::<Status>(socket, None).await {
                let rate = self.rate(&status);
                if self.living || tick % TICKS_A_PLAIN_LINE == 0 {
                    self.show(&status, rate);
                }
            }
        }
        sleep_until(until).await;
        self.clear();
    }

    /// Epochs committed a second since it was last asked.
    fn rate(&mut self, status: &Status) -> f64 {
        let (now, acked) = (Instant::now(), status.epochs.acked);
        match self.last.replace((now, acked)) {
            Some((then, before)) => {
                acked.saturating_sub(before) as f64 / (now - then).as_secs_f64()
            }
            None => 0.0,
        }
    }

    fn show(&self, status: &Status, rate: f64) {
        let protection = format!("{:?}", status.protection).to_lowercase();
        let text = format!(
            "          {protection:<11} {rate:5.1} epochs/s  pause {:4} us  {:5} dirty pages  {:4} frames \
             held  lag {:5.1} ms",
            status.pause_us.p50, status.dirty_pages.p50, status.gate.waiting, status.lag_ms
        );
        if self.living {
            print!("\r{text}\x1b[K");
            flush();
        } else {
            println!("{text}");
        }
    }

    fn clear(&self) {
        if self.living {
            print!("\r\x1b[K");
            flush();
        }
    }
}

fn flush() {
    // Nobody is left to be told when standard output is gone; the report is a file.
    drop(std::io::stdout().flush());
}
