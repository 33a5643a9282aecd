//! Every way in which a gate can be lost from outside is seen by the next look, and said by its name.

use std::{
    ffi::CString,
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    programs::{
        SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions},
    },
};
use remus::gate::{Gate, HookKind, Lost, Remedy, Settings, Tap};
use rig::permits::long_lease;

use crate::{
    bpf::{Stranger, detach_link},
    gate::{TERM, begun, committed, opened, release_all},
    hook::{kinds, with_clsact, with_tcx},
    wire::{Offloads, Wire, ifindex, number_in, numbered, open_tap_with},
};

const TAP: &str = "guest0";

/// A gate that holds, and finds itself well.
pub(crate) fn holding(wire: &Wire, kind: HookKind) -> Gate {
    let mut gate = begun(
        Gate::install_by(kind, wire.tap.clone(), wire.pins.path(), &Settings::default())
            .expect("install the gate"),
    );
    gate.hold();
    gate.renew_lease(&long_lease(TERM));
    gate.verify().expect("a new gate is well");
    gate
}

/// Does `harm` to a fresh gate of every kind that this kernel has, and hands over what the next look finds.
fn lost_by(harm: impl Fn(&mut Wire) + Sync, judge: impl Fn(&Wire, Lost) + Sync) {
    for kind in kinds() {
        lost_by_kind(kind, &harm, &judge);
    }
}

fn lost_by_kind(
    kind: HookKind,
    harm: impl FnOnce(&mut Wire) + Send,
    judge: impl FnOnce(&Wire, Lost) + Send,
) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut wire = Wire::new();
            let gate = holding(&wire, kind);
            harm(&mut wire);
            judge(&wire, gate.verify().expect_err("a lost gate is noticed"));
        });
    });
}

#[test]
fn a_deleted_tap_is_noticed() {
    lost_by(
        |wire| wire.delete_tap(),
        |_, lost| assert_eq!(lost, Lost::Deleted { link: TAP.into() }),
    );
}

#[test]
fn a_recreated_tap_is_noticed() {
    lost_by(
        |wire| wire.recreate_tap(),
        |wire, lost| {
            let (was, now) = (wire.tap.ifindex, ifindex(TAP));
            assert_ne!(was, now);
            assert_eq!(lost, Lost::Recreated { link: TAP.into(), was, now });
        },
    );
}

#[test]
fn a_lost_bpffs_is_noticed() {
    lost_by(
        |wire| unmount(wire.pins.path()),
        |wire, lost| assert_eq!(lost, Lost::PinsUnmounted { path: wire.pins.path().into() }),
    );
}

#[test]
fn each_missing_pin_is_noticed() {
    for kind in kinds() {
        for pin in pins_of(kind) {
            lost_by_kind(
                kind,
                |wire| fs::remove_file(wire.pins.path().join(&pin)).unwrap(),
                |wire, lost| {
                    let path = wire.pins.path().join(&pin);
                    assert_eq!(lost, Lost::PinGone { path });
                },
            );
        }
    }
}

/// The names of everything that a gate pins.
fn pins_of(kind: HookKind) -> Vec<String> {
    let listed = || {
        let wire = Wire::new();
        drop(holding(&wire, kind));
        let pins: Vec<_> = fs::read_dir(wire.pins.path())
            .unwrap()
            .map(|pin| pin.unwrap().file_name().into_string().unwrap())
            // The kernel's own, which every bpffs begins with.
            .filter(|name| !name.ends_with(".debug"))
            .collect();
        assert!(pins.iter().any(|name| name == "hold_program"), "{pins:?}");
        pins
    };
    std::thread::scope(|scope| scope.spawn(listed).join().unwrap())
}

#[test]
fn another_object_in_the_place_of_a_pin_is_noticed() {
    lost_by(
        |wire| {
            let at = |name: &str| wire.pins.path().join(name);
            fs::remove_file(at("flush")).unwrap();
            fs::rename(at("SLOTS"), at("flush")).unwrap();
        },
        |wire, lost| assert_eq!(lost, Lost::PinGone { path: wire.pins.path().join("flush") }),
    );
}

#[test]
fn a_program_put_in_front_is_noticed() {
    with_tcx(|kind| {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        let stranger = Stranger::TcxIngress.attach(wire.tap.ifindex);
        let lost = gate.verify().unwrap_err();
        assert!(
            matches!(&lost, Lost::Displaced { by, kind, .. } if *by != 0 && kind == "TCX"),
            "{lost}"
        );
        drop(stranger);
        gate.verify().expect("first again");
    });
}

#[test]
fn a_tcx_program_in_front_of_a_filter_is_noticed() {
    with_tcx(|_| {
        let wire = Wire::new();
        let gate = holding(&wire, HookKind::Clsact);
        let _stranger = Stranger::TcxIngress.attach(wire.tap.ifindex);
        assert!(matches!(gate.verify().unwrap_err(), Lost::Displaced { .. }));
    });
}

#[test]
fn an_xdp_program_is_noticed() {
    for kind in kinds() {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        let _stranger = Stranger::Xdp.attach(wire.tap.ifindex);
        assert_eq!(gate.verify(), Err(Lost::XdpInFront { link: TAP.into() }));
    }
}

#[test]
fn a_detached_program_is_noticed() {
    with_tcx(|kind| {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        detach_link(&wire.pins.path().join("hold"));
        let expected = Lost::Detached { link: TAP.into(), program: "hold" };
        assert_eq!(gate.verify(), Err(expected));
    });
}

#[test]
fn a_removed_qdisc_is_noticed() {
    with_clsact(|kind| {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        remove_clsact(wire.tap.ifindex);
        let expected = Lost::QdiscRemoved { link: TAP.into(), program: "hold" };
        assert_eq!(gate.verify(), Err(expected));
    });
}

#[test]
fn a_removed_filter_is_noticed() {
    with_clsact(|kind| {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        aya::programs::tc::qdisc_detach_program(TAP, TcAttachType::Ingress, "hold").unwrap();
        let expected = Lost::Detached { link: TAP.into(), program: "hold" };
        assert_eq!(gate.verify(), Err(expected));
    });
}

#[test]
fn a_filter_put_in_front_is_noticed_and_one_behind_is_not() {
    with_clsact(|kind| {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/gate.o");
        let mut loaded = EbpfLoader::new().load_file(object).unwrap();
        let stranger: &mut SchedClassifier =
            loaded.program_mut("flush").unwrap().try_into().unwrap();
        stranger.load().unwrap();
        let mut attach = |priority| {
            let options = TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
            stranger.attach_with_options(TAP, TcAttachType::Ingress, options).unwrap()
        };
        attach(2);
        gate.verify().expect("what comes after the gate is not its business");
        attach(1);
        let id = stranger.info().unwrap().id();
        let expected =
            Lost::Displaced { link: TAP.into(), program: "hold", by: id, kind: "bpf".into() };
        assert_eq!(gate.verify(), Err(expected));
    });
}

#[test]
fn packet_steering_is_noticed() {
    for (what, value) in [("rps_cpus", "1"), ("rps_flow_cnt", "64")] {
        lost_by(
            |_| {
                let sysfs = Sysfs::mount();
                let file = format!("class/net/{TAP}/queues/rx-0/{what}");
                fs::write(sysfs.0.path().join(file), value).unwrap();
            },
            |_, lost| {
                assert_eq!(lost, Lost::Steered { link: TAP.into(), what, value: value.into() })
            },
        );
    }
}

#[test]
fn napi_mode_is_noticed() {
    lost_by(
        |wire| wire.retake_tap_in_napi_mode(),
        |_, lost| assert_eq!(lost, Lost::Napi { link: TAP.into() }),
    );
}

#[test]
fn a_tap_of_several_queues_gets_no_gate() {
    let wire = Wire::new();
    let _tap = open_tap_with("many0", Offloads::None, libc::IFF_MULTI_QUEUE);
    let tap = Tap { name: "many0".into(), ifindex: ifindex("many0") };
    let refused = Gate::install(tap, wire.pins.path(), &Settings::default()).err().unwrap();
    let expected = Lost::SeveralQueues { link: "many0".into() };
    assert_eq!(refused.downcast_ref(), Some(&expected), "{refused:#}");
}

#[test]
fn a_look_at_a_well_gate_leaves_the_tick_to_the_guest() {
    // What a tick of 10 ms can spare. It takes some 30 us; a fully emulated machine needs 1 ms.
    const LIMIT: Duration = Duration::from_millis(2);
    for kind in kinds() {
        let wire = Wire::new();
        let gate = holding(&wire, kind);
        let mut spans: Vec<_> = (0..1000)
            .map(|_| {
                let begun = Instant::now();
                gate.verify().unwrap();
                begun.elapsed()
            })
            .collect();
        spans.sort();
        let (median, worst) = (spans[500], spans[999]);
        eprintln!("a look at a gate by {kind:?}: median {median:?}, longest {worst:?}");
        assert!(median < LIMIT, "{kind:?}: {median:?}");
    }
}

/// A sysfs of the test's own network namespace.
struct Sysfs(tempfile::TempDir);

impl Sysfs {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: terminated strings that live during the call; sysfs takes no data.
        let result = unsafe {
            libc::mount(c"sysfs".as_ptr(), path.as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null())
        };
        assert_eq!(result, 0, "mount a sysfs: {}", std::io::Error::last_os_error());
        Self(directory)
    }
}

impl Drop for Sysfs {
    fn drop(&mut self) {
        unmount(self.0.path());
    }
}

fn unmount(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a terminated path that lives during the call.
    let result = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    assert_eq!(result, 0, "unmount: {}", std::io::Error::last_os_error());
}

fn remove_clsact(ifindex: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, links, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        let mut removal = links.qdisc().del(i32::try_from(ifindex).unwrap());
        let header = &mut removal.message_mut().header;
        (header.parent, header.handle) = (0xffff_fff1.into(), 0xffff_0000.into());
        removal.execute().await.expect("remove the clsact qdisc");
    });
}

#[test]
fn a_lost_gate_is_put_back_and_holds_in_the_same_term() {
    for kind in kinds() {
        let mut wire = Wire::new();
        let mut gate = holding(&wire, kind);
        gate.seal(&opened(2));
        let before = gate.open_epoch();
        gate.close();
        unmount(wire.pins.path());
        assert_eq!(gate.verify().unwrap_err().remedy(), Remedy::NewGate);
        let mut back = gate.again().expect("put the gate back");
        drop(gate);
        wire.send(&numbered(1));
        back.hold();
        assert_eq!(back.open_epoch(), before, "the same term and epoch");
        back.renew_lease(&long_lease(TERM));
        wire.send(&numbered(2));
        assert!(wire.arrivals().is_empty(), "closed, then held");
        back.seal(&opened(3));
        back.commit(&committed(2));
        release_all(&mut back);
        let out: Vec<_> = wire.arrivals().iter().map(|f| number_in(f)).collect();
        assert_eq!(out, [2]);
        back.verify().expect("well");
    }
}

#[test]
fn a_gate_on_a_tap_that_is_gone_is_not_put_back() {
    let mut wire = Wire::new();
    let mut gate = holding(&wire, HookKind::of_this_kernel().unwrap());
    wire.recreate_tap();
    assert_eq!(gate.verify().unwrap_err().remedy(), Remedy::None);
    assert!(gate.again().is_err());
}
