//! An ack's way, from its arrival to the frames that leave for it: the brain books it, the gate gets the permission and
//! the lease, and is flushed.

use anyhow::Result;

use super::Engine;
use crate::{
    gate::Flushed,
    os::boot_now,
    replication::LeaseUntil,
    wire::{Ack, Moment, Session},
};

impl Engine {
    /// The backup has committed a checkpoint.
    pub(super) fn acked(&mut self, ack: &Ack) -> Result<()> {
        if self.current() != Some(ack.session) {
            // From a reader of a session that is over.
            return Ok(());
        }
        let report = &mut self.report;
        let taken = self.brain.handle_ack(boot_now(), ack, |stamp, since_seal| {
            report.committed(stamp, since_seal);
        });
        let acked = match taken {
            Ok(Some(acked)) => acked,
            Ok(None) => return Ok(()),
            Err(e) => {
                self.lose(ack.session, &e.to_string());
                return Ok(());
            }
        };
        let gate = &mut self.guard.gate;
        gate.commit(&acked.committed);
        self.capture.book.commit(ack.epoch);
        if let Some((stamp, at)) = gate.newest_ack()
            && stamp == acked.committed.stamp()
        {
            self.report.kernel_lead(boot_now().since(at));
        }
        self.renew_lease(acked.lease_until);
        self.flush_if_wanted()
    }

    /// The backup answered what was sent at `sent`: the gate may release for a while.
    pub(super) fn answered(&mut self, session: Session, sent: Moment) -> Result<()> {
        match self.brain.handle_answer(boot_now(), session, sent) {
            Ok(lease_until) => {
                self.renew_lease(lease_until);
                self.flush_if_wanted()
            }
            Err(e) => {
                self.lose(session, &format!("the backup gave an answer that cannot be one: {e:?}"));
                Ok(())
            }
        }
    }

    fn renew_lease(&mut self, lease: Option<LeaseUntil>) {
        if let Some(lease) = lease {
            self.guard.gate.renew_lease(&lease);
        }
    }

    fn flush_if_wanted(&mut self) -> Result<()> {
        if self.brain.wants_flush() { self.flush() } else { Ok(()) }
    }

    /// Lets out what is committed.
    pub(super) fn flush(&mut self) -> Result<()> {
        match self.guard.gate.flush()? {
            Flushed::All => {
                self.guard.flush_again = false;
                if let Some((stamp, since_seal)) = self.brain.handle_flushed(boot_now()) {
                    self.report.released(stamp, since_seal);
                }
            }
            Flushed::Pending => self.guard.flush_again = true,
            // The next answer of the backup renews the lease, and flushes.
            Flushed::Refused => self.guard.flush_again = false,
        }
        Ok(())
    }
}
