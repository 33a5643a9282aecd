//! How long a stock kernel takes to user space: from the start of the VMM's process to the guest's first word from there.
//!
//! The guest switches itself off afterwards. Neither VMM is bound to CPUs; both have a tap.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};

use super::{
    Bench,
    figures::{Arm, Figure, Load, Part, Run},
};
use crate::{
    bench::in_turn,
    host::{Process, Share},
    qemu::Spec,
    remus::{
        Machine, Options, Placement, Software, linux_network, linux_words, primary_config,
        start_primary_with,
    },
    sys,
};

const VCPUS: [u8; 3] = [1, 2, 4];
const QUICK_VCPUS: [u8; 1] = [1];
const MEMORY_MIB: u32 = 256;
const MICROVM: &str = "microvm,pit=off,pic=off,rtc=off";
/// Of the guest's, beyond those of every guest.
const WORDS: &str = "remus.poweroff";
const SAYS: &str = "remus-guest: userspace ";
/// A start that has said nothing by then hangs. Guests of several vCPUs sometimes do in the lab.
const LAB_HANGS_AFTER: Duration = Duration::from_secs(120);
const HANGS_AFTER: Duration = Duration::from_secs(20);
const STARTS: u32 = 3;
const LOOK: Duration = Duration::from_millis(5);

pub(super) const fn run(vcpus: u8, arm: Arm) -> Run {
    Run { part: Part::Boot, load: Load::Vcpus(vcpus), arm }
}

/// A guest that has come to user space.
struct Booted {
    wall_s: f64,
    kernel_s: f64,
}

impl Bench<'_> {
    pub(super) async fn boot(&mut self) -> Result<()> {
        let all: &[u8] = if self.plan.quick { &QUICK_VCPUS } else { &VCPUS };
        for &vcpus in all {
            let mut both = Vec::new();
            for &arm in in_turn(self.round, &[Arm::Remus, Arm::Microvm]) {
                match self.boots(arm, vcpus).await {
                    Ok(booted) => both.push((arm, booted)),
                    Err(error) => {
                        self.fails(&format!("{}, {vcpus} vCPUs", arm.name()), &error);
                    }
                }
            }
            if both.len() < 2 {
                continue;
            }
            for (arm, Booted { wall_s, kernel_s }) in both {
                let measured = [(Figure::UserspaceS, wall_s), (Figure::KernelS, kernel_s)];
                self.figures.add(run(vcpus, arm), measured);
            }
        }
        Ok(())
    }

    /// Boots until it is not a start that hangs, a few times at most.
    async fn boots(&mut self, arm: Arm, vcpus: u8) -> Result<Booted> {
        for _ in 0..STARTS {
            let folder = self.stage.next_life().await?;
            let log = folder.join("boot.log");
            let began = Instant::now();
            let mut process = self.start(arm, vcpus, &folder, &log)?;
            let kernel_s = says_userspace(&mut process, &log, began).await?;
            let wall_s = began.elapsed().as_secs_f64();
            let hung = u32::from(kernel_s.is_none());
            self.figures.add(run(vcpus, arm), [(Figure::Hung, f64::from(hung))]);
            let Some(kernel_s) = kernel_s else {
                self.say(&format!("{}, {vcpus} vCPUs: hangs", arm.name()));
                process.kill()?;
                continue;
            };
            self.say(&format!(
                "{}, {vcpus} vCPUs: user space after {wall_s:.2} s, of them {kernel_s:.2} s of the kernel's",
                arm.name()
            ));
            // What it does from here on is not asked.
            process.finish(hangs_after()).await?;
            return Ok(Booted { wall_s, kernel_s });
        }
        bail!("hung {STARTS} times")
    }

    fn start(&self, arm: Arm, vcpus: u8, folder: &Path, log: &Path) -> Result<Process> {
        let (host, programs) = (&self.stage.topology.primary, &self.stage.programs);
        let machine = Machine { vcpus, memory_mib: MEMORY_MIB };
        match arm {
            Arm::Remus => {
                let placement = Placement::Free;
                let guest = Software::Linux;
                let options = Options { placement, machine, guest, ..Options::default() };
                let config = primary_config(programs, &options, folder)?;
                let config = config.replace(&linux_network(), WORDS);
                ensure!(config.contains(WORDS), "the config does not tell the guest its words");
                Ok(start_primary_with(host, programs, &config, folder, log)?.process)
            }
            Arm::Microvm => {
                let words = linux_words(WORDS);
                let spec = Spec {
                    machine: MICROVM,
                    vcpus,
                    memory_mib: MEMORY_MIB,
                    linux: &programs.linux,
                    words: &words,
                    nic: "virtio-net-device",
                };
                host.spawn(spec.command(), Share::Host, log)
            }
            Arm::Uplink | Arm::Colo | Arm::Plug => bail!("{} boots nothing here", arm.name()),
        }
    }
}

/// Waits for the guest's word, whose time it tells; `None` when it has not come for too long.
async fn says_userspace(process: &mut Process, log: &Path, began: Instant) -> Result<Option<f64>> {
    while began.elapsed() < hangs_after() {
        let said = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
        if let Some(kernel_s) = userspace_s(&said) {
            return Ok(Some(kernel_s));
        }
        if let Some(status) = process.ended()? {
            bail!("it ended ({status}) and said: {}", said.trim_end());
        }
        sleep(LOOK).await;
    }
    Ok(None)
}

/// What the guest says of its time, once the line is whole.
fn userspace_s(said: &str) -> Option<f64> {
    let whole = said.rsplit_once('\n')?.0;
    let line = whole.lines().find_map(|line| Some(line.split_once(SAYS)?.1))?;
    line.split_whitespace().next()?.parse().ok()
}

fn hangs_after() -> Duration {
    if sys::is_the_lab() { LAB_HANGS_AFTER } else { HANGS_AFTER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_from_either_log_once_its_line_is_whole() {
        assert_eq!(userspace_s("remus-guest: userspace 10.55 \r\n"), Some(10.55));
        let logged = "T  INFO remus: x\nT  INFO guest: remus-guest: userspace 8.51 \nT  INFO y\n";
        assert_eq!(userspace_s(logged), Some(8.51));
        assert_eq!(userspace_s("remus-guest: userspace 10.5"), None);
        assert_eq!(userspace_s("remus-guest: ready 11.0\n"), None);
        assert_eq!(userspace_s(""), None);
    }
}
