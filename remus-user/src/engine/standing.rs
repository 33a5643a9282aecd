//! How a VM stands at the host that runs it: the one place that derives the state from all that must hold, and says in
//! words what does not.

use std::time::Duration;

use crate::{
    observe::status::Protection,
    replication::{FencedBy, Standing},
};

/// A checkpoint that has been on its way for so long keeps replies from clients: whatever else is well, they are not
/// served.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(1);

/// What the state is derived from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    pub(super) standing: Standing,
    pub(super) fenced_by: FencedBy,
    /// The backup has answered lately.
    pub(super) lease_holds: bool,
    /// How long the oldest checkpoint that is not committed has been on its way.
    pub(super) unacked: Option<Duration>,
    /// Why there is no session, or the last one ended; empty where nothing was said.
    pub(super) said: &'a str,
    /// What keeps clients from the guest, and what may.
    pub(super) refusals: &'a str,
    pub(super) warnings: &'a str,
    /// What a takeover by the backup lacks.
    pub(super) backup_lacks: &'a str,
}

impl Evidence<'_> {
    pub(super) fn protection(&self) -> Protection {
        match self.standing {
            Standing::Waiting => Protection::Waiting,
            Standing::Syncing => Protection::Syncing,
            Standing::Protected if !self.lease_holds || self.is_stuck() => Protection::Stalled,
            Standing::Protected if !(self.refusals.is_empty() && self.backup_lacks.is_empty()) => {
                Protection::Impaired
            }
            Standing::Protected | Standing::Ending => Protection::Protected,
            Standing::Stalled => Protection::Stalled,
            Standing::Unprotected => match self.fenced_by {
                FencedBy::Takeover => Protection::Promoted,
                FencedBy::FirstStart
                | FencedBy::Restart
                | FencedBy::Operator
                | FencedBy::Checkpointer => Protection::Unprotected,
            },
            Standing::Stopped => Protection::Stopped,
        }
    }

    /// Why the state is not `protected`, or may not deserve to be; empty when all is well.
    pub(super) fn reason(&self) -> String {
        let stalled = match self.standing {
            Standing::Protected if !self.lease_holds => "the backup does not answer",
            Standing::Protected if self.is_stuck() => {
                "the backup answers, and checkpoints do not get through to it: is the MTU of the replication link what \
                 both hosts take it for (ping -M do -s 1472 BACKUP)?"
            }
            Standing::Stalled if self.said.is_empty() => "the backup does not answer",
            Standing::Waiting
            | Standing::Syncing
            | Standing::Protected
            | Standing::Stalled
            | Standing::Unprotected
            | Standing::Ending
            | Standing::Stopped => "",
        };
        let said = match self.standing {
            Standing::Protected => "",
            _ => self.said,
        };
        let backup = match self.backup_lacks {
            "" => String::new(),
            lacks => format!("a takeover by the backup would lack something: {lacks}"),
        };
        let all = [stalled, said, self.refusals, &backup, self.warnings];
        let all: Vec<_> = all.into_iter().filter(|words| !words.is_empty()).collect();
        all.join("; ")
    }

    fn is_stuck(&self) -> bool {
        self.unacked.is_some_and(|span| span > ON_ITS_WAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Evidence<'_> = Evidence {
        standing: Standing::Protected,
        fenced_by: FencedBy::FirstStart,
        lease_holds: true,
        unacked: Some(Duration::from_millis(3)),
        said: "",
        refusals: "",
        warnings: "",
        backup_lacks: "",
    };

    fn of(evidence: Evidence<'_>) -> (Protection, String) {
        (evidence.protection(), evidence.reason())
    }

    #[test]
    fn protected_takes_all_that_must_hold() {
        // What was said of an earlier session no longer counts.
        let well = Evidence { said: "connection refused", ..WELL };
        assert_eq!(of(well), (Protection::Protected, String::new()));
        for (evidence, protection, word) in [
            (Evidence { lease_holds: false, ..WELL }, Protection::Stalled, "does not answer"),
            (
                Evidence { unacked: Some(Duration::from_secs(2)), ..WELL },
                Protection::Stalled,
                "MTU",
            ),
            (Evidence { refusals: "tap0 is down", ..WELL }, Protection::Impaired, "tap0 is down"),
            (
                Evidence { backup_lacks: "br0 is not there", ..WELL },
                Protection::Impaired,
                "a takeover by the backup would lack something: br0 is not there",
            ),
            (Evidence { warnings: "FORWARD", ..WELL }, Protection::Protected, "FORWARD"),
        ] {
            let (is, reason) = of(evidence);
            assert!(is == protection && reason.contains(word), "{evidence:?}: {is:?}, {reason}");
        }
    }

    #[test]
    fn a_guest_without_a_backup_says_what_keeps_its_clients_away_too() {
        let promoted = Evidence {
            standing: Standing::Unprotected,
            fenced_by: FencedBy::Takeover,
            refusals: "the bridge br0 is not there",
            ..WELL
        };
        assert_eq!(of(promoted), (Protection::Promoted, promoted.refusals.to_owned()));
        let stalled = Evidence { standing: Standing::Stalled, said: "reset by peer", ..WELL };
        assert_eq!(of(stalled), (Protection::Stalled, "reset by peer".to_owned()));
    }
}
