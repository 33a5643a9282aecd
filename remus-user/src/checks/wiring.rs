//! Whether clients reach the guest through this host, now or after a takeover.
//!
//! This is asked before a start, when there is no tap yet, and once a second from then on. The judges are pure: they judge
//! what rtnetlink lists.

use super::{Check, network};
use crate::{
    gate,
    names::LinkName,
    net::{IfIndex, Kind, Link, Links, Mac},
};

/// What the VM needs of this host's network.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) tap: LinkName,
    pub(crate) bridge: Option<LinkName>,
    /// The guest's own address.
    pub(crate) mac: Mac,
    /// The interface by which released frames leave, if they do not come back out of the tap.
    pub(crate) uplink: Option<LinkName>,
}

/// The part that this host plays for the guest when the question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// This host has nothing of the guest yet.
    Start,
    /// This host would run the guest after a takeover; the tap is there, and connected to nothing.
    Waits,
    /// This host runs the guest.
    Speaks,
}

/// Judges the links of this host. `tap` is the tap that the gate guards, once there is one.
pub(crate) fn judge(
    links: &[Link],
    wanted: &Wanted,
    tap: Option<IfIndex>,
    part: Part,
) -> Vec<Check> {
    let mut checks = vec![address(links, wanted)];
    let bridge = wanted.bridge.as_ref().map(|name| (name, by_name(links, name)));
    match (bridge, part) {
        // Before a start, `network` asks for the bridge, with its MTU and its spanning tree.
        (Some((name, bridge)), Part::Waits | Part::Speaks) => {
            checks.push(bridge_is_up(name, bridge));
            checks.extend(bridge.map(|bridge| carrier(links, bridge, tap)));
        }
        (Some((_, Some(bridge))), Part::Start) => checks.push(carrier(links, bridge, tap)),
        (Some((_, None)), Part::Start) | (None, _) => {}
    }
    if part == Part::Waits
        && let Some((name, Some(bridge))) = bridge
        && let Some(tap) = links.iter().find(|link| Some(link.index) == tap)
    {
        checks.extend(network::judge_mtu(name, bridge.mtu_bytes, tap.mtu_bytes));
    }
    if part == Part::Speaks {
        let tap = links.iter().find(|link| Some(link.index) == tap);
        checks.extend(tap.map(|tap| connection(tap, bridge)));
    }
    checks.extend(wanted.uplink.as_ref().map(|name| uplink(links, wanted, name)));
    checks
}

/// Looks at the links of this host, and judges them before the VM starts.
pub(crate) fn before_start(wanted: &Wanted) -> Vec<Check> {
    let mut checks = match Links::open().and_then(|links| links.all()) {
        Ok(links) => judge(&links, wanted, None, Part::Start),
        Err(e) => vec![no_links(&e)],
    };
    checks.extend(wanted.bridge.is_some().then(forwarding));
    checks
}

/// Checks whether a takeover could serve anybody by `bridge`, before it is known which VM that would be of.
pub(crate) fn carrier_before_start(bridge: &LinkName) -> Check {
    match Links::open().and_then(|links| links.all()) {
        Ok(links) => match by_name(&links, bridge) {
            Some(bridge) => carrier(&links, bridge, None),
            // Another check refuses this.
            None => Check::ok("carrier", format!("{bridge} is not there yet")),
        },
        Err(e) => no_links(&e),
    }
}

pub(crate) fn no_links(error: &anyhow::Error) -> Check {
    Check::refused("links", format!("{error:#}"), "use a kernel with rtnetlink; see the kernel log")
}

/// Checks whether netfilter lets bridged packets pass. An error counts as yes: a kernel without nf_tables drops nothing
/// by it.
pub(crate) fn forwarding() -> Check {
    const NAME: &str = "forwarding";
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let is_asked = std::fs::read_to_string(SWITCH).is_ok_and(|text| text.trim() == "1");
    match is_asked.then(gate::forward_policy_drop).flatten() {
        None => Check::ok(NAME, "netfilter does not drop bridged packets by default"),
        Some(chain) => Check::warning(
            NAME,
            format!(
                "netfilter drops forwarded packets ({chain}), and bridged packets go through netfilter \
                 (net.bridge.bridge-nf-call-iptables = 1): clients may not reach the guest"
            ),
            "accept bridged packets (iptables -I FORWARD -m physdev --physdev-is-bridged -j ACCEPT), or keep them out of \
             netfilter (sysctl net.bridge.bridge-nf-call-iptables=0)",
        ),
    }
}

fn by_name<'a>(links: &'a [Link], name: &LinkName) -> Option<&'a Link> {
    links.iter().find(|link| link.name == name.as_str())
}

fn bridge_is_up(name: &LinkName, bridge: Option<&Link>) -> Check {
    const NAME: &str = "bridge";
    match bridge {
        Some(Link { kind: Kind::Bridge { .. }, up: true, .. }) => Check::ok(NAME, name.to_string()),
        Some(Link { kind: Kind::Bridge { .. }, .. }) => {
            Check::refused(NAME, format!("{name} is down"), format!("ip link set {name} up"))
        }
        Some(Link { kind, .. }) => Check::refused(
            NAME,
            format!("{name} is a {kind}, not a bridge"),
            "name another bridge, or make one by that name",
        ),
        None => Check::refused(
            NAME,
            format!("the bridge {name} is not there"),
            format!("make it: ip link add {name} type bridge; ip link set {name} up"),
        ),
    }
}

/// Refuses a bridge with ports of which none leads anywhere. A bridge without any other port may be meant so: the host
/// routes.
fn carrier(links: &[Link], bridge: &Link, tap: Option<IfIndex>) -> Check {
    const NAME: &str = "carrier";
    let is_cable = |link: &&Link| {
        link.controller == Some(bridge.index)
            && Some(link.index) != tap
            && !matches!(link.kind, Kind::Tap { .. })
    };
    let mut cables = links.iter().filter(is_cable).peekable();
    if cables.peek().is_none() {
        return Check::ok(NAME, format!("{} has no other ports", bridge.name));
    }
    match cables.find(|link| link.carrier) {
        Some(link) => Check::ok(NAME, format!("{} is reached by {}", bridge.name, link.name)),
        None => Check::refused(
            NAME,
            format!(
                "no port of {} has carrier: nobody outside of this host reaches the guest",
                bridge.name
            ),
            "check the cable, the switch and `ip link`",
        ),
    }
}

fn connection(tap: &Link, bridge: Option<(&LinkName, Option<&Link>)>) -> Check {
    const NAME: &str = "connection";
    if !tap.up {
        let found = format!("{} is down: nothing reaches the guest", tap.name);
        return Check::refused(NAME, found, format!("ip link set {} up", tap.name));
    }
    match bridge {
        Some((name, bridge)) if bridge.is_none_or(|it| tap.controller != Some(it.index)) => {
            Check::refused(
                NAME,
                format!("{} is not in {name}: nothing reaches the guest", tap.name),
                format!("ip link set {} master {name}", tap.name),
            )
        }
        Some((name, _)) if tap.held_back => Check::refused(
            NAME,
            format!(
                "the spanning tree of {name} holds {} back: nothing reaches the guest until the forward delay is over",
                tap.name
            ),
            format!(
                "wait, or switch it off and put the tap in again: ip link set {name} type bridge stp_state 0; ip link set \
                 {tap} nomaster; ip link set {tap} master {name}",
                tap = tap.name
            ),
        ),
        Some((name, _)) => Check::ok(NAME, format!("{} in {name}", tap.name)),
        None => Check::ok(NAME, format!("{} is up", tap.name)),
    }
}

/// Checks that nobody else has the guest's address: a bridge keeps for the host what is for an address of its own, and
/// of two guests with one address it serves the one that spoke last.
fn address(links: &[Link], wanted: &Wanted) -> Check {
    const NAME: &str = "address";
    let Wanted { tap, mac, .. } = wanted;
    let remedy = "give the guest another address: net.mac";
    let others = || links.iter().filter(|link| link.name != tap.as_str());
    if let Some(link) = others().find(|link| link.mac == Some(*mac)) {
        let found = format!(
            "{mac} is the guest's address and also that of {}, which takes what is for the guest",
            link.name
        );
        return Check::refused(NAME, found, remedy);
    }
    let is_other_guests =
        |link: &&Link| matches!(link.kind, Kind::Tap { .. }) && link.mac == Some(mac.host_side());
    if let Some(link) = others().find(is_other_guests) {
        let found =
            format!("another guest of this host, behind {}, has the address {mac} too", link.name);
        return Check::refused(NAME, found, remedy);
    }
    Check::ok(NAME, mac.to_string())
}

fn uplink(links: &[Link], wanted: &Wanted, name: &LinkName) -> Check {
    const NAME: &str = "uplink";
    let refused = |found: String, remedy: &str| Check::refused(NAME, found, remedy);
    let another =
        "name the interface by which the guest's clients are reached: gate.release.uplink";
    if *name == wanted.tap {
        return refused(format!("{name} is the guest's own tap"), another);
    }
    match by_name(links, name) {
        _ if name.as_str() == "lo" => refused("lo leads back to this host".to_owned(), another),
        None => refused(format!("{name} is not there"), another),
        Some(Link { kind: Kind::Bridge { .. }, .. }) => {
            refused(format!("{name} is a bridge, and frames leave it by several ports"), another)
        }
        Some(Link { up: false, .. }) => {
            refused(format!("{name} is down"), &format!("ip link set {name} up"))
        }
        Some(Link { carrier: false, .. }) => {
            refused(format!("{name} has no carrier"), "check the cable, the switch and `ip link`")
        }
        Some(_) => Check::ok(NAME, name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 0x0a]);

    fn link(index: u32, name: &str, kind: Kind) -> Link {
        Link {
            index: IfIndex(index),
            name: name.to_owned(),
            kind,
            up: true,
            carrier: true,
            held_back: false,
            controller: None,
            mac: Some(Mac([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
            mtu_bytes: 1500,
            alias: None,
        }
    }

    fn tap(index: u32, name: &str) -> Link {
        let kind = Kind::Tap { multi_queue: false, persistent: true, owner_uid: None };
        Link { controller: Some(IfIndex(2)), ..link(index, name, kind) }
    }

    /// br0 with eth0 and tap0 in it.
    fn host() -> [Link; 3] {
        let bridge = link(2, "br0", Kind::Bridge { spanning_tree: false });
        let cable = link(3, "eth0", Kind::Other("veth".to_owned()));
        [bridge, Link { controller: Some(IfIndex(2)), ..cable }, tap(4, "tap0")]
    }

    fn name(name: &str) -> LinkName {
        LinkName::new(name).unwrap()
    }

    fn wanted() -> Wanted {
        Wanted { tap: name("tap0"), bridge: Some(name("br0")), mac: MAC, uplink: None }
    }

    fn refusals(links: &[Link], wanted: &Wanted, part: Part) -> Vec<String> {
        let checks = judge(links, wanted, Some(IfIndex(4)), part);
        let refused = checks.into_iter().filter(|check| check.outcome == Outcome::Refused);
        refused.map(|check| check.found).collect()
    }

    #[test]
    fn a_host_as_it_should_be_is_not_doubted() {
        for part in [Part::Start, Part::Waits, Part::Speaks] {
            assert_eq!(refusals(&host(), &wanted(), part), [""; 0]);
        }
    }

    #[test]
    fn what_keeps_clients_from_the_guest_is_told_in_words() {
        let says = |change: fn(&mut [Link; 3])| {
            let mut links = host();
            change(&mut links);
            refusals(&links, &wanted(), Part::Speaks).join("; ")
        };
        assert!(says(|links| links[2].up = false).contains("tap0 is down"));
        assert!(says(|links| links[2].controller = None).contains("tap0 is not in br0"));
        assert!(says(|links| links[2].held_back = true).contains("holds tap0 back"));
        assert!(says(|links| links[0].up = false).contains("br0 is down"));
        assert!(says(|links| links[1].carrier = false).contains("no port of br0 has carrier"));
        assert!(says(|links| links[0].name.push('9')).contains("the bridge br0 is not there"));
        assert!(says(|links| links[0].mac = Some(MAC)).contains("that of br0"));
        assert!(says(|links| links[0].index = IfIndex(9)).contains("tap0 is not in br0"));
    }

    #[test]
    fn two_guests_of_one_address_are_told() {
        let mut links = host().to_vec();
        links.push(Link { mac: Some(MAC.host_side()), ..tap(5, "tap1") });
        let told = refusals(&links, &wanted(), Part::Waits);
        assert!(told[0].contains("behind tap1"), "{told:?}");
    }

    #[test]
    fn a_backups_tap_need_not_be_connected() {
        let mut links = host();
        (links[2].up, links[2].controller) = (false, None);
        assert_eq!(refusals(&links, &wanted(), Part::Waits), [""; 0]);
    }

    #[test]
    fn a_backup_warns_of_a_takeover_that_would_pull_the_bridges_mtu_down() {
        let mut links = host();
        links[0].mtu_bytes = 9000;
        let warnings = |part| {
            let checks = judge(&links, &wanted(), Some(IfIndex(4)), part);
            let told = checks.into_iter().filter(|check| check.outcome == Outcome::Warning);
            told.map(|check| check.found).collect::<Vec<_>>()
        };
        let told = warnings(Part::Waits);
        assert!(told.len() == 1 && told[0].contains("only of 1500"), "{told:?}");
        assert_eq!(warnings(Part::Speaks), [""; 0], "by then it is done");
    }

    #[test]
    fn an_uplink_leads_out() {
        for (uplink, says) in [
            ("tap0", "the guest's own tap"),
            ("lo", "leads back"),
            ("eth9", "is not there"),
            ("br0", "is a bridge"),
        ] {
            let wanted = Wanted { uplink: Some(name(uplink)), ..wanted() };
            let told = refusals(&host(), &wanted, Part::Start);
            assert!(told.len() == 1 && told[0].contains(says), "{told:?}");
        }
    }
}
