//! Taps and links, each test in a network namespace of its own that ends with its thread.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use remus::net::{Kind, Link, Links, Mac, Tap, TapSpec, VNET_HEADER_BYTES, tap_alias};

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
    links.ensure_tap(&spec("tap0"), |_| panic!("there is none to adopt")).unwrap()
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
        assert!(error.contains("br0 is not a tap but a bridge"), "{error}");

        let error = links.bridge("br1").unwrap_err().to_string();
        assert!(error.contains("ip link add br1 type bridge"), "{error}");
        let error = links.bridge("lo").unwrap_err().to_string();
        assert!(error.contains("lo is no bridge"), "{error}");
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
