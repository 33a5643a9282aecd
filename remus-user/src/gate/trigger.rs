//! The trigger: `ack` at the link to the backup, which lets the kernel release on the word of a datagram.
//!
//! The controller's own way (ack on the bulk connection, [`Gate::commit`](super::Gate::commit), flush) stays the
//! truth: whatever goes wrong here costs the moment that the datagram would have won, and nothing else. So:
//!
//! - Not pinned. A link that goes with its process fails *shut* here: a controller that died leaves nothing on
//!   the host's network, and its gate releases nothing more by itself.
//! - One session at a time. Taking it out ([`Trigger::disarm`]) is one store, and voids its key. The gate does so when its
//!   term ends. A session of the old term that is armed at the same moment does no harm: its datagrams name that term.
//!
//! A trigger may be moved to another thread than its gate's. The map with the key is not pinned: it is gone with the
//! process.
//!
//! Deliberately absent: which link leads to the backup (`net`), who sends datagrams and when (`backup`).

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, links::FdLink},
};
use remus_abi::ack::{AckKey, Trigger as Word};

use super::{
    chain::Side,
    control::Words,
    hook::attach_tcx,
    programs::{Programs, classifier, loaded_map},
};
use crate::wire::Session;

const ACK: &str = "ack";

/// See the module.
pub struct Trigger {
    loaded: Ebpf,
    id: u32,
    armed: Arc<Armed>,
    attached: Option<Attached>,
}

/// The words by which a trigger is armed. The gate reaches them too, from its own thread, to disarm the trigger.
pub(super) struct Armed(Words);

struct Attached {
    /// Name of the interface.
    to: String,
    /// Detaches when it is dropped.
    _link: FdLink,
}

impl Trigger {
    /// Loads `ack` over the maps that `programs` use.
    pub(super) fn over(programs: &Programs) -> Result<Self> {
        let mut loaded = programs.load_beside(ACK)?;
        let armed = Arc::new(Armed(Words::map(loaded_map(&loaded, "TRIGGER")?)?));
        let id = classifier(&mut loaded, ACK)?.info().context("ask for the id of ack")?.id();
        Ok(Self { loaded, id, armed, attached: None })
    }

    /// Puts `ack` at the ingress of the interface `link`, and says so; or finds it there. It waits for the kernel's
    /// readers, some ten milliseconds, when it has to attach.
    ///
    /// # Errors
    /// When the interface is gone, or the kernel refuses. Then it is nowhere.
    pub fn attach(&mut self, link: &str) -> Result<bool> {
        if self.is_at(link) {
            return Ok(false);
        }
        self.attached = None;
        // First, so that no other program takes datagrams away; it passes on whatever is not one.
        let held = attach_tcx(classifier(&mut self.loaded, ACK)?, link, Side::Ingress)
            .with_context(|| format!("attach {ACK} to {link} (TCX needs Linux 6.6)"))?;
        self.attached = Some(Attached { to: link.to_owned(), _link: held });
        Ok(true)
    }

    /// Whether `ack` is in front of the interface `link` now. A link that was deleted and made again has lost it.
    pub fn is_at(&self, link: &str) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.to == link)
            && SchedClassifier::query_tcx(link, TcAttachType::Ingress)
                .is_ok_and(|(_, chain)| chain.iter().any(|program| program.id() == self.id))
    }

    /// Whether programs can be attached to the ingress of the interface `link` as `ack` wants to be. Attaches none.
    ///
    /// # Errors
    /// When the interface is gone, or the kernel knows no such attachment.
    pub fn can_be_at(link: &str) -> Result<()> {
        SchedClassifier::query_tcx(link, TcAttachType::Ingress)
            .with_context(|| format!("ask which programs sit on {link} (TCX needs Linux 6.6)"))?;
        Ok(())
    }

    /// From now on datagrams of `session` to the UDP port `port`, tagged with `key`, commit and release; each
    /// allows releases for `lease` from the moment that it echoes. A session before is void.
    pub fn arm(&self, session: Session, key: AckKey, port: u16, lease: Duration) {
        self.disarm();
        let AckKey([low, high]) = key;
        self.set(Word::KeyLow, low);
        self.set(Word::KeyHigh, high);
        self.set(Word::Port, port.into());
        self.set(Word::LeaseNs, u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX));
        self.set(Word::Session, session.get());
    }

    /// From now on every frame passes, and no datagram counts.
    pub fn disarm(&self) {
        self.armed.disarm();
    }

    pub(super) fn armed(&self) -> Weak<Armed> {
        Arc::downgrade(&self.armed)
    }

    fn set(&self, word: Word, to: u64) {
        self.armed.0.set(word as usize, to);
    }
}

impl Armed {
    pub(super) fn disarm(&self) {
        self.0.set(Word::Session as usize, 0);
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.disarm();
    }
}
