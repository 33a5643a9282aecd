//! The network that a VM needs: a tap whose name is free or was ours, a bridge, an address to listen at.

use std::net::{SocketAddr, TcpListener};

use super::Check;
use crate::{
    config::ReleaseTrigger,
    gate::Trigger,
    names::{LinkName, VmName},
    net::{Kind, Link, Links, tap_alias},
};

/// Checks the tap and the bridge, as far as they are named. `vm` is whose tap may be there already, `mtu_bytes` its
/// longest packet; a backup knows neither before a primary speaks to it.
pub(super) fn links(
    tap: Option<&LinkName>,
    bridge: Option<&LinkName>,
    vm: Option<&VmName>,
    mtu_bytes: Option<u16>,
) -> Vec<Check> {
    if tap.is_none() && bridge.is_none() {
        return Vec::new();
    }
    let links = match Links::open() {
        Ok(links) => links,
        Err(e) => {
            return vec![Check::refused("links", format!("{e:#}"), "use a kernel with rtnetlink")];
        }
    };
    let tap = tap.map(|name| match links.find(name.as_str()) {
        Ok(found) => judge_tap(name, found, vm),
        Err(e) => Check::refused("tap", format!("{e:#}"), "see the kernel log"),
    });
    let bridge = bridge.map(|name| match links.find(name.as_str()) {
        Ok(found) => judge_bridge(name, found, mtu_bytes),
        Err(e) => Check::refused("bridge", format!("{e:#}"), "see the kernel log"),
    });
    tap.into_iter().chain(bridge).collect()
}

fn judge_tap(name: &LinkName, found: Option<Link>, vm: Option<&VmName>) -> Check {
    const NAME: &str = "tap";
    let Some(link) = found else { return Check::ok(NAME, format!("{name} will be made")) };
    let alias = link.alias.as_deref().unwrap_or("");
    let ours = match vm {
        Some(vm) => alias == tap_alias(vm.as_str()),
        // A backup learns the VM's name only later.
        None => alias.starts_with(&tap_alias("")),
    };
    match link.kind {
        Kind::Tap { multi_queue: false, .. } if ours => Check::ok(
            NAME,
            format!(
                "{name} is left over from an earlier run; it is adopted if its gate is still attached"
            ),
        ),
        Kind::Tap { .. } => Check::refused(
            NAME,
            format!("{name} is somebody else's tap (alias \"{}\")", alias.escape_default()),
            format!(
                "choose another name, or delete that tap if nobody needs it: ip link delete {name}"
            ),
        ),
        Kind::Bridge { .. } | Kind::Other(_) => Check::refused(
            NAME,
            format!("{name} exists and is a {}, not a tap", link.kind),
            "choose another name",
        ),
    }
}

fn judge_bridge(name: &LinkName, found: Option<Link>, mtu_bytes: Option<u16>) -> Check {
    const NAME: &str = "bridge";
    let Some(link) = found else {
        let make = format!("make it (ip link add {name} type bridge; ip link set {name} up)");
        return Check::refused(NAME, format!("{name} is not there"), make);
    };
    match link.kind {
        Kind::Bridge { spanning_tree: true } => Check::warning(
            NAME,
            format!(
                "{name} runs the spanning tree protocol: a tap that joins it hears nothing for the forward delay"
            ),
            format!(
                "switch the protocol off, or a takeover waits for that delay: ip link set {name} type bridge stp_state 0"
            ),
        ),
        Kind::Bridge { .. } if !link.up => Check::warning(
            NAME,
            format!("{name} is down: nothing reaches the guest"),
            format!("ip link set {name} up"),
        ),
        Kind::Bridge { .. } => mtu_bytes
            .and_then(|wanted| judge_mtu(name, link.mtu_bytes, wanted.into()))
            .unwrap_or_else(|| Check::ok(NAME, format!("{name}"))),
        Kind::Tap { .. } | Kind::Other(_) => Check::refused(
            NAME,
            format!("{name} is a {}, not a bridge", link.kind),
            format!(
                "name the bridge that {name} is a port of, or make a bridge (ip link add br0 type bridge; ip link set br0 up) \
                 and name that"
            ),
        ),
    }
}

/// Checks that the bridge carries the guest's packets. A bridge takes the MTU of its narrowest port, unless an
/// administrator gave it another.
pub(super) fn judge_mtu(name: &LinkName, bridge: u32, wanted: u32) -> Option<Check> {
    const NAME: &str = "bridge";
    if bridge < wanted {
        return Some(Check::warning(
            NAME,
            format!("{name} carries packets of {bridge} bytes, less than net.mtu"),
            format!(
                "raise the MTU of its ports and of the network behind them, or set net.mtu to {bridge}"
            ),
        ));
    }
    (bridge > wanted).then(|| {
        Check::warning(
            NAME,
            format!(
                "{name} carries packets of {bridge} bytes, and only of {wanted}, the guest's, once the tap joins: longer \
                 packets of all others on the bridge are dropped then"
            ),
            format!(
                "set net.mtu to {bridge}, or fix the bridge's MTU (ip link set {name} mtu {bridge}) if nothing longer than \
                 {wanted} bytes is sent to the guest"
            ),
        )
    })
}

/// Checks whether the kernel can take the acks of `backup`, where that is wanted. If it cannot, the controller takes
/// them.
pub(super) fn trigger(wanted: ReleaseTrigger, backup: SocketAddr) -> Option<Check> {
    const NAME: &str = "trigger";
    match wanted {
        ReleaseTrigger::Controller => return None,
        ReleaseTrigger::Kernel => {}
    }
    let link = match Links::open().and_then(|links| links.towards(backup)) {
        Ok(link) => link,
        Err(e) => {
            return Some(Check::warning(
                NAME,
                format!("no link leads to the backup: {e:#}"),
                format!(
                    "until a link does, only the controller releases: ip route get {}",
                    backup.ip()
                ),
            ));
        }
    };
    Some(match Trigger::can_be_at(&link.name) {
        Ok(()) => Check::ok(NAME, format!("the kernel takes acks at {}", link.name)),
        Err(e) => Check::warning(
            NAME,
            format!("the kernel cannot take acks at {}: {e:#}", link.name),
            "use Linux 6.6 or later; until then, only the controller releases",
        ),
    })
}

/// Checks that the address is ours to listen at, and free.
pub(super) fn listen(address: SocketAddr) -> Check {
    const NAME: &str = "listen";
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(NAME, address.to_string()),
        Err(e) => {
            let remedy = match e.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "stop whatever listens there (ss -ltnp shows it), or choose another port"
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    "name an address of this host, as `ip address` shows it"
                }
                _ => "choose another address or port",
            };
            Check::refused(NAME, format!("cannot listen at {address}: {e}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use crate::net::IfIndex;

    #[test]
    fn what_is_not_a_bridge_is_not_told_to_be_made() {
        let name = LinkName::new("eth0").unwrap();
        let kind = Kind::Other("physical link".to_owned());
        let check = judge_bridge(&name, Some(Link { kind, ..link("eth0") }), None);
        assert_eq!(check.found, "eth0 is a physical link, not a bridge");
        assert!(!check.remedy.contains("ip link add eth0"), "{}", check.remedy);
        assert!(judge_bridge(&name, None, None).remedy.contains("ip link add eth0 type bridge"));
    }

    fn link(name: &str) -> Link {
        Link {
            index: IfIndex(3),
            name: name.to_owned(),
            kind: Kind::Bridge { spanning_tree: false },
            up: true,
            carrier: true,
            held_back: false,
            controller: None,
            mac: None,
            mtu_bytes: 1500,
            alias: None,
        }
    }

    #[test]
    fn a_bridge_narrower_than_the_guests_packets_is_warned_of() {
        let name = LinkName::new("br0").unwrap();
        let bridge = link("br0");
        let judged = |mtu_bytes| judge_bridge(&name, Some(bridge.clone()), mtu_bytes);
        assert_eq!(judged(Some(1500)).outcome, Outcome::Ok);
        assert_eq!(judged(None).outcome, Outcome::Ok);
        let pulled_down = judged(Some(576));
        assert_eq!(pulled_down.outcome, Outcome::Warning);
        assert!(pulled_down.found.contains("1500 bytes, and only of 576, the guest's"));
        let narrow = judged(Some(9000));
        assert_eq!(narrow.outcome, Outcome::Warning);
        assert!(narrow.found.contains("1500 bytes") && narrow.remedy.contains("net.mtu"));
    }
}
