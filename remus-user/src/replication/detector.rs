//! When is silence suspicious?
//!
//! A host that is not scheduled hears nothing, and neither does one whose peer is dead. Telling them apart needs
//! no protocol: the detector only counts silence during which it ran. It is ticked often; a tick that comes late
//! says that this process stood still, and whatever was said meanwhile is still in the sockets. So a late tick
//! begins the window anew, and the shell *drains its sockets before every tick*, so that what was said is heard.
//!
//! A connection that the peer has closed (FIN or RST) is not silence but news. When every link is closed there is nothing
//! left to hear, and suspicion is immediate; a promotion still waits for the lease. One link closed while another speaks
//! is a session being replaced. A connection that this host has given up is silence.
//!
//! Deliberately absent: adaptive (phi) detection; a heartbeat every 10 ms on a direct link wants a constant.

use std::{fmt, time::Duration};

use crate::wire::{Moment, Timing};

/// Watches the links of one session.
///
/// Call order: sockets drained ([`handle_heard`](Self::handle_heard), [`handle_closed`](Self::handle_closed)), then
/// [`handle_tick`](Self::handle_tick), at the latest at [`poll_timeout`](Self::poll_timeout).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Detector {
    detect: Duration,
    /// Between two ticks.
    tick: Duration,
    /// Silence is counted from here: the last thing heard, or the last time that this process stood still.
    since: Moment,
    last_tick: Moment,
    /// Bit n: link n is open.
    open_links: u8,
    links: u8,
}

/// The peer is suspected. Only a [`Detector`] makes one.
#[derive(PartialEq, Eq, Debug)]
pub struct Suspicion {
    why: SuspicionWhy,
    last_heard: Moment,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuspicionWhy {
    /// Nothing on any link for the detection time, while listening.
    Silent,
    /// The peer has closed every link.
    Closed,
}

impl Detector {
    /// Watches links 0 to `links` - 1, at most 8, from now on.
    pub fn new(timing: &Timing, links: u8, now: Moment) -> Self {
        assert!((1..=8).contains(&links), "1 to 8 links");
        let open_links = u8::MAX >> (8 - links);
        let tick = (timing.detect / 20).min(timing.heartbeat / 2);
        Self { detect: timing.detect, tick, since: now, last_tick: now, open_links, links }
    }

    /// Something valid came in on `link`.
    pub fn handle_heard(&mut self, now: Moment, link: u8) {
        assert!(link < self.links);
        self.since = self.since.max(now);
    }

    /// The peer has closed `link`.
    pub fn handle_closed(&mut self, link: u8) {
        assert!(link < self.links);
        self.open_links &= !(1 << link);
    }

    /// When to tick next.
    pub fn poll_timeout(&self) -> Moment {
        self.last_tick + self.tick
    }

    /// Silence counts again from `now` when the tick is late by more than four ticks, a fifth of the detection
    /// time at most. Call it with the sockets drained.
    pub fn handle_tick(&mut self, now: Moment) -> Option<Suspicion> {
        if now.since(self.last_tick) > self.tick * 5 {
            self.since = self.since.max(now);
        }
        self.last_tick = self.last_tick.max(now);
        let why = if self.open_links == 0 {
            SuspicionWhy::Closed
        } else if now.since(self.since) >= self.detect {
            SuspicionWhy::Silent
        } else {
            return None;
        };
        Some(Suspicion { why, last_heard: self.since })
    }
}

impl fmt::Display for SuspicionWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("no word from the primary on any connection"),
            Self::Closed => f.write_str("the primary's connections are closed"),
        }
    }
}

impl Suspicion {
    pub fn why(&self) -> SuspicionWhy {
        self.why
    }

    /// When the peer was last heard, or this process last stood still.
    pub fn last_heard(&self) -> Moment {
        self.last_heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Moment {
        Moment(n * 1_000_000)
    }

    /// Ticks every 5 ms in `(from, to]`; the first suspicion.
    fn listen(detector: &mut Detector, from: u64, to: u64) -> Option<(u64, SuspicionWhy)> {
        (from / 5 + 1..=to / 5)
            .find_map(|n| detector.handle_tick(ms(n * 5)).map(|s| (n * 5, s.why())))
    }

    #[test]
    fn silence_on_every_link_is_suspicious_after_the_detection_time() {
        let mut detector = Detector::new(&Timing::default(), 2, ms(0));
        assert_eq!(listen(&mut detector, 0, 50), None);
        detector.handle_heard(ms(50), 1);
        assert_eq!(listen(&mut detector, 50, 1000), Some((150, SuspicionWhy::Silent)));
    }

    #[test]
    fn time_spent_asleep_is_not_silence() {
        let mut detector = Detector::new(&Timing::default(), 2, ms(0));
        assert_eq!(listen(&mut detector, 0, 60), None);
        assert_eq!(detector.handle_tick(ms(5000)), None, "stopped for five seconds");
        assert_eq!(listen(&mut detector, 5000, 9000), Some((5100, SuspicionWhy::Silent)));
    }

    #[test]
    fn a_peer_that_closes_everything_is_suspected_at_once() {
        let mut detector = Detector::new(&Timing::default(), 2, ms(0));
        detector.handle_closed(0);
        assert_eq!(listen(&mut detector, 0, 20), None, "the other link may still speak");
        detector.handle_closed(1);
        assert_eq!(detector.handle_tick(ms(21)).map(|s| s.why()), Some(SuspicionWhy::Closed));
    }
}
