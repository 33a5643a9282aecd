//! The text that `INFO` replies with: lines of `name:value` under headings, as Redis writes them.

use alloc::string::String;
use core::fmt::{self, Write};

use crate::node::Node;

/// The whole text; the section that a client names is not looked at.
pub(crate) fn text(node: &Node<'_>, now_ns: u64) -> String {
    let mut text = String::new();
    write_text(&mut text, node, now_ns).expect("writing to a String cannot fail");
    text
}

fn write_text(to: &mut String, node: &Node<'_>, now_ns: u64) -> fmt::Result {
    let stats = &node.stats;
    write!(
        to,
        "# Server\r\nredis_version:6.0.0\r\nredis_mode:standalone\r\nserver_name:remus-guest\r\n"
    )?;
    write!(to, "remus_version:{}\r\ntcp_port:{}\r\n", env!("CARGO_PKG_VERSION"), node.port)?;
    write!(to, "uptime_in_seconds:{}\r\n", now_ns.saturating_sub(node.started_ns) / 1_000_000_000)?;
    write!(to, "\r\n# Clients\r\nconnected_clients:{}\r\n", stats.connections_open)?;
    write!(to, "\r\n# Memory\r\nused_memory:{}\r\n", node.store.used_bytes())?;
    write!(to, "maxmemory:{}\r\nheap_bytes:{}\r\n", node.store.limit_bytes(), node.memory.heap)?;
    write!(to, "\r\n# Stats\r\ntotal_connections_received:{}\r\n", stats.connections)?;
    write!(to, "dropped_connections:{}\r\n", stats.connections_dropped)?;
    write!(to, "total_commands_processed:{}\r\n", stats.commands)?;
    write!(to, "\r\n# Remus\r\nclock_ns:{now_ns}\r\n")?;
    let (vcpus, here) = node.work.cpus();
    write!(to, "vcpus:{vcpus}\r\nvcpus_started:{here}\r\n")?;
    let plan = node.work.plan();
    write!(to, "work_running:{}\r\n", u8::from(plan.is_some()))?;
    write!(to, "work_progress:{}\r\n", node.work.progress())?;
    for (vcpu, progress) in node.work.progresses().enumerate() {
        write!(to, "work_progress_{vcpu}:{progress}\r\n")?;
    }
    write!(to, "work_shape:{}\r\n", plan.map_or("none", |p| p.shape.name()))?;
    write!(to, "work_region_pages:{}\r\n", plan.map_or(0, |p| p.region_pages))?;
    write!(to, "beacon_running:{}\r\n", u8::from(node.beacon.due_ns().is_some()))?;
    write!(to, "beacon_counter:{}\r\n", node.beacon.counter())?;
    write!(to, "retransmits_forced:{}\r\n", stats.retransmits)?;
    write!(to, "doorbells:{}\r\nsleeps:{}\r\n", stats.doorbells, stats.sleeps)?;
    write!(to, "\r\n# Keyspace\r\n")?;
    match node.store.len() {
        0 => Ok(()),
        keys => write!(to, "db0:keys={keys},expires=0,avg_ttl=0\r\n"),
    }
}
