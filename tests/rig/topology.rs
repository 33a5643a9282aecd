//! The namespaces and cables that the crate's drawing shows.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use crate::{host::Host, links::Links, netns::NetNs};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 10), 6379);
pub const GUEST_MAC: &str = "52:54:00:77:00:0a";
/// Where the backup listens, on the replication link.
pub const BACKUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 2), 7000);
/// The primary on the replication link.
pub const PRIMARY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// The bridge of a host that its tap joins.
pub const BRIDGE: &str = "br0";
/// Names of the switch's ports.
pub const PRIMARY_PORT: &str = "primary";
pub const BACKUP_PORT: &str = "backup";

#[derive(Debug)]
pub struct Topology {
    pub client: Host,
    pub switch: NetNs,
    pub primary: Host,
    pub backup: Host,
}

impl Topology {
    /// Builds all of it; nothing of it has a name outside.
    pub async fn build() -> Result<Self> {
        let switch = NetNs::new()?;
        let mut client = Host::new("client")?;
        let mut primary = Host::new("primary")?;
        let mut backup = Host::new("backup")?;

        let ports = Links::open(&switch)?;
        ports.add_bridge("sw0").await?;
        let cables = [(&client, "client"), (&primary, PRIMARY_PORT), (&backup, BACKUP_PORT)];
        for (host, port) in cables {
            ports.add_cable(port, "eth0", host.netns()).await?;
            ports.enslave(port, "sw0").await?;
        }
        client.links().add_address("eth0", CLIENT, 24).await?;
        for host in [&primary, &backup] {
            host.links().add_bridge(BRIDGE).await?;
            host.links().enslave("eth0", BRIDGE).await?;
        }
        primary.links().add_cable("repl0", "repl0", backup.netns()).await?;
        primary.links().add_address("repl0", PRIMARY, 24).await?;
        backup.links().add_address("repl0", *BACKUP.ip(), 24).await?;

        for host in [&mut client, &mut primary, &mut backup] {
            let loopback = host.links().list().await?.into_iter().filter(|link| link.name == "lo");
            host.links().set_up(&loopback.collect::<Vec<_>>()).await?;
            host.built().await?;
        }
        Ok(Self { client, switch, primary, backup })
    }

    /// Both hosts as new, for another round.
    pub async fn hosts_reborn(&mut self) -> Result<()> {
        self.primary.reborn().await?;
        self.backup.reborn().await
    }
}
