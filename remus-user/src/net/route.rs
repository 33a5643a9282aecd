//! Which link leads to a host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::RouteMessageBuilder;

use super::{IfIndex, Link, Links, links::as_io};

impl Links {
    /// Returns the link through which this host reaches `address` now.
    ///
    /// # Errors
    /// When no route leads there, or the link is gone meanwhile.
    pub fn towards(&self, address: SocketAddr) -> Result<Link> {
        let index = match address {
            // An address that is local to one link names that link.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => v6.scope_id(),
            SocketAddr::V4(_) | SocketAddr::V6(_) => self
                .outgoing(address.ip())
                .with_context(|| format!("look up the route to {}", address.ip()))?,
        };
        self.at(IfIndex(index))?
            .with_context(|| format!("link {index}, which leads to {}, is gone", address.ip()))
    }

    fn outgoing(&self, address: IpAddr) -> io::Result<u32> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let question = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, bits)
            .map_err(io::Error::other)?
            .build();
        let answer: Option<RouteMessage> = self.runtime.block_on(async {
            let mut answers = std::pin::pin!(self.handle.route().get(question).execute());
            answers.try_next().await.map_err(as_io)
        })?;
        answer
            .iter()
            .flat_map(|route| &route.attributes)
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                // The kernel sends a dozen attributes, and more with each version.
                _ => None,
            })
            .ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
    }
}
