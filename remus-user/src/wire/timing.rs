//! The spans on which primary and backup must agree, and the inequality between them.

use std::{fmt, time::Duration};

/// Spans of a session; the primary announces them in `Hello`, and the backup checks them again.
///
/// Invariants ([`Timing::check`]): `2 * heartbeat <= lease`, so that one lost answer does not end a lease;
/// `lease + margin <= detect`, so that silence long enough to be suspicious has also outlived the lease.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// Longest epoch.
    pub epoch_max: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Silence after which the peer is suspected.
    pub detect: Duration,
    /// How long after it *sent* an answered message the primary may still release.
    pub lease: Duration,
    /// What the backup waits beyond the lease, for clocks that do not run alike.
    pub margin: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimingError {
    /// A span is zero or above [`Timing::SPAN_MAX`].
    OutOfRange,
    /// `2 * heartbeat > lease`.
    LeaseBelowTwoHeartbeats,
    /// `lease + margin > detect`.
    DetectBelowLease,
}

impl Timing {
    /// No span is longer.
    pub const SPAN_MAX: Duration = Duration::from_secs(600);

    /// # Errors
    /// The first inequality that does not hold.
    pub fn check(&self) -> Result<(), TimingError> {
        let Self { epoch_max, heartbeat, detect, lease, margin } = *self;
        if [epoch_max, heartbeat, detect, lease, margin]
            .iter()
            .any(|span| span.is_zero() || *span > Self::SPAN_MAX)
        {
            return Err(TimingError::OutOfRange);
        }
        if heartbeat * 2 > lease {
            return Err(TimingError::LeaseBelowTwoHeartbeats);
        }
        if lease + margin > detect {
            return Err(TimingError::DetectBelowLease);
        }
        Ok(())
    }
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            epoch_max: ms(25),
            heartbeat: ms(10),
            detect: ms(100),
            lease: ms(60),
            margin: ms(20),
        }
    }
}

impl fmt::Display for TimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "a span is zero or longer than ten minutes",
            Self::LeaseBelowTwoHeartbeats => "the lease is shorter than two heartbeats",
            Self::DetectBelowLease => {
                "lease and margin together are longer than the detection time"
            }
        })
    }
}

impl std::error::Error for TimingError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_each_inequality_bites() {
        let good = Timing::default();
        assert_eq!(good.check(), Ok(()));
        let ms = Duration::from_millis;
        assert_eq!(Timing { lease: ms(81), ..good }.check(), Err(TimingError::DetectBelowLease));
        assert_eq!(
            Timing { heartbeat: ms(31), ..good }.check(),
            Err(TimingError::LeaseBelowTwoHeartbeats)
        );
        assert_eq!(Timing { margin: ms(0), ..good }.check(), Err(TimingError::OutOfRange));
    }
}
