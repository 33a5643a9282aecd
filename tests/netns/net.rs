//! Taps and links, each test in a network namespace of its own that ends with its thread.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use remus::net::{
    IfIndex, Kind, Link, Links, Mac, Overheard, Tap, TapSpec, VNET_HEADER_BYTES, tap_alias,
};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 0x0a]);

/// Runs `test` on a thread that has left for an empty network namespace.
fn in_namespace(test: impl FnOnce(&Links) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: unshare(2) takes a flag; it moves only this thread.
            let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(left, 0, "these tests need root: {}", std::io::Error::last_os_error());
            test(&Links::open().unwrap());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn spec(name: &str) -> TapSpec<'_> {
    TapSpec { name, guest_mac: MAC, mtu_bytes: 1500, vm: "demo" }
}

fn new_tap(links: &Links) -> Tap {
    let tap = links.ensure_tap(&spec("tap0"), |_| panic!("there is none to adopt")).unwrap();
    tap.persist().unwrap();
    tap
}

fn find(links: &Links, name: &str) -> Link {
    links.find(name).unwrap().unwrap_or_else(|| panic!("no {name}"))
}

/// Runs iproute2 in this thread's namespace.
fn ip(arguments: &str) {
    let mut command = std::process::Command::new("ip");
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn file(fd: OwnedFd) -> File {
    File::from(fd)
}

#[test]
fn a_new_tap_is_down_unbridged_persistent_and_silent() {
    in_namespace(|links| {
        let tap = new_tap(links);
        let link = find(links, "tap0");
        assert!(!tap.adopted && !link.up && link.controller.is_none());
        assert_eq!((link.index, link.mtu_bytes), (tap.index, 1500));
        assert_eq!(link.mac, Some(MAC.host_side()));
        assert_eq!(link.alias.as_deref(), Some(tap_alias("demo").as_str()));
        assert!(matches!(link.kind, Kind::Tap { multi_queue: false, persistent: true, .. }));
        let ipv6 = fs::read_to_string("/proc/sys/net/ipv6/conf/tap0/disable_ipv6").unwrap();
        assert_eq!(ipv6.trim(), "1");

        // Up and with somebody to talk to, the host still says nothing of its own.
        links.up(tap.index).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let error = file(tap.fd).read(&mut [0; 2048]).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "non-blocking, and nothing to read"
        );
    });
}

#[test]
fn a_tap_outlives_its_process_and_is_adopted_down_and_unbridged() {
    in_namespace(|links| {
        ip("link add br0 type bridge");
        let bridge = links.bridge("br0").unwrap();
        let first = new_tap(links);
        let index = first.index;
        links.join(index, bridge.index).unwrap();
        links.up(index).unwrap();
        drop(first);
        assert!(find(links, "tap0").up, "it stays as it was");

        let mut asked = None;
        let again = links
            .ensure_tap(&spec("tap0"), |found| {
                asked = Some(found.clone());
                true
            })
            .unwrap();
        assert!(again.adopted);
        assert_eq!(again.index, index);
        let seen = asked.expect("the caller decides");
        assert_eq!((seen.index, seen.controller), (index, Some(bridge.index)));
        let link = find(links, "tap0");
        assert!(!link.up && link.controller.is_none());
    });
}

#[test]
fn somebody_elses_tap_is_left_alone_and_named() {
    in_namespace(|links| {
        ip("tuntap add lab0 mode tap user 1234");
        ip("link set lab0 alias lab");
        let error = links.ensure_tap(&spec("lab0"), |_| false).unwrap_err().to_string();
        assert!(error.starts_with("tap lab0 is somebody else's: link "), "{error}");
        assert!(error.contains("alias \"lab\", owned by uid 1234, open in no process"), "{error}");
        assert!(error.contains("ip link delete lab0"), "{error}");
        assert_eq!(find(links, "lab0").alias.as_deref(), Some("lab"));
    });
}

#[test]
fn a_tap_in_use_names_the_process_that_has_it() {
    in_namespace(|links| {
        let held = new_tap(links);
        let error = format!("{:#}", links.ensure_tap(&spec("tap0"), |_| true).unwrap_err());
        let expected = format!("tap tap0 is open in process {}", std::process::id());
        assert!(error.contains(&expected), "{error}");
        drop(held);
    });
}

#[test]
fn links_that_the_gate_cannot_guard_are_refused() {
    in_namespace(|links| {
        ip("tuntap add many mode tap multi_queue");
        let error = links.ensure_tap(&spec("many"), |_| true).unwrap_err().to_string();
        assert!(error.contains("several queues"), "{error}");

        ip("link add br0 type bridge");
        let error = links.ensure_tap(&spec("br0"), |_| true).unwrap_err().to_string();
        assert!(error.contains("br0 is a bridge, not a tap"), "{error}");

        let error = links.bridge("br1").unwrap_err().to_string();
        assert!(error.contains("ip link add br1 type bridge"), "{error}");
        let error = links.bridge("lo").unwrap_err().to_string();
        assert!(error.contains("lo is a loopback link, not a bridge"), "{error}");
    });
}

#[test]
fn a_tap_with_receive_packet_steering_is_refused() {
    in_namespace(|links| {
        ip("tuntap add tap0 mode tap");
        // A sysfs of this namespace, mounted where only this thread sees it.
        // SAFETY: unshare(2) moves only this thread to a mount namespace of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        let mounted = std::process::Command::new("sh")
            .args([
                "-c",
                "mount --make-rprivate / && mount -t sysfs remus /sys && \
                   echo 2 >/sys/class/net/tap0/queues/rx-0/rps_cpus",
            ])
            .status()
            .unwrap();
        assert!(mounted.success());
        let error = links.ensure_tap(&spec("tap0"), |_| true).unwrap_err().to_string();
        assert!(error.contains("receive packet steering on (rps_cpus = "), "{error}");
    });
}

#[test]
fn a_tap_without_a_gate_goes_with_its_process() {
    in_namespace(|links| {
        let tap = links.ensure_tap(&spec("tap0"), |_| panic!("there is none to adopt")).unwrap();
        assert!(matches!(find(links, "tap0").kind, Kind::Tap { persistent: false, .. }));
        drop(tap);
        assert_eq!(links.find("tap0").unwrap(), None);
    });
}

#[test]
fn a_tap_that_cannot_be_finished_is_not_left_behind() {
    in_namespace(|links| {
        let impossible = TapSpec { mtu_bytes: 10, ..spec("tap0") };
        let error = format!("{:#}", links.ensure_tap(&impossible, |_| true).unwrap_err());
        assert!(error.contains("MTU"), "{error}");
        assert_eq!(links.find("tap0").unwrap(), None);
    });
}

#[test]
fn a_tap_joins_leaves_and_goes() {
    in_namespace(|links| {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let bridge = links.bridge("br0").unwrap();
        assert_eq!(bridge.kind, Kind::Bridge { spanning_tree: false });
        let tap = new_tap(links);
        links.join(tap.index, bridge.index).unwrap();
        links.up(tap.index).unwrap();
        let joined = find(links, "tap0");
        assert!(joined.up && joined.controller == Some(bridge.index));
        links.leave(tap.index).unwrap();
        links.leave(tap.index).unwrap();
        assert_eq!(links.at(tap.index).unwrap().unwrap().controller, None);
        links.delete(tap.index).unwrap();
        links.delete(tap.index).unwrap();
        assert_eq!(links.at(tap.index).unwrap(), None);
        assert!(links.up(tap.index).is_err());
    });
}

#[test]
fn frames_cross_a_bridge_as_soon_as_the_tap_is_joined_and_up() {
    in_namespace(|links| {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let bridge = links.bridge("br0").unwrap().index;
        let [a, b] = ["tap0", "tap1"].map(|name| {
            let guest_mac = Mac([2, 0, 0, 0, 0, name.as_bytes()[3]]);
            links.ensure_tap(&TapSpec { guest_mac, ..spec(name) }, |_| false).unwrap()
        });
        let started = Instant::now();
        for tap in [&a, &b] {
            links.join(tap.index, bridge).unwrap();
            links.up(tap.index).unwrap();
        }
        let took = started.elapsed();
        // The time itself is a claim of the rig's report; this bound only says that nothing waits.
        assert!(took < Duration::from_millis(500), "{took:?}");

        let mut frame = vec![0; VNET_HEADER_BYTES];
        frame.extend([0xff; 6]);
        frame.extend([2, 0, 0, 0, 0, b'0', 0x88, 0xb5]);
        frame.resize(VNET_HEADER_BYTES + 60, 0x5a);
        let (mut a, mut b) = (file(a.fd), file(b.fd));
        a.write_all(&frame).unwrap();
        let mut poll = libc::pollfd { fd: b.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: poll(2) over one valid pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 2000) }, 1, "the frame arrives");
        let mut got = [0; 2048];
        let n = b.read(&mut got).unwrap();
        assert_eq!(got[VNET_HEADER_BYTES..n], frame[VNET_HEADER_BYTES..]);
    });
}

/// A frame of 60 bytes: addresses, type, and a number in its payload.
fn frame_to(to: [u8; 6], from: [u8; 6], ethertype: u16, number: u8) -> [u8; 60] {
    let mut frame = [number; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

#[test]
fn a_host_without_the_guest_overhears_what_is_for_it_and_nothing_else() {
    in_namespace(|links| {
        ip("link add br0 type bridge");
        let bridge = links.bridge("br0").unwrap().index;
        assert_eq!(links.ports(bridge).unwrap(), []);
        // Far ends by which frames come in, as from a switch.
        let wires = ["p0", "p1"].map(|name| {
            ip(&format!("link add {name} type veth peer name far-{name}"));
            ip(&format!("link set {name} master br0 up"));
            ip(&format!("link set far-{name} up"));
            PacketSocket::at(find(links, &format!("far-{name}")).index)
        });
        let ports = links.ports(bridge).unwrap();
        assert_eq!(ports, ["p0", "p1"].map(|name| find(links, name).index));
        let mut overheard = Overheard::listen(&ports, MAC).unwrap();
        assert!(overheard.is_at(&ports) && !overheard.is_at(&ports[..1]));
        let numbers = |overheard: &mut Overheard| {
            let number = |frame: &[u8]| {
                assert_eq!(frame.len(), VNET_HEADER_BYTES + 60);
                assert_eq!(frame[..VNET_HEADER_BYTES], [0; VNET_HEADER_BYTES]);
                frame[VNET_HEADER_BYTES + 59]
            };
            overheard.take().iter().map(|frame| number(frame)).collect::<Vec<_>>()
        };

        let (guest, other, all) = (MAC.0, [2, 0, 0, 0, 0, 9], [0xff; 6]);
        let solicited = [0x33, 0x33, 0xff, 1, 2, 3];
        let mut near = guest;
        near[5] ^= 1;
        for (number, (to, from, ethertype)) in (0..).zip([
            (guest, other, 0x0800),
            (near, other, 0x0800),
            (all, other, 0x0806),
            (all, other, 0x0800),
            // Its own, as a switch floods it.
            (all, guest, 0x0806),
            (guest, near, 0x86dd),
            (solicited, other, 0x86dd),
            ([0x33, 0x33, 0, 0, 0, 1], other, 0x86dd),
        ]) {
            wires[usize::from(number % 2)].send(&frame_to(to, from, ethertype, number));
        }
        // Tagged: the tag is no part of what a packet socket gets.
        let mut tagged = frame_to(guest, other, 0x8100, 7);
        tagged[14..18].copy_from_slice(&[0, 5, 8, 0]);
        wires[0].send(&tagged);
        assert_eq!(numbers(&mut overheard), [0, 2, 6, 5], "port by port");
        assert!(numbers(&mut overheard).is_empty());

        // What leaves by a port is not what comes for the guest.
        PacketSocket::at(ports[0]).send(&frame_to(guest, other, 0x0800, 20));
        wires[1].send(&frame_to(guest, other, 0x0800, 21));
        overheard.forget();
        wires[1].send(&frame_to(guest, other, 0x0800, 22));
        assert_eq!(numbers(&mut overheard), [22], "what came before is forgotten");

        // A flood costs memory only so far, and a link that is gone nothing.
        (0..10_000).for_each(|_| wires[0].send(&frame_to(guest, other, 0x0800, 30)));
        let kept = numbers(&mut overheard).len();
        assert!((200..4096).contains(&kept), "{kept}");
        ip("link del p0");
        wires[1].send(&frame_to(guest, other, 0x0800, 31));
        assert_eq!(numbers(&mut overheard), [31]);
        let gone = Overheard::listen(&[ports[0]], MAC).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ENODEV));
    });
}

/// Sends whole frames out of a link.
struct PacketSocket(OwnedFd);

impl PacketSocket {
    fn at(link: IfIndex) -> Self {
        // SAFETY: no pointers; protocol 0 receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: just made, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain integers and bytes, for which zeros are values.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_ifindex = i32::try_from(link.0).unwrap();
        let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
        // SAFETY: a whole sockaddr_ll.
        let bound = unsafe { libc::bind(fd, std::ptr::from_ref(&address).cast(), length) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Self(socket)
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: the kernel reads the frame's bytes.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()));
    }
}
