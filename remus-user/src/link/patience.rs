//! How long a session's connections wait, derived from the session's [`Timing`].
//!
//! Whether a silent host is dead is judged by the backup's detector, after `detect`, and by nothing else. So no timer
//! of a connection ends a session before `detect` is over: a link that was away for less goes on with the session that
//! it had. Each timer has a least value as well, since giving up a session costs a sync.

use std::time::Duration;

use crate::wire::Timing;

/// The longest time between two tries of TCP to send something again (where the kernel lets us choose, Linux 6.15).
/// The time between them doubles otherwise, so that a link that comes back is found out as late again as it was away.
pub(super) const RETRANSMIT_AT_LEAST_EVERY: Duration = Duration::from_secs(1);

const STUCK_MIN: Duration = Duration::from_secs(5);
const UNANSWERED_MIN: Duration = Duration::from_secs(3);
const GOODBYE_MIN: Duration = Duration::from_secs(2);
/// Beyond the backup's detection.
const GOODBYE_MARGIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_millis(200);

/// The timers of a session's connections.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    detect: Duration,
    lease: Duration,
}

impl Patience {
    pub fn of(timing: &Timing) -> Self {
        let Timing { detect, lease, epoch_max: _, heartbeat: _, margin: _ } = *timing;
        Self { detect, lease }
    }

    /// The time after which a connection is given up whose peer acknowledges nothing or takes nothing.
    pub fn stuck(&self) -> Duration {
        (self.detect * 2).max(STUCK_MIN)
    }

    /// The time after which a primary gives up a session in which no heartbeat is answered. By then the backup has
    /// taken over, or has stood still for as long.
    pub fn unanswered(&self) -> Duration {
        (self.detect * 2).max(UNANSWERED_MIN)
    }

    /// How long a goodbye is worth an answer: a backup that has not heard it by then takes over.
    pub fn goodbye(&self) -> Duration {
        (self.detect + GOODBYE_MARGIN).max(GOODBYE_MIN)
    }

    /// The time between two tries to make a session while the lease of the one before may last. Short: a backup that
    /// lost both connections with its primary takes over when that lease is over.
    pub fn again(&self) -> Duration {
        (self.lease / 6).clamp(Duration::from_millis(1), AGAIN_MAX)
    }

    /// How long that is so.
    pub fn lease(&self) -> Duration {
        self.lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_defaults_are_the_least_values() {
        let patience = Patience::of(&Timing::default());
        assert_eq!(patience.stuck(), STUCK_MIN);
        assert_eq!(patience.unanswered(), UNANSWERED_MIN);
        assert_eq!(patience.goodbye(), GOODBYE_MIN);
        assert_eq!(patience.again(), MS * 10);
    }

    proptest! {
        #[test]
        fn no_timer_ends_a_session_before_the_detection(detect_ms in 30u32..600_000, lease_ms in 5u32..60_000) {
            let (detect, lease) = (MS * detect_ms, MS * lease_ms.min(detect_ms - 20));
            let patience = Patience::of(&Timing { detect, lease, ..Timing::default() });
            prop_assert!(patience.stuck() >= detect + RETRANSMIT_AT_LEAST_EVERY);
            prop_assert!(patience.unanswered() >= detect + RETRANSMIT_AT_LEAST_EVERY);
            prop_assert!(patience.goodbye() > detect);
            prop_assert!(patience.again() * 2 <= lease.max(MS * 2));
        }
    }
}
