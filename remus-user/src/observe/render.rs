//! A status for people: a few aligned lines.

use std::{collections::BTreeMap, fmt::Write as _};

use remus_abi::counters::{Counted, Counts};

use super::{
    PauseParts,
    status::{Distribution, Protection, Role, Status},
    tally::alarm,
};

/// Returns the lines that `remus status` prints, each with its end.
pub fn render(s: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String does not fail.
        writeln!(text, "  {name:<12} {value}").expect("a String takes it");
    };
    for alarm in alarms("gate", &s.gate.counters).chain(alarms("trigger", &s.trigger.counters)) {
        line("ALARM", alarm);
    }
    let e = s.epochs;
    line(
        "epochs",
        format!(
            "open {}, captured {}, acked {}, released {}",
            e.open, e.captured, e.acked, e.released
        ),
    );
    let seconds = s.protected_ms as f64 / 1000.0;
    let rate = if seconds > 0.0 { s.checkpoints as f64 / seconds } else { 0.0 };
    line(
        "checkpoints",
        format!("{} committed, {seconds:.1} s protected, {rate:.1}/s", s.checkpoints),
    );
    line("pause", spread(&s.pause_us, micros));
    let parts: Vec<_> = PauseParts::NAMES
        .iter()
        .filter_map(|name| Some(format!("{name} {}", micros(*s.pause_parts_us.get(*name)?))))
        .collect();
    if s.pause_us.count > 0 {
        line("of which", parts.join(", "));
    }
    line("commit", spread(&s.commit_us, micros));
    line("dirty pages", spread(&s.dirty_pages, |n| n.to_string()));
    line("lag", format!("{:.1} ms from seal to release", s.lag_ms));
    let ratio = if s.bytes_sent > 0 { s.bytes_raw as f64 / s.bytes_sent as f64 } else { 0.0 };
    line("sent", format!("{} of {} raw ({ratio:.1}:1)", bytes(s.bytes_sent), bytes(s.bytes_raw)));
    let i = s.inbound;
    if i.passed_on + i.left_out > 0 {
        line("inbound", format!("{} frames passed on, {} left out", i.passed_on, i.left_out));
    }
    let g = &s.gate;
    line("gate", format!("{}, {} frames wait", g.mode, g.waiting));
    for counted in by_unit(&g.counters) {
        line("", counted);
    }
    if g.residence_us.count > 0 {
        let spread = spread(&g.residence_us, |us| format!("{:.1} ms", us as f64 / 1000.0));
        let full = 100 * g.waiting_bytes / g.capacity_bytes.max(1);
        line("held for", format!("{spread}; {full} % of the buffer in use"));
    }
    let t = &s.trigger;
    for counted in by_unit(&t.counters) {
        line("trigger", counted);
    }
    if t.lead_us.count > 0 {
        line("", format!("ahead of the controller by {}", spread(&t.lead_us, micros)));
    }
    let lost =
        [("lines of the log", s.lost.log_lines), ("bytes of the console", s.lost.console_bytes)];
    let lost: Vec<_> =
        lost.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
    if !lost.is_empty() {
        line("LOST", lost.join(", "));
    }
    if let Some(f) = &s.failover {
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        line(
            "takeover",
            format!(
                "from epoch {}: {:.0} ms of silence, {:.0} ms to run, {:.0} ms to open; given {} frames again and {} that came meanwhile",
                f.epoch,
                ms(f.last_heard_ns, f.decided_ns),
                ms(f.decided_ns, f.running_ns),
                ms(f.running_ns, f.open_ns),
                f.given_again,
                f.overheard
            ),
        );
    }
    let role = match s.role {
        Role::Primary => "primary",
        Role::Backup => "backup",
    };
    let reason = if s.reason.is_empty() { String::new() } else { format!(": {}", s.reason) };
    format!("{}: {} ({role}, term {}){reason}\n{text}", s.vm, word(s.protection), s.term)
}

/// Returns a sentence for each alarm of a table that is not 0.
pub(crate) fn alarms<T: Counted, const N: usize>(
    part: &str,
    counts: &Counts<T, N>,
) -> impl Iterator<Item = String> {
    let raised = counts.iter().filter(|(counter, n)| counter.is_alarm() && *n > 0);
    raised.map(move |(counter, n)| alarm(part, counter, n))
}

/// Returns a line for each unit of a table, such as `frames: 4 held, 3 released`, of all counters that are not 0.
pub(crate) fn by_unit<T: Counted, const N: usize>(counts: &Counts<T, N>) -> Vec<String> {
    let mut lines = BTreeMap::<_, Vec<String>>::new();
    for (counter, n) in counts.iter().filter(|(_, n)| *n > 0) {
        let words = counter.name().replace('_', " ");
        lines.entry(counter.row().unit).or_default().push(format!("{n} {words}"));
    }
    lines.into_iter().map(|(unit, each)| format!("{}: {}", unit.name(), each.join(", "))).collect()
}

fn word(protection: Protection) -> &'static str {
    match protection {
        Protection::Waiting => "waiting",
        Protection::Syncing => "syncing",
        Protection::Protected => "protected",
        Protection::Impaired => "IMPAIRED",
        Protection::Stalled => "stalled",
        Protection::Unprotected => "UNPROTECTED",
        Protection::Promoted => "PROMOTED, unprotected",
        Protection::GateLost => "GATE LOST, paused",
        Protection::Stopped => "stopped",
    }
}

fn spread(d: &Distribution, shown: impl Fn(u64) -> String) -> String {
    if d.count == 0 {
        return "-".into();
    }
    let [p50, p90, p99, max] = [d.p50, d.p90, d.p99, d.max].map(shown);
    format!("p50 {p50}, p90 {p90}, p99 {p99}, max {max} (of {})", d.count)
}

fn micros(us: u64) -> String {
    if us < 10_000 { format!("{us} us") } else { format!("{:.1} ms", us as f64 / 1e3) }
}

fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use remus_abi::{Epoch, Stamp, Term};

    use super::*;
    use crate::names::VmName;
    use crate::observe::{
        Shared,
        status::{Failover, Lost},
    };

    #[test]
    fn a_takeover_reads_as_times() {
        let shared = Shared::new(&VmName::new("demo").unwrap(), Role::Backup, Term::FIRST.next());
        shared.applied(Stamp::new(Term::FIRST.next(), Epoch::new(41).unwrap()));
        shared.stand(Protection::Promoted, "no backup of its own yet");
        let ns = |ms: u64| ms * 1_000_000;
        shared.took_over(Failover {
            last_heard_ns: ns(1000),
            decided_ns: ns(1100),
            running_ns: ns(1110),
            open_ns: ns(1112),
            epoch: 41,
            given_again: 3,
            overheard: 2,
        });
        let text = render(&shared.status(None));
        assert!(text.starts_with(
            "demo: PROMOTED, unprotected (backup, term 2): no backup of its own yet\n"
        ));
        assert!(
            text.contains("from epoch 41: 100 ms of silence, 10 ms to run, 2 ms to open; given 3 frames again and 2 that came \
                 meanwhile\n"),
            "{text}"
        );
        assert!(text.contains("  pause        -\n"), "{text}");
    }

    #[test]
    fn what_was_lost_is_shown_when_there_is_any() {
        let shared = Shared::new(&VmName::new("demo").unwrap(), Role::Primary, Term::FIRST);
        let mut status = shared.status(None);
        status.lost = Lost::default();
        assert!(!render(&status).contains("LOST"));
        status.lost = Lost { log_lines: 7, console_bytes: 0 };
        assert!(
            render(&status).contains("  LOST         7 lines of the log\n"),
            "{}",
            render(&status)
        );
    }

    #[test]
    fn sizes_keep_three_figures() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(u64::MAX)],
            ["0 B", "1023 B", "1.5 KiB", "16777216.0 TiB"]
        );
        assert_eq!([micros(9_999), micros(12_345)], ["9999 us", "12.3 ms"]);
    }
}
