//! Tables of counters: one line for each says its name, its unit, what it means, and whether it is an alarm.
//!
//! Everything that shows counters walks the table: the kernel map, the status as JSON and as text, the answers of
//! `remus gate`, the log, docs/operating.md. A new counter is one more line at the end of its table and a program that
//! counts it; after that `UPDATE_DOCS=1 cargo test -p remus-user --test docs` writes the document's row.

use core::{fmt, marker::PhantomData};

/// What one of a counter is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unit {
    Frames,
    /// Attempts to release. The engine `bpf` makes one for all frames of an epoch, the engine `nfqueue` one for each.
    Attempts,
    Datagrams,
}

impl Unit {
    /// The unit's word, in the plural.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Attempts => "attempts",
            Self::Datagrams => "datagrams",
        }
    }
}

/// What a counter that is not 0 tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// What happened, for whoever asks.
    Normal,
    /// Something that never happens in a healthy run: it is logged at once, and comes first in the status.
    Alarm,
}

/// A line of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// The key in JSON and in answers: lower case, words joined by `_`.
    pub name: &'static str,
    pub unit: Unit,
    pub meaning: Meaning,
    /// What is counted, and what to do about it: goes on after the unit, as in "frames stored in the gate". Markdown.
    pub help: &'static str,
}

/// A counter of some table. Only the macro `counters!` implements it.
pub trait Counted: Copy + 'static {
    /// Returns all counters of the table, in the order of its lines.
    fn all() -> &'static [Self];
    /// Returns the counter's line.
    fn row(self) -> Row;
    /// Returns the counter's place in the table, which is its word in the kernel map.
    fn index(self) -> usize;

    fn name(self) -> &'static str {
        self.row().name
    }

    fn is_alarm(self) -> bool {
        matches!(self.row().meaning, Meaning::Alarm)
    }
}

/// A value for each of the `N` counters of table `T`: a snapshot, or a sum of snapshots.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counts<T, const N: usize> {
    values: [u64; N],
    table: PhantomData<T>,
}

impl<T: Counted, const N: usize> Counts<T, N> {
    pub const fn new(values: [u64; N]) -> Self {
        Self { values, table: PhantomData }
    }

    pub fn get(&self, which: T) -> u64 {
        self.values[which.index()]
    }

    pub fn set(&mut self, which: T, value: u64) {
        self.values[which.index()] = value;
    }

    /// Returns each counter with its value, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (T, u64)> {
        T::all().iter().copied().zip(self.values)
    }

    /// Returns the sum of all alarms: 0 in a healthy run.
    pub fn alarms(&self) -> u64 {
        self.iter().filter(|(counter, _)| counter.is_alarm()).map(|(_, n)| n).sum()
    }
}

impl<T: Counted, const N: usize> Default for Counts<T, N> {
    fn default() -> Self {
        Self::new([0; N])
    }
}

impl<T: Counted, const N: usize> fmt::Debug for Counts<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(counter, n)| (counter.name(), n))).finish()
    }
}

/// Makes of a table an enum of its counters and a type of one value for each. The order of the lines is the order of the
/// words in the kernel map: a new line goes to the end.
macro_rules! counters {
    (
        $(#[$about:meta])*
        pub enum $Counter:ident, values $Counts:ident {
            $($variant:ident = $name:literal, $unit:ident, $meaning:ident, $help:literal;)+
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum $Counter {
            $(#[doc = concat!("`", $name, "`: ", $help, ".")] $variant,)+
        }

        impl $Counter {
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),+];
            pub const COUNT: usize = [$($name),+].len();
            /// Words of the kernel map: all counters, and room for more, so that the map keeps its size when one is added.
            #[expect(clippy::cast_possible_truncation, reason = "lines of a table")]
            pub const WORDS: u32 = (Self::COUNT as u32).next_multiple_of(32);
        }

        impl $crate::counters::Counted for $Counter {
            fn all() -> &'static [Self] {
                &Self::ALL
            }

            fn row(self) -> $crate::counters::Row {
                match self {
                    $(Self::$variant => $crate::counters::Row {
                        name: $name,
                        unit: $crate::counters::Unit::$unit,
                        meaning: $crate::counters::Meaning::$meaning,
                        help: $help,
                    },)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }

        #[doc = concat!("A value for each [`", stringify!($Counter), "`].")]
        pub type $Counts = $crate::counters::Counts<$Counter, { $Counter::COUNT }>;
    };
}
pub(crate) use counters;

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, format};

    use super::*;
    use crate::{
        ack::AckCounter,
        gate::{Counter, Counters},
    };

    fn is_well_formed<T: Counted>() {
        let names: BTreeSet<_> = T::all().iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), T::all().len(), "two counters have one name");
        for (at, counter) in T::all().iter().enumerate() {
            let Row { name, help, .. } = counter.row();
            assert_eq!(counter.index(), at, "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!help.is_empty() && !help.contains(['|', '\n']), "{name}: a cell of a table");
            assert!(!help.ends_with('.'), "{name}: what follows ends the sentence");
        }
    }

    #[test]
    fn every_line_of_a_table_can_be_shown_everywhere() {
        is_well_formed::<Counter>();
        is_well_formed::<AckCounter>();
    }

    #[test]
    fn alarms_are_summed_and_nothing_else() {
        let mut counts = Counters::default();
        counts.set(Counter::Held, 5);
        assert_eq!(counts.alarms(), 0);
        counts.set(Counter::RefusedByLock, 2);
        counts.set(Counter::CommitNotBelowOpen, 1);
        assert_eq!((counts.alarms(), counts.get(Counter::Held)), (3, 5));
        assert!(format!("{counts:?}").contains("\"refused_by_lock\": 2"));
    }

    #[test]
    fn a_map_has_a_word_for_each_counter() {
        assert!(Counter::WORDS as usize >= Counter::COUNT);
        assert!(AckCounter::WORDS as usize >= AckCounter::COUNT);
    }
}
