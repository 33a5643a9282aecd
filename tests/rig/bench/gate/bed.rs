//! Where the gate is measured: two namespaces, and a cable between them.
//!
//! ```text
//!   host                                       world
//!   writer -> [tap0] -> [br0] -> [eth0] ------ [far0] sink, which drops
//!             gate
//! ```
//!
//! The tap is made as for a VM, the same one for every arm and every round, and so is all the rest.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};
use remus::{
    gate,
    net::{self, TapSpec},
};

use super::{
    frames::{GUEST, Size, WORLD},
    sink::SinkProgram,
    writer::Writer,
};
use crate::{
    links::Links,
    netns::{Entered, NetNs},
    sys,
};

const TAP: &str = "tap0";
const BRIDGE: &str = "br0";
pub(super) const UPLINK: &str = "eth0";
const FAR: &str = "far0";
const MTU_BYTES: u32 = 1500;
/// Where the gates are pinned.
pub(super) const PINS: &str = "/run/remus/bench/gate";

#[derive(Debug)]
pub(super) struct Bed {
    pub(super) tap: gate::Tap,
    pub(super) sink: SinkProgram,
    pub(super) writer: Writer,
    runs: u32,
    /// The thread that measures is in the host's namespace for as long as the bed stands.
    _in_host: Entered,
    _world: NetNs,
}

impl Bed {
    /// Makes all of it, with `writer_cpu` for the writer. `object` is the sink's.
    pub(super) fn make(object: &Path, writer_cpu: usize) -> Result<Self> {
        let (host, world) = (NetNs::new()?, NetNs::new()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(lay_cable(&host, &world))?;
        let sink = {
            let _in_world = world.enter()?;
            SinkProgram::attach(object, FAR)?
        };

        let in_host = host.enter()?;
        // The nest's mounts are its own: /sys of this namespace, and a place for pins that leaves nothing.
        sys::mount(c"sysfs", c"/sys").context("mount /sys")?;
        sys::mount(c"tmpfs", c"/run").context("mount a tmpfs on /run")?;
        netfilter_off_bridges()?;
        let links = net::Links::open()?;
        let spec =
            TapSpec { name: TAP, guest_mac: net::Mac(GUEST), mtu_bytes: MTU_BYTES, vm: "bench" };
        let tap = links.ensure_tap(&spec, |_| false)?;
        links.join(tap.index, links.bridge(BRIDGE)?.index)?;
        links.up(tap.index)?;
        Ok(Self {
            tap: gate::Tap { name: TAP.to_owned(), ifindex: tap.index.0 },
            sink,
            writer: Writer::on(writer_cpu, tap.fd)?,
            runs: 0,
            _in_host: in_host,
            _world: world,
        })
    }

    /// Begins a run at the sink. The number is the tag of its frames.
    pub(super) fn begin_run(&mut self, size: Size) -> u32 {
        self.runs += 1;
        self.sink.begin(size, self.runs);
        self.runs
    }
}

/// The number of a link in the calling thread's network namespace.
pub(super) fn index_of(link: &str) -> Result<i32> {
    let file = format!("/sys/class/net/{link}/ifindex");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    text.trim().parse().with_context(|| format!("{file} is no number"))
}

async fn lay_cable(host: &NetNs, world: &NetNs) -> Result<()> {
    let (here, there) = (Links::open(host)?, Links::open(world)?);
    here.add_bridge(BRIDGE).await?;
    here.add_cable(UPLINK, FAR, world).await?;
    here.enslave(UPLINK, BRIDGE).await?;
    here.add_forwarding(UPLINK, &WORLD).await?;
    let far = there.list().await?.into_iter().filter(|link| link.name == FAR);
    there.set_up(&far.collect::<Vec<_>>()).await
}

/// Where br_netfilter is there, bridged frames pass iptables unless it is told otherwise. An engine that
/// wants them to says so itself.
fn netfilter_off_bridges() -> Result<()> {
    for table in ["arptables", "iptables", "ip6tables"] {
        let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
        match fs::write(&switch, "0") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // no br_netfilter
            written => written.with_context(|| format!("write {switch}"))?,
        }
    }
    Ok(())
}
