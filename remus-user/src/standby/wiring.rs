//! The guest's connection to this host's network.

use std::thread;

use anyhow::{Context, Result};
use tracing::{info, warn};

use crate::{
    gate::Gate,
    names::LinkName,
    net::{IfIndex, Links, Mac, Overheard},
};

/// A tap behind its gate, and the bridge that it is to join.
pub(crate) struct Wiring {
    pub(super) links: Links,
    pub(super) tap: IfIndex,
    pub(super) bridge: Option<LinkName>,
    pub(super) mac: Mac,
    /// What comes for the guest while it runs elsewhere.
    pub(super) overheard: Option<Overheard>,
}

impl Wiring {
    pub(crate) fn tap(&self) -> IfIndex {
        self.tap
    }

    /// Joins the bridge, by the name that the operator gave it: its number changes when it is made again. Raises the
    /// tap.
    ///
    /// # Errors
    /// When the bridge is not there, or the kernel refuses. The tap is up all the same, unless it is gone.
    pub(crate) fn connect(&self) -> Result<()> {
        let joined = match &self.bridge {
            Some(bridge) => self
                .links
                .bridge(bridge.as_str())
                .and_then(|bridge| self.links.join(self.tap, bridge.index)),
            None => Ok(()),
        };
        self.links.up(self.tap)?;
        joined
    }

    /// Overhears from here on what comes for the guest to the ports of its bridge, `None` for those that it has now.
    /// Without it, or without a bridge, that is lost until the guest runs here, as on a host that is away.
    pub(crate) fn overhear(&mut self, ports: Option<&[IfIndex]>) {
        let Some(bridge) = &self.bridge else { return };
        let now = || {
            let bridge = self.links.bridge(bridge.as_str())?;
            self.links.ports(bridge.index)
        };
        let listening = ports.map_or_else(now, |ports| Ok(ports.to_vec())).and_then(|ports| {
            if self.overheard.as_ref().is_none_or(|overheard| !overheard.is_at(&ports)) {
                let overheard = Overheard::listen(&ports, self.mac);
                let overheard = overheard.context("listen at the ports of the bridge")?;
                if let Some(old) = self.overheard.replace(overheard) {
                    close(old);
                }
                info!("frames for the guest are overheard at {} ports", ports.len());
            }
            Ok(())
        });
        if let Err(e) = listening {
            warn!("frames that come for the guest before a takeover will be lost: {e:#}");
        }
    }

    /// The primary lives: what was overheard so far, it has had.
    pub(crate) fn forget_overheard(&mut self) {
        if let Some(overheard) = &mut self.overheard {
            overheard.forget();
        }
    }

    /// What was overheard since, each behind its virtio-net header; nothing more will be.
    pub(crate) fn take_overheard(&mut self) -> Vec<Box<[u8]>> {
        let Some(mut overheard) = self.overheard.take() else { return Vec::new() };
        let frames = overheard.take();
        close(overheard);
        frames
    }

    /// Takes the guest's address off this host's network, for whoever speaks for the guest now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn disconnect(&self) -> Result<()> {
        self.links.down(self.tap)?;
        self.links.leave(self.tap)
    }

    /// Takes the gate and the tap away: the guest has ended.
    ///
    /// # Errors
    /// When the tap cannot be deleted.
    pub(crate) fn remove(self, gate: Gate) -> Result<()> {
        super::remove_gate(gate);
        self.links.delete(self.tap)
    }
}

/// The kernel waits for all its CPUs when such a socket is closed, once for each; nobody here does.
fn close(overheard: Overheard) {
    if let Err(e) = thread::Builder::new().name("close".to_owned()).spawn(move || drop(overheard)) {
        warn!("the sockets that overheard were waited for: {e}");
    }
}
