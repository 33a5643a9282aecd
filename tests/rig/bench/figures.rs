//! What a bench measured: a row for each kind of run, with its figures of every round.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// A kind of figure, as each bench has its own.
pub(super) trait Figure: Clone + Ord {
    fn name(&self) -> Cow<'static, str>;

    fn unit(&self) -> &'static str;

    /// Whether rounds are added up. Of all others the median counts.
    fn is_count(&self) -> bool;
}

/// All rows, in the order of `R`, which says what a row is about.
#[derive(Debug)]
pub(super) struct Figures<R, F> {
    rows: BTreeMap<R, BTreeMap<F, Vec<f64>>>,
}

impl<R, F> Default for Figures<R, F> {
    fn default() -> Self {
        Self { rows: BTreeMap::new() }
    }
}

/// A figure of every round, to be kept in a file.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry<R, F> {
    run: R,
    figure: F,
    rounds: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row<'a, R> {
    #[serde(flatten)]
    run: R,
    figures: Vec<Told<'a>>,
}

/// A figure as the report tells it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    name: Cow<'static, str>,
    unit: &'static str,
    /// The median of the rounds, or the sum where something is counted that should not be there.
    value: f64,
    min: f64,
    max: f64,
    rounds: &'a [f64],
}

impl<'a> Told<'a> {
    fn new(figure: &impl Figure, rounds: &'a [f64]) -> Self {
        Self {
            name: figure.name(),
            unit: figure.unit(),
            value: told(figure, rounds),
            min: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            max: rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            rounds,
        }
    }
}

impl<R: Copy + Ord, F: Figure> Figures<R, F> {
    /// What [`Figures::entries`] gave.
    pub(super) fn of(entries: Vec<Entry<R, F>>) -> Self {
        let mut figures = Self::default();
        for Entry { run, figure, rounds } in entries {
            figures.rows.entry(run).or_default().insert(figure, rounds);
        }
        figures
    }

    pub(super) fn entries(&self) -> Vec<Entry<R, F>> {
        let entry = |run, figure: &F, rounds: &Vec<f64>| Entry {
            run,
            figure: figure.clone(),
            rounds: rounds.clone(),
        };
        let row = |(&run, row): (&R, &BTreeMap<F, Vec<f64>>)| {
            row.iter().map(|(figure, rounds)| entry(run, figure, rounds)).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(row).collect()
    }

    /// Adds what a run of this round measured.
    pub(super) fn add(&mut self, run: R, measured: impl IntoIterator<Item = (F, f64)>) {
        let row = self.rows.entry(run).or_default();
        for (figure, value) in measured {
            row.entry(figure).or_default().push(value);
        }
    }

    /// The median of the rounds, or the sum of a count; `None` where there was no such run.
    pub(super) fn get(&self, run: R, figure: &F) -> Option<f64> {
        Some(told(figure, self.rounds(run, figure)?))
    }

    /// The median of the ratios of two runs of the same round.
    pub(super) fn ratio(&self, of: R, to: R, figure: &F) -> Option<f64> {
        let (of, to) = (self.rounds(of, figure)?, self.rounds(to, figure)?);
        let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
        Some(median(&ratios))
    }

    /// As [`Figures::get`]; NaN, of which no claim holds, where there was no such run.
    pub(super) fn claimed(&self, run: R, figure: &F) -> f64 {
        self.get(run, figure).unwrap_or(f64::NAN)
    }

    /// As [`Figures::ratio`]; NaN likewise.
    pub(super) fn claimed_ratio(&self, of: R, to: R, figure: &F) -> f64 {
        self.ratio(of, to, figure).unwrap_or(f64::NAN)
    }

    /// The sum of a figure over all rounds of the runs that `which` picks.
    pub(super) fn sum(&self, which: impl Fn(&R) -> bool, figure: &F) -> f64 {
        let rows = self.rows.iter().filter(|(run, _)| which(run));
        rows.filter_map(|(_, row)| row.get(figure)).flatten().sum()
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = R> + '_ {
        self.rows.keys().copied()
    }

    /// A run's figures in their order, each as [`Figures::get`] tells it.
    pub(super) fn of_run(&self, run: R) -> impl Iterator<Item = (&F, f64)> {
        let row = self.rows.get(&run).into_iter().flatten();
        row.map(|(figure, rounds)| (figure, told(figure, rounds)))
    }

    /// For the report.
    pub(super) fn rows(&self) -> Vec<Row<'_, R>> {
        let mut rows = Vec::new();
        for (&run, figures) in &self.rows {
            let figures = figures.iter().map(|(figure, rounds)| Told::new(figure, rounds));
            rows.push(Row { run, figures: figures.collect() });
        }
        rows
    }

    fn rounds(&self, run: R, figure: &F) -> Option<&[f64]> {
        Some(self.rows.get(&run)?.get(figure)?)
    }
}

fn told(figure: &impl Figure, rounds: &[f64]) -> f64 {
    if figure.is_count() { rounds.iter().sum() } else { median(rounds) }
}

pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Of {
        Speed,
        Lost,
    }

    impl Figure for Of {
        fn name(&self) -> Cow<'static, str> {
            "of".into()
        }

        fn unit(&self) -> &'static str {
            "u"
        }

        fn is_count(&self) -> bool {
            *self == Self::Lost
        }
    }

    const GATED: u32 = 1;
    const BARE: u32 = 2;

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let mut figures = Figures::default();
        // A machine that gets slower: the medians' ratio would be 0.75.
        for (gated, bare) in [(900.0, 1000.0), (360.0, 400.0), (270.0, 300.0)] {
            figures.add(GATED, [(Of::Speed, gated)]);
            figures.add(BARE, [(Of::Speed, bare)]);
        }
        assert_eq!(figures.ratio(GATED, BARE, &Of::Speed), Some(0.9));
        assert_eq!(figures.get(GATED, &Of::Speed), Some(360.0));
        assert_eq!(figures.ratio(GATED, BARE, &Of::Lost), None);
    }

    #[test]
    fn what_should_not_be_there_is_added_up() {
        let mut figures = Figures::default();
        for lost in [0.0, 2.0, 0.0] {
            figures.add(GATED, [(Of::Lost, lost)]);
        }
        assert_eq!(figures.get(GATED, &Of::Lost), Some(2.0));
        assert_eq!(figures.sum(|&run| run == GATED, &Of::Lost), 2.0);
        assert_eq!(figures.sum(|&run| run == BARE, &Of::Lost), 0.0);
    }
}
