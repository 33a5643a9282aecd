//! Links by rtnetlink, through one socket that is opened ahead of time: to join a bridge or to set a tap up is on the
//! failover path, and takes one message each.
//!
//! The calls block, and are for plain threads: inside a tokio runtime they panic, as any nested `block_on` does,
//! and so does dropping a [`Links`] there.
//! A [`Links`] belongs to the network namespace of the thread that opened it; use it from that namespace.

use std::{fmt, io};

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{DefaultNla, Nla},
};
use tokio::runtime::{Builder, Runtime};

use super::Mac;

/// A link's number in its network namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A link as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub index: IfIndex,
    pub name: String,
    pub kind: Kind,
    /// Whether an administrator has set the link up.
    pub up: bool,
    /// Whether the link is up with something at its far end: a cable to a host that is on, a process that has the tap open.
    pub carrier: bool,
    /// Whether a bridge's spanning tree keeps frames from passing by this port, for now or for good.
    pub held_back: bool,
    /// The bridge (or bond, ...) that the link is a port of.
    pub controller: Option<IfIndex>,
    pub mac: Option<Mac>,
    pub mtu_bytes: u32,
    /// A text for people that says whose the link is.
    pub alias: Option<String>,
}

/// What a link is, as far as the gate cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    Bridge {
        spanning_tree: bool,
    },
    Tap {
        multi_queue: bool,
        persistent: bool,
        owner_uid: Option<u32>,
    },
    /// Any other, by the kernel's name for it; "physical link" when it has none.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { .. } => f.write_str("bridge"),
            Self::Tap { .. } => f.write_str("tap"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// One rtnetlink socket, and the runtime that drives it.
pub struct Links {
    pub(super) runtime: Runtime,
    pub(super) handle: rtnetlink::Handle,
}

impl Links {
    /// Opens the socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket or no epoll instance.
    pub fn open() -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build()
            .context("start a runtime for rtnetlink")?;
        let guard = runtime.enter();
        let (connection, handle, _) =
            rtnetlink::new_connection().context("open an rtnetlink socket")?;
        drop(guard);
        // The task ends with the runtime, and nobody waits for that.
        drop(runtime.spawn(connection));
        Ok(Self { runtime, handle })
    }

    /// Returns the link called `name`, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub fn find(&self, name: &str) -> Result<Option<Link>> {
        self.get(self.handle.link().get().match_name(name))
            .with_context(|| format!("look up link {name}"))
    }

    /// Returns the link with number `index`, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub fn at(&self, index: IfIndex) -> Result<Option<Link>> {
        self.get(self.handle.link().get().match_index(index.0))
            .with_context(|| format!("look up link {index}"))
    }

    /// Returns the bridge called `name`.
    ///
    /// # Errors
    /// When there is no such link, or it is not a bridge.
    pub fn bridge(&self, name: &str) -> Result<Link> {
        let link = self.find(name)?.with_context(|| {
            format!("there is no bridge {name}: make it (ip link add {name} type bridge)")
        })?;
        match link.kind {
            Kind::Bridge { .. } => Ok(link),
            Kind::Tap { .. } | Kind::Other(_) => {
                Err(anyhow!("{name} is a {}, not a bridge", link.kind))
            }
        }
    }

    /// Returns all links of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub fn all(&self) -> Result<Vec<Link>> {
        let all = self.handle.link().get().execute();
        let all: Vec<LinkMessage> =
            self.runtime.block_on(all.try_collect()).map_err(as_io).context("list the links")?;
        Ok(all.iter().map(describe).collect())
    }

    /// Returns the ports of `bridge`.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub fn ports(&self, bridge: IfIndex) -> Result<Vec<IfIndex>> {
        let all = self.all()?;
        let ports = all.iter().filter(|link| link.controller == Some(bridge));
        Ok(ports.map(|link| link.index).collect())
    }

    /// Returns the links with this alias.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub fn aliased(&self, alias: &str) -> Result<Vec<Link>> {
        let all: Vec<LinkMessage> = self
            .runtime
            .block_on(self.handle.link().get().execute().try_collect())
            .map_err(as_io)
            .context("list the links")?;
        let links = all.iter().map(describe);
        Ok(links.filter(|link| link.alias.as_deref() == Some(alias)).collect())
    }

    /// Makes `link` a port of `bridge`. Attach the gate first.
    ///
    /// # Errors
    /// When either is gone, or the kernel refuses.
    pub fn join(&self, link: IfIndex, bridge: IfIndex) -> Result<()> {
        self.change(message(link).controller(bridge.0).build())
            .with_context(|| format!("put link {link} into bridge {bridge}"))
    }

    /// Takes `link` out of the bridge that it is a port of, if there is one.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn leave(&self, link: IfIndex) -> Result<()> {
        self.change(message(link).nocontroller().build())
            .with_context(|| format!("take link {link} out of its bridge"))
    }

    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn up(&self, link: IfIndex) -> Result<()> {
        self.change(message(link).up().build()).with_context(|| format!("set link {link} up"))
    }

    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn down(&self, link: IfIndex) -> Result<()> {
        self.change(message(link).down().build()).with_context(|| format!("set link {link} down"))
    }

    /// Sets address, MTU and alias in one message.
    ///
    /// # Errors
    /// When the link is gone, or one value is refused; the kernel may have taken those before it.
    pub fn describe(&self, link: IfIndex, mac: Mac, mtu_bytes: u32, alias: &str) -> Result<()> {
        let m = message(link).address(mac.0.to_vec()).mtu(mtu_bytes).alias(alias);
        self.change(m.build()).with_context(|| format!("set the address and MTU of link {link}"))
    }

    /// Deletes `link`, if it still exists.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, link: IfIndex) -> Result<()> {
        match self.runtime.block_on(self.handle.link().del(link.0).execute()).map_err(as_io) {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("delete link {link}")),
        }
    }

    fn change(&self, message: LinkMessage) -> io::Result<()> {
        self.runtime.block_on(self.handle.link().change(message).execute()).map_err(as_io)
    }

    fn get(&self, request: rtnetlink::LinkGetRequest) -> io::Result<Option<Link>> {
        let answer = self.runtime.block_on(async {
            let mut answers = std::pin::pin!(request.execute());
            answers.try_next().await
        });
        match answer.map_err(as_io) {
            Ok(message) => Ok(message.as_ref().map(describe)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn message(link: IfIndex) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(link.0)
}

/// Returns the errno where there is one, by which callers tell "not there" from other errors.
pub(super) fn as_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(e) => e.to_io(),
        other => io::Error::other(other),
    }
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: IfIndex(message.header.index),
        name: String::new(),
        kind: Kind::Other(
            if message.header.flags.contains(LinkFlags::Loopback) {
                "loopback link"
            } else {
                "physical link"
            }
            .into(),
        ),
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        held_back: false,
        controller: None,
        mac: None,
        mtu_bytes: 0,
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.controller = Some(IfIndex(*index)),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu_bytes = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(info) => {
                link.kind = kind(info);
                link.held_back = is_held_back(info);
            }
            // The kernel sends dozens of attributes, and each version more.
            _ => {}
        }
    }
    link
}

fn kind(info: &[LinkInfo]) -> Kind {
    let named = info.iter().find_map(|i| match i {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let data = info.iter().find_map(|i| match i {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    match (named, data) {
        (Some(InfoKind::Bridge), data) => Kind::Bridge {
            spanning_tree: matches!(data, Some(InfoData::Bridge(values))
                if values.iter().any(|v| matches!(v, InfoBridge::StpState(s) if *s != BridgeStpState::Disabled))),
        },
        (Some(InfoKind::Tun), Some(InfoData::Tun(values))) => tun(values),
        (Some(other), _) => Kind::Other(other.to_string()),
        (None, _) => Kind::Other("physical link".into()),
    }
}

/// Returns whether a spanning tree holds the port back. A port that may not be used at all
/// ([`BridgePortState::Disabled`]) has no carrier or is down, and those tell it.
fn is_held_back(info: &[LinkInfo]) -> bool {
    info.iter().any(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(values)) => values.iter().any(|value| {
            matches!(
                value,
                InfoBridgePort::State(
                    BridgePortState::Listening
                        | BridgePortState::Learning
                        | BridgePortState::Blocking
                )
            )
        }),
        _ => false,
    })
}

/// IFLA_TUN_*, which the netlink crate leaves as bytes.
fn tun(values: &[InfoTun]) -> Kind {
    const OWNER: u16 = 1;
    const TYPE: u16 = 3;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    const TYPE_TAP: u8 = 2;
    let value = |wanted: u16| {
        values.iter().find_map(|value| match value {
            InfoTun::Other(nla) if nla.kind() == wanted => Some(bytes(nla)),
            _ => None,
        })
    };
    let byte = |wanted| value(wanted).and_then(|v| v.first().copied()).unwrap_or(0);
    if byte(TYPE) != TYPE_TAP {
        return Kind::Other("tun (IP only)".into());
    }
    Kind::Tap {
        multi_queue: byte(MULTI_QUEUE) != 0,
        persistent: byte(PERSIST) != 0,
        owner_uid: value(OWNER).and_then(|v| Some(u32::from_ne_bytes(v.try_into().ok()?))),
    }
}

fn bytes(nla: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}
