//! The engine and its session: begun, synced, lost.

use std::{sync::Arc, thread};

use anyhow::{Context, Result};
use tracing::{debug, info, warn};

use super::{
    Engine,
    input::{Input, Order},
    sender::Sender,
    shipment::Payload,
    sync::LiveSync,
};
use crate::{
    link::{AckIn, Bulk, HangUp},
    os::Post,
    replication::SyncNext,
    store::Standing,
    wire::{Features, Session, Welcome},
};

/// Shipments beyond the pipeline's depth: one being filled, one being compared.
const SPARE_SHIPMENTS: usize = 2;

/// The session that is going on.
pub(super) struct Ongoing {
    pub(super) session: Session,
    pub(super) sender: Sender,
    hang_up: HangUp,
    /// Until the first checkpoint is sealed.
    pub(super) sync: Option<LiveSync>,
}

impl Engine {
    /// The session that is going on, if there is one.
    pub(super) fn current(&self) -> Option<Session> {
        self.session.as_ref().map(|ongoing| ongoing.session)
    }

    /// A backup has welcomed a session: the live sync begins.
    pub(super) fn connect(
        &mut self,
        session: Session,
        welcome: &Welcome,
        bulk: Bulk,
    ) -> Result<()> {
        if let Some(replaced) = self.current() {
            self.lose(replaced, "another session took its place");
        }
        if !self.gate_is_well() {
            warn!("session {session} is not begun: the gate is lost");
            self.order(Order::Drop(session));
            return Ok(());
        }
        if let Err(e) = self.brain.handle_welcome(session, welcome) {
            warn!("the session is of no use: {e}");
            self.order(Order::Drop(session));
            return self.refused(e.relation(), &e.to_string());
        }
        // What stood in the way does so no more.
        self.report.reason("");
        // From the first committed checkpoint on the backup may take over: a restart here must know of it.
        // And by its first commit this guest is heard in this term: that is in the same write.
        self.record.write(|record| record.speaking(Standing::Protected))?;
        let ram_pages = self.capture.harvest.ram_pages();
        let places = self.brain.policy().depth + SPARE_SHIPMENTS;
        self.spare.make(places);
        let (out, acks, hang_up) = bulk
            .split(session, Features::shared_with(welcome.features))
            .context("share the bulk connection")?;
        start_ack_reader(session, acks, self.post.clone())?;
        let boot = Arc::clone(&self.boot);
        let post = self.post.clone();
        let sender = Sender::start(session, out, boot, ram_pages, self.encoding, places, post)?;

        if !self.machine.tracks_dirty() {
            self.machine.track_dirty(true)?;
        }
        let capture = &mut self.capture;
        capture.hot.clear();
        // The sync begins with RAM as it is.
        capture.reset = false;
        capture.book.owe_everything();
        let mut sync = LiveSync::new(ram_pages);
        sync.begin_round(|pages| capture.book.take_for_sync(pages));
        self.session = Some(Ongoing { session, sender, hang_up, sync: Some(sync) });
        info!("session {session}: syncing {ram_pages} pages");
        self.report_standing();
        Ok(())
    }

    /// The session is over. Buffers that are with its sender come back by themselves.
    pub(super) fn lose(&mut self, session: Session, why: &str) {
        let Some(ongoing) = self.session.take_if(|ongoing| ongoing.session == session) else {
            return;
        };
        ongoing.hang_up.now();
        drop(ongoing);
        warn!("session {session} is lost: {why}");
        self.brain.handle_session_lost();
        self.capture.book.put_back();
        self.order(Order::Drop(session));
        self.report.backup_lacks(String::new());
        self.report.reason(why);
        self.report_standing();
    }

    /// Whether pages of a live sync wait to be copied.
    pub(super) fn is_syncing(&self) -> bool {
        let sync = self.session.as_ref().and_then(|ongoing| ongoing.sync.as_ref());
        sync.is_some_and(LiveSync::is_under_way)
    }

    /// Copies the next pages of the live sync, if there is a buffer to put them into.
    pub(super) fn sync_stride(&mut self) -> Result<()> {
        let Some(Ongoing { sync: under_way, sender, .. }) = &mut self.session else {
            return Ok(());
        };
        let Some(sync) = under_way else { return Ok(()) };
        if self.spare.is_empty() {
            return Ok(());
        }
        let capture = &mut self.capture;
        if sync.next_stride(&mut capture.stride) {
            let mut shipment = self.spare.take();
            shipment.payload = Payload::Sync;
            self.machine.copy_live(capture.stride.iter().copied(), &mut shipment.staging)?;
            sender.ship(shipment);
            return Ok(());
        }
        // Cleared before it is copied: a page that the guest dirties meanwhile is reported again.
        self.machine.harvest_and_clear_live(&mut capture.harvest)?;
        capture.book.owe(&capture.harvest);
        let left = capture.book.owed().len();
        debug!("a round of the sync is sent, {left} pages were dirtied meanwhile");
        match self.brain.handle_sync_round(left) {
            SyncNext::Round => sync.begin_round(|pages| capture.book.take_for_sync(pages)),
            SyncNext::Seal => *under_way = None,
        }
        Ok(())
    }
}

/// Reads acks until the connection ends.
fn start_ack_reader(session: Session, mut acks: AckIn, post: Post<Input>) -> Result<()> {
    let read = move || {
        loop {
            match acks.next_ack() {
                Ok(ack) => post.send(Input::Acked(ack)),
                Err(e) => return post.send(Input::Lost { session, why: format!("{e:#}") }),
            }
        }
    };
    thread::Builder::new().name("acks".to_owned()).spawn(read).context("start the ack reader")?;
    Ok(())
}
