//! The report as a person reads it.

use std::fmt::Write;

use super::{Percentiles, Report};
use crate::remus::Software;

impl Report {
    /// The figures for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            writeln!(text, "  {name:<30} {value}").expect("a string takes any text");
        };
        let ms = |value: Option<f64>| value.map_or("-".into(), |ms| format!("{ms:.1} ms"));
        let spread = |p: &Percentiles, unit| {
            format!("p50 {}  p90 {}  p99 {}  max {} {unit}", p.p50, p.p90, p.p99, p.max)
        };
        let [rounds, soon] = [self.rounds.len() as u64, self.service_back_within_200_ms];
        row("rounds", rounds.to_string());
        // A stock guest is given no work beside its clients'.
        let has_work = self.guest == Software::Demo;
        let rate = if has_work {
            format!(" ({:.1}/s)", self.checkpoints_per_second)
        } else {
            String::new()
        };
        row("checkpoints", format!("{}{rate}", self.checkpoints));
        row("pause, guest idle", spread(&self.pause_idle_us, "us"));
        if has_work {
            row("pause, guest at work", spread(&self.pause_us, "us"));
            row("dirty pages", spread(&self.dirty_pages, "").trim_end().to_owned());
            row("seal to commit", spread(&self.commit_us, "us"));
            row(
                "guest's own work rate",
                format!("{:.1} % of unprotected", self.guest_work_ratio * 100.0),
            );
        }
        row("sent / as whole pages", format!("{} / {}", mib(self.bytes_sent), mib(self.bytes_raw)));
        row(
            "frames held, released",
            format!(
                "{}, {} ({} refused by the second lock)",
                self.frames_held, self.frames_released, self.frames_refused_by_lock
            ),
        );
        if self.kernel_releases > 0 {
            let lead = spread(&self.release_lead_us, "us");
            row(
                "released by the kernel",
                format!("{} epochs, ahead by {lead}", self.kernel_releases),
            );
        }
        if self.death.is_some() {
            row("detection", ms(self.detect_ms));
            row("activation", ms(self.activate_ms));
            row(
                "service back",
                format!("{}, within 200 ms in {soon} of {rounds}", ms(self.service_back_ms)),
            );
            row(
                "frames given again, overheard",
                format!("{}, {}", self.frames_given_again, self.frames_overheard),
            );
        }
        row(
            "client's longest gap",
            format!("p50 {:.0} ms  max {:.0} ms", self.client_gap_ms_p50, self.client_gap_ms),
        );
        row(
            "connections",
            format!("{} kept, {} lost", self.connections_kept, self.connections_lost),
        );
        row(
            "replies",
            format!(
                "{}, {} lost, {} contradicted",
                self.replies, self.replies_lost, self.replies_contradicted
            ),
        );
        text.push('\n');
        for claim in &self.claims {
            writeln!(text, "  {claim}").expect("a string takes any text");
        }
        for finding in self.rounds.iter().flat_map(|round| &round.findings).take(20) {
            writeln!(text, "  ! {finding}").expect("a string takes any text");
        }
        text
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
