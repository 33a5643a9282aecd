//! How long a client gets no answer when the host dies: every link down, then SIGKILL. For Remus that has the detection
//! in it; COLO has none, and its secondary is told at once.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{
    Bench,
    figures::{Arm, Figure, Load, Measured, Part, Run},
};
use crate::{
    client::{Client, Outcome},
    host::Died,
    topology::GUEST,
};

const CONNECTIONS: usize = 4;
/// Of load, before the death.
const BEFORE: Duration = Duration::from_secs(3);
/// Until a client that hears nothing more has given up.
const AFTER: Duration = Duration::from_secs(12);
/// Replies after the death, on all connections: the life after it goes on.
const GOES_ON: u64 = 16;

pub(super) const fn run(arm: Arm) -> Run {
    Run { part: Part::Gap, load: Load::Idle, arm }
}

impl Bench<'_> {
    /// A client at work for a while.
    pub(super) async fn client(&self) -> Result<Client> {
        let netns = self.stage.topology.client.netns().another()?;
        let client = Client::start(netns, GUEST, CONNECTIONS, "gap").await?;
        sleep(BEFORE).await;
        Ok(client)
    }

    /// Waits until the client's life goes on after the death, and asks it what that was like.
    pub(super) async fn gap_of(
        &self,
        arm: Arm,
        client: Client,
        died: Died,
    ) -> Result<Vec<Measured>> {
        let (until, before) = (Instant::now() + AFTER, client.replies());
        while client.replies() < before + GOES_ON && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
        }
        let outcome = client.finish_around(died.began_ns).await;
        let measured = gap_figures(&outcome, died.began_ns);
        let told: Vec<_> = measured.iter().map(|(figure, value)| figure.told(*value)).collect();
        self.say(&format!("{}, its host dies: {}", arm.name(), told.join(", ")));
        Ok(measured)
    }
}

fn gap_figures(outcome: &Outcome, died_ns: u64) -> Vec<Measured> {
    let Outcome { connections_lost, verdict, gaps, .. } = outcome;
    let longest = gaps.iter().map(|gap| gap.length_ns()).max().unwrap_or(0);
    let first = gaps.iter().map(|gap| gap.to_ns.saturating_sub(died_ns)).min().unwrap_or(0);
    vec![
        (Figure::GapMs, longest as f64 / 1e6),
        (Figure::FirstReplyMs, first as f64 / 1e6),
        (Figure::RepliesLost, verdict.unanswered as f64),
        (Figure::ConnectionsLost, connections_lost.len() as f64),
        (Figure::RepliesWrong, verdict.contradictions.len() as f64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Gap;

    #[test]
    fn the_gap_is_the_longest_and_the_first_reply_that_of_the_luckiest() {
        let gap = |from_ms: u64, to_ms: u64| Gap {
            from_ns: from_ms * 1_000_000,
            to_ns: to_ms * 1_000_000,
        };
        let gaps = vec![gap(990, 1500), gap(900, 1450), gap(999, 1700)];
        let outcome = Outcome { gaps, ..Outcome::default() };
        let told = gap_figures(&outcome, 1_000_000_000);
        assert_eq!(told[..2], [(Figure::GapMs, 701.0), (Figure::FirstReplyMs, 450.0)]);
    }
}
