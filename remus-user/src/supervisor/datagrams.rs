//! The kernel's trigger, session by session: where datagrams are to come, with which key, and at which link the
//! gate listens for them.
//!
//! It belongs to the control task, which makes the sessions. Nothing here may cost one: without a trigger, with
//! no link to be found, with a kernel that refuses, acks release by the bulk connection, as without all this.

use std::{
    net::{SocketAddr, UdpSocket},
    num::NonZeroU16,
    time::Duration,
};

use anyhow::{Context, Result};
use tracing::{info, warn};

use crate::{
    gate::Trigger,
    net::Links,
    os::fresh_key,
    wire::{AckTo, Session},
};

/// See the module.
pub(crate) struct Datagrams {
    /// `None`: the controller alone releases. Also while a session is being prepared.
    trigger: Option<Trigger>,
    lease: Duration,
    /// The last trouble, so that a backup that is away for an hour does not fill the log.
    trouble: String,
}

/// What a session's datagrams need while it lasts.
pub(super) struct Place {
    pub(super) to: AckTo,
    /// Bound and never read: while it is open nobody else on this host is sent what the program passes on, and
    /// the backup is not told that nobody listens.
    _socket: UdpSocket,
}

impl Datagrams {
    /// `lease` is how long an answer of the backup allows releases.
    pub(crate) fn new(trigger: Option<Trigger>, lease: Duration) -> Self {
        Self { trigger, lease, trouble: String::new() }
    }

    /// A place for the datagrams of a session whose control connection has the address `here` at this end, and
    /// the program at the link that leads `there`. `None` when the session has to do without.
    pub(super) async fn prepare(&mut self, here: SocketAddr, there: SocketAddr) -> Option<Place> {
        let trigger = self.trigger.take()?;
        // Attaching waits for the kernel, and rtnetlink wants a thread without a runtime. The task ends by itself
        // and gives the trigger back; only a panic keeps it, and the process does not outlive that by much.
        let attach = move || {
            let mut trigger = trigger;
            let attached = attach(&mut trigger, there);
            (trigger, attached)
        };
        let (trigger, attached) = tokio::task::spawn_blocking(attach).await.ok()?;
        self.trigger = Some(trigger);
        match attached.and_then(|()| place(here)) {
            Ok(place) => {
                self.trouble.clear();
                Some(place)
            }
            Err(e) => {
                let trouble = format!("{e:#}");
                if self.trouble != trouble {
                    warn!("acks release by way of the controller only: {trouble}");
                    self.trouble = trouble;
                }
                None
            }
        }
    }

    /// The backup has welcomed the session: from now on its datagrams count.
    pub(super) fn arm(&self, session: Session, place: &Place) {
        if let Some(trigger) = &self.trigger {
            let AckTo { port, key } = place.to;
            trigger.arm(session, key, port.get(), self.lease);
        }
    }

    /// The session is over.
    pub(super) fn disarm(&self) {
        if let Some(trigger) = &self.trigger {
            trigger.disarm();
        }
    }
}

fn attach(trigger: &mut Trigger, there: SocketAddr) -> Result<()> {
    let link = Links::open()?.towards(there)?;
    if trigger.attach(&link.name)? {
        info!("the kernel takes acks at {}, the link to the backup", link.name);
    }
    Ok(())
}

fn place(mut here: SocketAddr) -> Result<Place> {
    here.set_port(0);
    let socket = UdpSocket::bind(here).with_context(|| format!("a UDP socket at {here}"))?;
    let port = socket.local_addr().context("ask for its port")?.port();
    let port = NonZeroU16::new(port).context("a bound socket has a port")?;
    Ok(Place { to: AckTo { port, key: fresh_key() }, _socket: socket })
}
