//! The control task: makes sessions with the backup, one after another, and keeps their heartbeat.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, bail};
use remus_abi::{Epoch, Term};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    datagrams::{Datagrams, Place},
    inbox::{Input, Post},
    relay::Relayed,
};
use crate::{
    link::{Control, open_bulk},
    os::{boot_now, fresh_session},
    wire::{
        Attach, Goodbye, GoodbyeWhy, Heartbeat, Hello, Refusal, Session, Timing, ToBackup,
        ToPrimary,
    },
};

/// Between two tries to make a session.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// After a session that was made and lost. Soon: to the backup two closed links look like a death, and unless
/// it hears from this host again before the lease is over, it takes over.
const AGAIN_AFTER: Duration = Duration::from_millis(10);
/// A control connection on which nothing is answered for so long is given up. Long: until then the lease has
/// long ended, and a backup that is only slow need not be synced again.
const SILENT_FOR: Duration = Duration::from_secs(3);

/// What the engine asks of the task.
pub(crate) enum Order {
    /// The session is of no use any more; make another.
    Drop(Session),
    /// Say goodbye, then end.
    Goodbye { epoch: Epoch, why: GoodbyeWhy },
}

/// How a session ended.
enum Ended {
    /// Another is to be made.
    Again,
    /// No more sessions.
    ForGood,
}

/// Makes sessions until an order ends it. `hello` is the template: each session gets a number of its own.
pub(crate) async fn keep_sessions(
    backup: SocketAddr,
    hello: Hello,
    mut datagrams: Datagrams,
    mut relayed: Relayed,
    post: Post,
    mut orders: UnboundedReceiver<Order>,
) {
    loop {
        let session = fresh_session();
        let hello = Hello { session, ..hello.clone() };
        let (term, timing) = (hello.term, hello.timing);
        let pause = match make_session(backup, hello, &mut datagrams, &post).await {
            Ok(Some((control, _place))) => {
                let said = Said { relayed: &mut relayed, orders: &mut orders };
                let ended = keep_session(control, session, term, timing, &post, said).await;
                datagrams.disarm();
                match ended {
                    Ok(Ended::ForGood) => return,
                    Ok(Ended::Again) => {}
                    Err(e) => post.send(Input::Lost { session, why: format!("{e:#}") }),
                }
                AGAIN_AFTER
            }
            Ok(None) => RETRY_EVERY,
            Err(e) => {
                post.send(Input::NoSession { why: format!("{e:#}") });
                RETRY_EVERY
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            order = orders.recv() => match order {
                Some(Order::Drop(_)) => {}
                Some(Order::Goodbye { .. }) | None => return,
            },
        }
    }
}

/// Hello, its answer, and the bulk connection. `None` when the backup refuses for now; why was posted.
async fn make_session(
    backup: SocketAddr,
    hello: Hello,
    datagrams: &mut Datagrams,
    post: &Post,
) -> Result<Option<(Control, Option<Place>)>> {
    let (session, term) = (hello.session, hello.term);
    let mut control = Control::connect(backup).await?;
    let place = datagrams.prepare(control.local_addr()?, backup).await;
    let acks_to = place.as_ref().map(|place| place.to);
    let hello = ToBackup::Hello(Hello { acks_to, ..hello });
    control.send(|out| hello.encode(out)).await?;
    let refused = match control.answer().await? {
        ToPrimary::Welcome(welcome) => {
            let bulk = open_bulk(backup, Attach { session }).await?;
            if let Some(place) = &place {
                datagrams.arm(session, place);
            }
            post.send(Input::Connected { session, welcome, bulk });
            return Ok(Some((control, place)));
        }
        ToPrimary::Refuse(refuse)
            if refuse.newest > term
                || matches!(refuse.why, Refusal::OutdatedTerm | Refusal::Promoted) =>
        {
            Input::StandDown { newer: newer_than(term, refuse.newest) }
        }
        ToPrimary::Refuse(refuse) => {
            Input::Refused { why: refuse.why, text: format!("the backup refuses: {}", refuse.text) }
        }
        ToPrimary::StandDown(stand_down) => Input::StandDown { newer: stand_down.newer },
        ToPrimary::HeartbeatAck(_) | ToPrimary::GoodbyeAck(_) | ToPrimary::Lacks(_) => {
            bail!("the backup said something out of place")
        }
    };
    post.send(refused);
    Ok(None)
}

/// What the engine has for the session.
struct Said<'a> {
    relayed: &'a mut Relayed,
    orders: &'a mut UnboundedReceiver<Order>,
}

/// Exchanges heartbeats, and passes on what the guest is given, until the session is over.
async fn keep_session(
    mut control: Control,
    session: Session,
    term: Term,
    timing: Timing,
    post: &Post,
    said: Said<'_>,
) -> Result<Ended> {
    let Said { relayed, orders } = said;
    let mut beat = interval(timing.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seq = 0;
    let mut last_answer = tokio::time::Instant::now();
    loop {
        tokio::select! {
            _ = beat.tick() => {
                if last_answer.elapsed() > SILENT_FOR {
                    bail!("the backup has not answered for {SILENT_FOR:?}");
                }
                seq += 1;
                let heartbeat = ToBackup::Heartbeat(Heartbeat { term, seq, sent: boot_now() });
                control.send(|out| heartbeat.encode(out)).await?;
            }
            message = control.receive() => match message? {
                ToPrimary::HeartbeatAck(ack) if ack.term == term => {
                    last_answer = tokio::time::Instant::now();
                    post.send(Input::Answered { session, sent: ack.sent });
                }
                // Of another term: as if it had never come.
                ToPrimary::HeartbeatAck(_) => {}
                ToPrimary::Lacks(lacks) => post.send(Input::BackupLacks { what: lacks.what }),
                ToPrimary::StandDown(stand_down) => {
                    post.send(Input::StandDown { newer: stand_down.newer });
                }
                ToPrimary::Welcome(_) | ToPrimary::Refuse(_) | ToPrimary::GoodbyeAck(_) => {
                    bail!("the backup said something out of place");
                }
            },
            inbound = relayed.next() => control.send(|out| inbound.encode(out)).await?,
            order = orders.recv() => match order {
                Some(Order::Drop(dropped)) if dropped == session => return Ok(Ended::Again),
                Some(Order::Drop(_)) => {}
                Some(Order::Goodbye { epoch, why }) => {
                    say_goodbye(&mut control, Goodbye { term, epoch, why }).await?;
                    post.send(Input::GoodbyeSaid);
                    return Ok(Ended::ForGood);
                }
                None => return Ok(Ended::ForGood),
            },
        }
    }
}

/// The newest term that a refusal implies: a backup that is promoted is in a later one than we, whatever it says.
fn newer_than(ours: Term, theirs: Term) -> Term {
    theirs.max(ours.next())
}

/// The backup is to know that it must not promote; if it does not hear it, it will be right to.
async fn say_goodbye(control: &mut Control, goodbye: Goodbye) -> Result<()> {
    control.send(|out| ToBackup::Goodbye(goodbye).encode(out)).await?;
    timeout(Duration::from_secs(2), async {
        loop {
            match control.receive().await? {
                ToPrimary::GoodbyeAck(_) => return Ok(()),
                ToPrimary::HeartbeatAck(_) | ToPrimary::Lacks(_) => {}
                ToPrimary::Welcome(_) | ToPrimary::Refuse(_) | ToPrimary::StandDown(_) => {
                    bail!("the backup said something out of place")
                }
            }
        }
    })
    .await?
}
