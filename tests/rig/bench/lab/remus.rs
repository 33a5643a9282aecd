//! One life of a guest that Remus protects.

use anyhow::{Result, ensure};
use remus::observe::status::{Failover, Protection, Status};
use tokio::time::{Instant, sleep};

use super::{
    Bench,
    figures::{Arm, Figure, Load, Measured},
    patience,
    protect::{Shown, WARM_UP, network_and},
};
use crate::{
    guest::Guest,
    host::Death,
    remus::{
        Daemon, Options, Software, Timing, linux_network, primary_config, start_backup,
        start_primary_with,
    },
    topology::GUEST,
};

impl Bench<'_> {
    pub(super) async fn remus(&mut self, load: Load) -> Result<Shown> {
        let folder = self.stage.next_life().await?;
        let (hosts, programs) = (&self.stage.topology, &self.stage.programs);
        let timing = Timing::of_this_machine();
        let options = Options { timing, guest: Software::Linux, ..Options::default() };
        let config = primary_config(programs, &options, &folder)?;
        let config = config.replace(&linux_network(), &network_and(load));
        ensure!(
            config.contains(&network_and(load)),
            "the config does not tell the guest its words"
        );

        let log = folder.join("primary.log");
        let mut primary = start_primary_with(&hosts.primary, programs, &config, &folder, &log)?;
        primary.wait_for(Protection::Unprotected, patience()).await?;
        drop(Guest::wait(hosts.client.netns(), GUEST, patience()).await?);
        let log = folder.join("backup.log");
        let mut backup = start_backup(&hosts.backup, programs, &folder, &log)?;
        let began = Instant::now();
        primary.wait_for(Protection::Protected, patience()).await?;
        self.say(&format!("Remus: protected after {:.1} s", began.elapsed().as_secs_f64()));
        sleep(WARM_UP).await;

        let pause = self.pauses(&primary).await?;
        self.tell(Arm::Remus, load, &pause);
        let mut shown = Shown { pause, gap: None };
        backup.still_runs()?;
        if self.dies(load) {
            let client = self.client().await?;
            let hosts = &self.stage.topology;
            let armed = hosts.primary.arm().await?;
            let died = hosts.primary.die(Death::Host, &armed, &mut primary.process).await?;
            let mut gap = self.gap_of(Arm::Remus, client, died).await?;
            backup.still_runs()?;
            if let Some(Failover { decided_ns, .. }) = backup.status(None).await?.failover {
                let detect = decided_ns.saturating_sub(died.began_ns) as f64 / 1e6;
                gap.push((Figure::DetectMs, detect));
            }
            shown.gap = Some(gap);
        }
        Ok(shown)
    }

    async fn pauses(&self, primary: &Daemon) -> Result<Vec<Measured>> {
        let (began, before) = (Instant::now(), primary.status(None).await?.epochs);
        sleep(self.stretch()).await;
        let seconds = began.elapsed().as_secs_f64();
        let after: Status = primary.status(Some(before.captured)).await?;
        ensure!(after.protection == Protection::Protected, "lost its backup: {}", after.reason);
        Ok(vec![
            (Figure::PauseP50Ms, after.pause_us.p50 as f64 / 1e3),
            (Figure::PauseMaxMs, after.pause_us.max as f64 / 1e3),
            (Figure::CheckpointsPerS, (after.epochs.acked - before.acked) as f64 / seconds),
            (Figure::DirtyPages, after.dirty_pages.p50 as f64),
        ])
    }
}
