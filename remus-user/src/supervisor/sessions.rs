//! The control task: makes sessions with the backup, one after another, and keeps their heartbeat.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use anyhow::{Result, bail};
use remus_abi::Term;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::datagrams::{Datagrams, Place};
use crate::{
    engine::{Input, NewTerm, Order, Pulse, Relayed},
    link::{Control, Patience, open_bulk},
    os::{Post, boot_now, fresh_session},
    replication::{Relation, judge},
    wire::{
        Attach, Feature, Features, Goodbye, Heartbeat, Hello, Refusal, Refuse, Session, StandDown,
        Timing, ToPrimary,
    },
};

/// Between two tries to make a session, once the lease of the one before is over.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// How a session ended.
enum Ended {
    /// Another is to be made.
    Again,
    /// Another is to be made, in this term.
    ByNewTerm(NewTerm),
    /// No more sessions.
    ForGood,
}

/// Control connections that are of no more use, and stay open until there is another session. To the backup, two
/// connections that its primary has closed are the primary's death; one that is open is silence, which it judges by the
/// clock. This host is not dead, so it does not close the second one.
#[derive(Default)]
struct StillOpen(VecDeque<Control>);

impl StillOpen {
    /// The last of them matters, and those that the backup may not have come to yet.
    const MAX: usize = 8;

    fn keep(&mut self, control: Control) {
        if self.0.len() == Self::MAX {
            self.0.pop_front();
        }
        self.0.push_back(control);
    }
}

/// The engine, as the task that keeps its sessions sees it.
pub(crate) struct EngineEnd {
    pub(crate) post: Post<Input>,
    pub(crate) orders: UnboundedReceiver<Order>,
    pub(crate) relayed: Relayed,
    pub(crate) pulse: Pulse,
}

/// Makes sessions until an order ends it. `hello` is the template: each session gets a number of its own.
pub(crate) async fn keep_sessions(
    backup: SocketAddr,
    mut hello: Hello,
    mut datagrams: Datagrams,
    mut engine: EngineEnd,
) {
    let timing = hello.timing;
    let patience = Patience::of(&timing);
    let mut still_open = StillOpen::default();
    let mut soon_until = boot_now();
    loop {
        let (session, term) = (fresh_session(), hello.term);
        let asked = Hello { session, ..hello.clone() };
        match make_session(backup, asked, &mut datagrams, &mut still_open, &engine.post).await {
            Ok(Some((mut control, _place))) => {
                // From here on the backup may have a checkpoint, by which the guest is heard.
                hello = spoken(hello);
                still_open.0.clear();
                let ended = keep_session(&mut control, session, term, timing, &mut engine).await;
                datagrams.disarm();
                match ended {
                    Ok(Ended::ForGood) => return,
                    Ok(Ended::Again) => {}
                    Ok(Ended::ByNewTerm(term)) => {
                        begin_term(&mut hello, &mut engine, term);
                        let why = "the guest goes on in a new term".to_owned();
                        engine.post.send(Input::Lost { session, why });
                    }
                    Err(e) => engine.post.send(Input::Lost { session, why: format!("{e:#}") }),
                }
                still_open.keep(control);
                soon_until = boot_now() + patience.lease();
            }
            Ok(None) => {}
            Err(e) => engine.post.send(Input::NoSession { why: format!("{e:#}") }),
        }
        let pause = if boot_now() < soon_until { patience.again() } else { RETRY_EVERY };
        tokio::select! {
            () = sleep(pause) => {}
            order = engine.orders.recv() => match order {
                Some(Order::Drop(_)) => {}
                Some(Order::BeginTerm(term)) => begin_term(&mut hello, &mut engine, term),
                Some(Order::Spoken) => hello = spoken(hello),
                Some(Order::Goodbye { .. }) | None => return,
            },
        }
    }
}

/// All sessions from now on are of the term `new`.
fn begin_term(hello: &mut Hello, engine: &mut EngineEnd, new: NewTerm) {
    engine.relayed.begin_term(new.term);
    let NewTerm { term, nonce, ancestry } = new;
    (hello.term, hello.nonce, hello.ancestry) = (term, nonce, ancestry);
}

/// Hello, its answer, and the bulk connection. `None` when the backup refuses for now; why was posted.
async fn make_session(
    backup: SocketAddr,
    hello: Hello,
    datagrams: &mut Datagrams,
    still_open: &mut StillOpen,
    post: &Post<Input>,
) -> Result<Option<(Control, Option<Place>)>> {
    let (session, patience) = (hello.session, Patience::of(&hello.timing));
    let mut control = Control::connect(backup, patience).await?;
    let place = datagrams.prepare(control.local_addr()?, backup).await;
    let acks_to = place.as_ref().map(|place| place.to);
    let hello = Hello { acks_to, ..hello };
    let asked = hello.ancestry.clone();
    control.send(|out| _ = hello.encode(out)).await?;
    let answer = match control.answer().await {
        Ok(answer) => answer,
        Err(e) => {
            still_open.keep(control);
            return Err(e);
        }
    };
    let refused = match answer {
        ToPrimary::Welcome(welcome) => {
            control.agree(Features::shared_with(welcome.features));
            let bulk = match open_bulk(backup, Attach { session }, patience).await {
                Ok(bulk) => bulk,
                Err(e) => {
                    still_open.keep(control);
                    return Err(e);
                }
            };
            if let Some(place) = &place {
                datagrams.arm(session, place);
            }
            post.send(Input::Connected { session, welcome, bulk });
            return Ok(Some((control, place)));
        }
        ToPrimary::Refuse(Refuse { why, newest: _, text, ancestry }) => {
            let ancestry = ancestry.unwrap_or_default();
            match (why, judge(&asked, &ancestry)) {
                // The word of a speaker that goes on from here. A record is no speaker.
                (Refusal::Promoted, Relation::Descendant) => Input::StandDown { ancestry },
                (
                    why,
                    Relation::Same | Relation::Ancestor | Relation::Descendant | Relation::Split,
                ) => Input::Refused { why, text: format!("the backup refuses: {text}"), ancestry },
            }
        }
        ToPrimary::StandDown(StandDown { ancestry }) => Input::StandDown { ancestry },
        ToPrimary::HeartbeatAck(_) | ToPrimary::GoodbyeAck(_) | ToPrimary::Lacks(_) => {
            bail!("the backup said something out of place")
        }
    };
    post.send(refused);
    Ok(None)
}

/// Exchanges heartbeats, and passes on what the guest is given, until the session is over.
async fn keep_session(
    control: &mut Control,
    session: Session,
    term: Term,
    timing: Timing,
    engine: &mut EngineEnd,
) -> Result<Ended> {
    let EngineEnd { post, orders, relayed, pulse } = engine;
    let patience = Patience::of(&timing);
    let mut beat = interval(timing.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seq = 0;
    let mut last_answer = boot_now();
    let tells_age = control.features().has(Feature::EngineAge);
    loop {
        tokio::select! {
            _ = beat.tick() => {
                if boot_now().since(last_answer) > patience.unanswered() {
                    bail!("the backup has not answered for {:?}", patience.unanswered());
                }
                seq += 1;
                let engine_age = tells_age.then(|| pulse.age());
                let heartbeat = Heartbeat { term, seq, sent: boot_now(), engine_age };
                control.send(|out| _ = heartbeat.encode(out)).await?;
            }
            message = control.receive() => match message? {
                ToPrimary::HeartbeatAck(ack) if ack.term == term => {
                    last_answer = boot_now();
                    post.send(Input::Answered { session, sent: ack.sent });
                }
                // Of another term: as if it had never come.
                ToPrimary::HeartbeatAck(_) => {}
                ToPrimary::Lacks(lacks) => post.send(Input::BackupLacks { what: lacks.what }),
                ToPrimary::StandDown(stand_down) => {
                    post.send(Input::StandDown { ancestry: stand_down.ancestry });
                }
                ToPrimary::Welcome(_) | ToPrimary::Refuse(_) | ToPrimary::GoodbyeAck(_) => {
                    bail!("the backup said something out of place");
                }
            },
            inbound = relayed.next() => control.send(|out| _ = inbound.encode(out)).await?,
            order = orders.recv() => match order {
                Some(Order::Drop(dropped)) if dropped == session => return Ok(Ended::Again),
                // Its hello has said so, or the next one will.
                Some(Order::Drop(_) | Order::Spoken) => {}
                // Made before the engine said so.
                Some(Order::BeginTerm(term)) => return Ok(Ended::ByNewTerm(term)),
                Some(Order::Goodbye { epoch, why }) => {
                    let goodbye = Goodbye { term, epoch, why };
                    say_goodbye(control, goodbye, patience.goodbye()).await?;
                    post.send(Input::GoodbyeSaid);
                    return Ok(Ended::ForGood);
                }
                None => return Ok(Ended::ForGood),
            },
        }
    }
}

/// The same, once the guest may have been heard in the term.
fn spoken(hello: Hello) -> Hello {
    let ancestry = hello.ancestry.clone().spoken_in(hello.of());
    Hello { ancestry, ..hello }
}

/// The backup is to know that it must not promote; if it does not hear it, it will be right to.
async fn say_goodbye(control: &mut Control, goodbye: Goodbye, within: Duration) -> Result<()> {
    control.send(|out| _ = goodbye.encode(out)).await?;
    timeout(within, async {
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
