//! Connections that have not said yet what they want: how many there may be, and which gives way to a newcomer.
//!
//! A primary says at once who it is. Whatever else connects, a scanner or a check that a port is open, may hold its
//! connection for some seconds, and must not keep a primary out for so long. So a newcomer always gets a place, and the
//! oldest connection gives way: of its own address when that has its share, else of the address that has most.
//!
//! Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use crate::wire::Moment;

/// Places of all addresses, and of one.
const PLACES: usize = 32;
const SHARE: usize = 8;
/// Between two warnings, in nanoseconds.
const WARN_EVERY_NS: u64 = 10_000_000_000;

/// `C` is the connection.
pub(super) struct Openings<C> {
    /// Oldest first.
    waiting: VecDeque<(u64, IpAddr, C)>,
    next: u64,
    /// Given way since the last warning, and when that was.
    dropped: BTreeMap<IpAddr, u64>,
    warned: Option<Moment>,
}

/// What there is to warn of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Crowd {
    pub(super) dropped: u64,
    /// Where most of them came from.
    pub(super) most_from: IpAddr,
}

impl<C> Openings<C> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), next: 0, dropped: BTreeMap::new(), warned: None }
    }

    /// Makes room for a connection from `from`: the one that gives way, if one must. Then call
    /// [`enter`](Self::enter).
    pub(super) fn make_room(&mut self, from: IpAddr) -> Option<C> {
        let of = |address: IpAddr| self.waiting.iter().filter(|(_, of, _)| *of == address).count();
        let crowded = if of(from) >= SHARE {
            from
        } else if self.waiting.len() >= PLACES {
            // Of several with as many, that of the oldest: `max_by_key` takes the last of equals.
            self.waiting.iter().rev().map(|(_, of, _)| *of).max_by_key(|address| of(*address))?
        } else {
            return None;
        };
        *self.dropped.entry(crowded).or_default() += 1;
        let oldest = self.waiting.iter().position(|(_, of, _)| *of == crowded)?;
        self.waiting.remove(oldest).map(|(_, _, connection)| connection)
    }

    /// A connection waits from here on, under the number that it will [`leave`](Self::leave) with.
    pub(super) fn enter(&mut self, from: IpAddr, connection: impl FnOnce(u64) -> C) {
        let number = self.next;
        self.next += 1;
        let connection = connection(number);
        self.waiting.push_back((number, from, connection));
    }

    /// A connection has said what it wants, or is gone.
    pub(super) fn leave(&mut self, number: u64) {
        self.waiting.retain(|(waiting, ..)| *waiting != number);
    }

    /// Whether it is time to warn.
    pub(super) fn poll_warning(&mut self, now: Moment) -> Option<Crowd> {
        let (most_from, _) = self.dropped.iter().max_by_key(|(_, dropped)| **dropped)?;
        let most_from = *most_from;
        if self.warned.is_some_and(|warned| now.0 < warned.0 + WARN_EVERY_NS) {
            return None;
        }
        self.warned = Some(now);
        let dropped = std::mem::take(&mut self.dropped).into_values().sum();
        Some(Crowd { dropped, most_from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// Connections are their numbers here.
    fn connect(openings: &mut Openings<u64>, from: IpAddr) -> Option<u64> {
        let dropped = openings.make_room(from);
        openings.enter(from, |number| number);
        dropped
    }

    #[test]
    fn a_crowd_of_one_address_costs_nobody_else_a_place() {
        let mut openings = Openings::new();
        let dropped: Vec<_> = (0..60).filter_map(|_| connect(&mut openings, address(1))).collect();
        assert_eq!(dropped, (0..52).collect::<Vec<_>>(), "the oldest first");
        for n in 2..=25 {
            assert_eq!(connect(&mut openings, address(n)), None);
        }
        assert_eq!(openings.waiting.len(), PLACES);
        assert_eq!(connect(&mut openings, address(99)), Some(52), "of the one that has most");
    }

    #[test]
    fn a_newcomer_gets_in_whoever_is_there() {
        let mut openings = Openings::new();
        for n in 0..=255 {
            connect(&mut openings, address(n));
        }
        assert_eq!(openings.waiting.len(), PLACES);
        assert_eq!(openings.waiting.back().map(|(_, from, _)| *from), Some(address(255)));
        assert_eq!(openings.waiting.front().map(|(_, from, _)| *from), Some(address(224)));
    }

    #[test]
    fn who_has_said_what_it_wants_takes_no_place() {
        let mut openings = Openings::new();
        for _ in 0..100 {
            assert_eq!(connect(&mut openings, address(1)), None);
            let (number, ..) = openings.waiting[0];
            openings.leave(number);
        }
    }

    #[test]
    fn a_warning_counts_what_came_since_the_last_and_comes_every_ten_seconds() {
        let at = |s: u64| Moment(s * 1_000_000_000);
        let mut openings = Openings::new();
        assert_eq!(openings.poll_warning(at(1)), None);
        let crowd = |openings: &mut Openings<u64>, n| {
            for _ in 0..n {
                connect(openings, address(1));
            }
        };
        crowd(&mut openings, SHARE + 1);
        let warning = |dropped| Some(Crowd { dropped, most_from: address(1) });
        assert_eq!(openings.poll_warning(at(1)), warning(1));
        crowd(&mut openings, 5);
        assert_eq!(openings.poll_warning(at(10)), None);
        assert_eq!(openings.poll_warning(at(11)), warning(5));
        assert_eq!(openings.poll_warning(at(30)), None);
    }
}
