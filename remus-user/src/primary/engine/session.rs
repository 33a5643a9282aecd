//! The engine and its session: made, synced, answered, lost.

use std::{net::TcpStream, sync::Arc, thread};

use anyhow::{Context, Result};
use tracing::{debug, info, warn};

use super::{Engine, SPARE_SHIPMENTS, STAGING_PAGES};
use crate::{
    checkpoint::Staging,
    link::{AckIn, hang_up},
    os::boot_now,
    primary::{
        control::Order,
        inbox::{Input, Post},
        sender::{Cargo, Sender, Shipment},
        sync::Sync,
    },
    replication::SyncNext,
    store::Standing,
    wire::{Ack, Features, Moment, Session, Welcome},
};

/// The session that is going on.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) sender: Sender,
    bulk: TcpStream,
}

impl Engine {
    /// A backup has welcomed a session: the live sync begins.
    pub(super) fn connected(
        &mut self,
        session: Session,
        welcome: &Welcome,
        bulk: TcpStream,
    ) -> Result<()> {
        if let Some(link) = &self.link {
            let replaced = link.session;
            self.lost(replaced, "another session took its place");
        }
        if !self.gate_is_well() {
            self.refuse_for_gate(session);
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
        self.record(self.recorded.clone().speaking(Standing::Protected))?;
        let ram_pages = self.harvest.ram_pages();
        let places = self.depth + SPARE_SHIPMENTS;
        while self.shipments < places {
            self.spare.push(Box::new(Shipment::new(Staging::new(STAGING_PAGES))));
            self.shipments += 1;
        }
        let ours = bulk.try_clone().context("share the bulk connection")?;
        let acks = bulk.try_clone().context("share the bulk connection")?;
        let acks = AckIn::new(acks, Features::shared_with(welcome.features));
        start_ack_reader(session, acks, self.post.clone())?;
        let boot = Arc::clone(&self.boot);
        let post = self.post.clone();
        let sender = Sender::start(session, bulk, boot, ram_pages, self.encoding, places, post)?;
        self.link = Some(Link { session, sender, bulk: ours });

        if !self.machine.tracks_dirty() {
            self.machine.track_dirty(true)?;
        }
        self.hot.clear();
        // The sync begins with RAM as it is.
        self.reset = false;
        self.book.owe_everything();
        let mut sync = Sync::new(ram_pages);
        sync.begin_round(|pages| self.book.take_for_sync(pages));
        self.sync = Some(sync);
        info!("session {session}: syncing {ram_pages} pages");
        self.report_standing();
        Ok(())
    }

    /// The session is over. Buffers that are with its sender come back by themselves.
    pub(super) fn lost(&mut self, session: Session, why: &str) {
        let Some(link) = self.link.take_if(|link| link.session == session) else { return };
        hang_up(&link.bulk);
        drop(link);
        warn!("session {session} is lost: {why}");
        self.brain.handle_session_lost();
        self.book.put_back();
        self.sync = None;
        self.sealed_at.clear();
        self.order(Order::Drop(session));
        self.report.backup_lacks(String::new());
        self.report.reason(why);
        self.report_standing();
    }

    /// The next pages of the live sync, if there is a buffer to put them into.
    pub(super) fn sync_stride(&mut self) -> Result<()> {
        let (Some(sync), Some(link)) = (&mut self.sync, &self.link) else { return Ok(()) };
        if self.spare.is_empty() {
            return Ok(());
        }
        if sync.next_stride(&mut self.stride) {
            let mut shipment = self.spare.pop().expect("just looked");
            shipment.cargo = Cargo::Sync;
            shipment.staging.clear();
            self.machine.copy_live(self.stride.iter().copied(), &mut shipment.staging)?;
            link.sender.ship(shipment);
            return Ok(());
        }
        // Cleared before it is copied: a page that the guest dirties meanwhile is reported again.
        self.machine.harvest_and_clear_live(&mut self.harvest)?;
        self.book.owe(&self.harvest);
        let left = self.book.owed().len();
        debug!("a round of the sync is sent, {left} pages were dirtied meanwhile");
        match self.brain.handle_sync_round(left) {
            SyncNext::Round => sync.begin_round(|pages| self.book.take_for_sync(pages)),
            SyncNext::Seal => self.sync = None,
        }
        Ok(())
    }

    pub(super) fn acked(&mut self, ack: &Ack) -> Result<()> {
        if self.link.as_ref().is_none_or(|link| link.session != ack.session) {
            // From a reader of a session that is over.
            return Ok(());
        }
        let now = boot_now();
        let committed = match self.brain.handle_ack(now, ack) {
            Ok(Some(committed)) => committed,
            Ok(None) => return Ok(()),
            Err(e) => {
                self.lost(ack.session, &e.to_string());
                return Ok(());
            }
        };
        self.gate.commit(&committed);
        self.book.commit(ack.epoch);
        while let Some((stamp, at)) =
            self.sealed_at.pop_front_if(|(stamp, _)| *stamp <= committed.stamp())
        {
            self.report.committed(stamp, now.since(at));
            self.committed = Some((stamp, at));
        }
        if let Some((stamp, at)) = self.gate.newest_ack()
            && stamp == committed.stamp()
        {
            self.report.led(boot_now().since(at));
        }
        // Renews the lease, and flushes.
        self.answered(ack.session, ack.sent)
    }

    /// The backup answered what was sent at `sent`: the gate may release for a while.
    pub(super) fn answered(&mut self, session: Session, sent: Moment) -> Result<()> {
        if self.link.as_ref().is_none_or(|link| link.session != session) {
            return Ok(());
        }
        let term = self.brain.term();
        if let Err(e) = self.lease.handle_answer(boot_now(), term, sent) {
            self.lost(session, &format!("the backup gave an answer that cannot be one: {e:?}"));
            return Ok(());
        }
        if let Some(until) = self.lease.until() {
            self.gate.renew_lease(until.0);
        }
        if self.brain.released() < self.brain.acked() {
            self.flush()?;
        }
        Ok(())
    }
}

/// Reads acks until the connection ends.
fn start_ack_reader(session: Session, mut acks: AckIn, post: Post) -> Result<()> {
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
