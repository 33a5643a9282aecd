//! Links and addresses of one namespace, by rtnetlink.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use anyhow::{Context, Result};
use futures_util::{TryStreamExt, future::try_join_all};
use netlink_packet_route::{
    link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
    neighbour::NeighbourState,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::netns::NetNs;

/// A link as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
}

/// A netlink socket in a namespace. Needs a tokio runtime, which drives it.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

impl Links {
    pub fn open(netns: &NetNs) -> Result<Self> {
        let _entered = netns.enter()?;
        let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub async fn list(&self) -> Result<Vec<Link>> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.context("list links")?;
        let named = messages.into_iter().filter_map(|message| {
            let index = message.header.index;
            message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(Link { index, name }),
                _ => None,
            })
        });
        Ok(named.collect())
    }

    pub async fn index(&self, name: &str) -> Result<u32> {
        let found = self.list().await?.into_iter().find(|link| link.name == name);
        Ok(found.with_context(|| format!("no link {name}"))?.index)
    }

    /// A bridge without spanning tree: its ports forward from the first frame on.
    pub async fn add_bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).mcast_snooping(false).up().build();
        self.handle.link().add(bridge).execute().await.with_context(|| format!("add bridge {name}"))
    }

    /// A cable: `name` here, `peer` in the namespace `there`. Both ends are down.
    pub async fn add_cable(&self, name: &str, peer: &str, there: &NetNs) -> Result<()> {
        let mut cable = LinkVeth::new(name, peer);
        let far = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.to_owned())
            .setns_by_fd(there.as_fd().as_raw_fd());
        cable = cable.set_info_data(InfoData::Veth(InfoVeth::Peer(far.build())));
        let request = self.handle.link().add(cable.build());
        request.execute().await.with_context(|| format!("add the cable {name} - {peer}"))
    }

    /// Makes `port` one of the bridge's ports and sets it up.
    pub async fn enslave(&self, port: &str, bridge: &str) -> Result<()> {
        let bridge = self.index(bridge).await?;
        let change = by_index(self.index(port).await?).controller(bridge).up().build();
        let request = self.handle.link().change(change);
        request.execute().await.with_context(|| format!("make {port} a port of the bridge"))
    }

    /// Tells the bridge that frames to `address` leave by `port`, for good.
    pub async fn add_forwarding(&self, port: &str, address: &[u8; 6]) -> Result<()> {
        let port = self.index(port).await?;
        let request = self.handle.neighbours().add_bridge(port, address);
        // Without ARP: static. (Permanent would mean an address of the bridge's own.)
        let request = request.state(NeighbourState::Noarp).execute();
        request.await.context("add a forwarding entry to the bridge")
    }

    pub async fn add_address(
        &self,
        name: &str,
        address: impl Into<IpAddr>,
        prefix: u8,
    ) -> Result<()> {
        let (index, address) = (self.index(name).await?, address.into());
        let request = self.handle.address().add(index, address, prefix);
        request.execute().await.with_context(|| format!("add {address}/{prefix} to {name}"))?;
        self.set_up(&[Link { index, name: name.to_owned() }]).await
    }

    pub async fn set_up(&self, links: &[Link]) -> Result<()> {
        let up = |link: &Link| by_index(link.index).up().build();
        self.change(links.iter().map(up).collect()).await.context("set links up")
    }

    /// Sets all of `links` down: the requests are on their way before the first is answered.
    pub async fn set_down(&self, links: &[Link]) -> Result<()> {
        let down = |link: &Link| by_index(link.index).down().build();
        self.change(links.iter().map(down).collect()).await.context("set links down")
    }

    pub async fn delete(&self, link: &Link) -> Result<()> {
        let request = self.handle.link().del(link.index);
        request.execute().await.with_context(|| format!("delete {}", link.name))
    }

    async fn change(&self, changes: Vec<LinkMessage>) -> Result<(), rtnetlink::Error> {
        let requests =
            changes.into_iter().map(|change| self.handle.link().change(change).execute());
        try_join_all(requests).await.map(drop)
    }
}

fn by_index(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}
