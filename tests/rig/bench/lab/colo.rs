//! One life of a guest that QEMU COLO protects.

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{
    Bench,
    figures::{Arm, Load},
    patience,
    protect::{Shown, WARM_UP, pause_figures, words},
};
use crate::{colo::Alone, guest::Guest, host::Death, topology::GUEST};

/// Between checkpoints that nothing but time asks for: an epoch of ours.
const DELAY_MS: u32 = 25;

impl Bench<'_> {
    pub(super) async fn colo(&mut self, load: Load) -> Result<Shown> {
        let folder = self.stage.next_life().await?;
        let (hosts, programs) = (&self.stage.topology, &self.stage.programs);
        let mut alone = Alone::start(hosts, programs, &words(load), &folder).await?;
        drop(Guest::wait(hosts.client.netns(), GUEST, patience()).await?);
        alone.still_runs()?;
        let began = Instant::now();
        let mut colo = alone.protect(DELAY_MS).await?;
        self.say(&format!("QEMU COLO: protected after {:.1} s", began.elapsed().as_secs_f64()));
        sleep(WARM_UP).await;

        let stretch = colo.stretch(self.stretch()).await?;
        let pause = pause_figures(&stretch.pauses_us, stretch.seconds);
        self.tell(Arm::Colo, load, &pause);
        let mut shown = Shown { pause, gap: None };
        if self.dies(load) {
            let client = self.client().await?;
            let armed = hosts.primary.arm().await?;
            let died = hosts.primary.die(Death::Host, &armed, &mut colo.primary.process).await?;
            colo.take_over().await?;
            shown.gap = Some(self.gap_of(Arm::Colo, client, died).await?);
            colo.secondary.still_runs()?;
        }
        Ok(shown)
    }
}
