//! What the primary says, from both of its connections, and the answers.

use anyhow::{Context, Result, bail};
use remus_abi::Stamp;
use tracing::warn;

use super::follower::{BULK, CONTROL, FollowedSession, Follower, READS_MAX, stand_protected};
use crate::{
    link::Arrived,
    names::VmName,
    os::boot_now,
    wire::{Heartbeat, ToBackup, ToPrimary},
};

impl Follower {
    /// Reads both links until nothing is there. An error is the end of the session.
    pub(super) fn hear(&mut self) -> Result<()> {
        let Self {
            session: Some(following),
            standby: Some(standby),
            brain,
            beside,
            shared,
            lacks,
            vm,
            ..
        } = self
        else {
            return Ok(());
        };
        let FollowedSession {
            detector, control, bulk, datagrams, receiver, protected, hangs, ..
        } = following;
        let mut is_heard = false;
        if let Some(control) = control {
            loop {
                while let Some(frame) = control.frames.next_frame()? {
                    let now = boot_now();
                    let answer = match ToBackup::decode(&frame)? {
                        ToBackup::Heartbeat(heartbeat) => {
                            let ack = brain.handle_heartbeat(now, &heartbeat)?;
                            if std::mem::replace(hangs, ack.is_none()) != ack.is_none() {
                                tell_hang(vm, &heartbeat);
                            }
                            // A guest whose engine hangs is as dead as one whose host is silent.
                            let Some(ack) = ack else { continue };
                            Some(ToPrimary::HeartbeatAck(ack))
                        }
                        ToBackup::Goodbye(goodbye) => {
                            Some(ToPrimary::GoodbyeAck(brain.handle_goodbye(&goodbye)?))
                        }
                        ToBackup::Inbound(inbound) => {
                            brain.handle_inbound(&inbound)?;
                            beside.kept.take(&inbound);
                            None
                        }
                        ToBackup::Hello(_) => bail!("a second Hello"),
                    };
                    is_heard = true;
                    detector.handle_heard(now, CONTROL);
                    if let Some(answer) = answer {
                        control
                            .answer(|out| _ = answer.encode(out))
                            .context("answer the primary")?;
                    }
                }
                match control.read() {
                    Arrived::Bytes => {}
                    Arrived::Nothing => break,
                    Arrived::End => bail!("the primary closed its control connection"),
                    Arrived::Broken => bail!("the control connection broke"),
                }
            }
        }
        if let Some(bulk) = bulk {
            let memory = standby.machine.memory();
            // Not without end: heartbeats are to be answered while a primary sends as fast as this host reads.
            for _ in 0..READS_MAX {
                while let Some(frame) = bulk.frames.next_frame()? {
                    is_heard = true;
                    let ack = receiver.take(&frame, brain, memory, beside)?;
                    detector.handle_heard(boot_now(), BULK);
                    if let Some(ack) = ack {
                        // First the one that a thread at the other end need not wake up for.
                        if let Some(datagrams) = datagrams {
                            datagrams.say(&ack);
                        }
                        bulk.send(|out| {
                            ack.encode(out);
                        })
                        .context("ack")?;
                        receiver.apply(memory, beside)?;
                        shared.applied(Stamp::new(ack.term, ack.epoch));
                        if !std::mem::replace(protected, true) {
                            stand_protected(shared, lacks);
                        }
                    }
                }
                match bulk.read() {
                    Arrived::Bytes => {}
                    Arrived::Nothing => break,
                    Arrived::End => bail!("the primary closed its bulk connection"),
                    Arrived::Broken => bail!("the bulk connection broke"),
                }
            }
        }
        if is_heard {
            standby.wiring.forget_overheard();
        }
        Ok(())
    }
}

/// Says that a hang has begun, or is over.
fn tell_hang(vm: &VmName, heartbeat: &Heartbeat) {
    let age = heartbeat.engine_age.unwrap_or_default();
    warn!(
        "VM {vm}: heartbeats come from the primary, whose engine last turned {} ms ago",
        age.as_millis()
    );
}
