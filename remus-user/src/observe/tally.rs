//! The newest reading of a table of counters: one thread writes it, any thread reads it. Alarms are logged from here.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use remus_abi::counters::{Counted, Counts, Row};
use tracing::error;

/// See the module.
pub(crate) struct Tally<T, const N: usize> {
    /// The part of the status that shows the table, such as `gate`.
    part: &'static str,
    words: [AtomicU64; N],
    table: PhantomData<fn(T)>,
}

impl<T: Counted, const N: usize> Tally<T, N> {
    pub(crate) fn new(part: &'static str) -> Self {
        Self { part, words: std::array::from_fn(|_| AtomicU64::new(0)), table: PhantomData }
    }

    /// Takes a reading. An alarm is logged when it is first seen, and never falls again: the counters of a gate that is
    /// made anew begin at 0, and what has happened has happened.
    pub(crate) fn store(&self, reading: &Counts<T, N>) {
        for ((counter, now), word) in reading.iter().zip(&self.words) {
            if !counter.is_alarm() {
                word.store(now, Relaxed);
            } else if word.fetch_max(now, Relaxed) == 0 && now > 0 {
                error!("ALARM: {}", alarm(self.part, counter, now));
            }
        }
    }

    /// Returns the newest reading.
    pub(crate) fn load(&self) -> Counts<T, N> {
        Counts::new(self.words.each_ref().map(|word| word.load(Relaxed)))
    }
}

/// Returns what an alarm says, in the log and in the status.
pub(super) fn alarm(part: &str, counter: impl Counted, value: u64) -> String {
    let Row { name, unit, help, .. } = counter.row();
    format!("{part}.{name} is {value} and must be 0 ({} {help})", unit.name())
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use remus_abi::gate::{Counter, Counters};

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn reading(counter: Counter, value: u64) -> Counters {
        let mut counters = Counters::default();
        counters.set(counter, value);
        counters
    }

    #[test]
    fn every_alarm_is_logged_once_when_it_is_first_seen_and_no_other_counter_is() {
        for counter in Counter::ALL {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(subscriber, || {
                let tally = Tally::new("gate");
                for value in [0, 0, 3, 4, 0, 5] {
                    tally.store(&reading(counter, value));
                }
            });
            let said = log.text().matches(&format!("gate.{} is 3", counter.name())).count();
            assert_eq!(said, usize::from(counter.is_alarm()), "{counter:?}: {}", log.text());
            assert_eq!(log.text().lines().count(), said, "{}", log.text());
        }
    }

    #[test]
    fn an_alarm_outlives_the_gate_that_counted_it() {
        let tally = Tally::new("gate");
        tally.store(&reading(Counter::Unguarded, 3));
        tally.store(&reading(Counter::Held, 7));
        let now = tally.load();
        assert_eq!((now.get(Counter::Unguarded), now.get(Counter::Held)), (3, 7));
        tally.store(&Counters::default());
        assert_eq!(tally.load().get(Counter::Held), 0);
    }
}
