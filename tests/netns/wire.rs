//! A guest's tap and the outside world, joined by a bridge, in a network and mount namespace of its own.
//!
//! The test holds both ends: it writes frames as a VMM does, and reads what leaves the bridge at the other side.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd},
    time::{Duration, Instant},
};

use netlink_packet_route::link::LinkAttribute;
use remus::gate::Tap;
use rtnetlink::{LinkBridge, LinkUnspec};

/// The guest's address, source of every frame that a test sends.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x0a];

/// Of every link here.
const MTU: u32 = 9000;

pub(crate) struct Wire {
    guest: File,
    outside: File,
    offloads: Offloads,
    others: Vec<File>,
    pub(crate) tap: Tap,
    pub(crate) pins: tempfile::TempDir,
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The gate's bpffs lies on the directory and would keep it from being removed.
        let path = std::ffi::CString::new(self.pins.path().as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a terminated path that lives during the call. No mount there is as good.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

impl Wire {
    /// Moves the calling thread into namespaces of its own for good: each test runs in a thread of its own.
    pub(crate) fn new() -> Self {
        Self::with(Offloads::None)
    }

    /// Frames at both ends have the header of virtio-net before them, and may be large and without a checksum.
    pub(crate) fn with_offloads() -> Self {
        Self::with(Offloads::All)
    }

    fn with(offloads: Offloads) -> Self {
        enter_namespaces();
        let guest = open_tap("guest0", offloads);
        let outside = open_tap("outside0", offloads);
        // Neighbour discovery of the host's own stack is not what the tests look at.
        for scope in ["default", "all"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")
                .expect("turn IPv6 off here");
        }
        let (guest_index, outside_index) = (ifindex("guest0"), ifindex("outside0"));
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
            async {
                let (connection, links, _) = rtnetlink::new_connection().expect("netlink");
                tokio::spawn(connection);
                links
                    .link()
                    .add(LinkBridge::new("br0").build())
                    .execute()
                    .await
                    .expect("make a bridge");
                // The tests' payloads are not valid IP; netfilter, where it looks at bridged frames, drops such.
                for table in ["iptables", "ip6tables"] {
                    let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
                    if fs::exists(&switch).unwrap() {
                        fs::write(switch, "0").expect("keep netfilter off the bridge here");
                    }
                }
                let bridge = ifindex("br0");
                for index in [guest_index, outside_index] {
                    let joined =
                        LinkUnspec::new_with_index(index).controller(bridge).mtu(MTU).up().build();
                    links.link().set(joined).execute().await.expect("join the bridge");
                    // What arrives outside waits there, however much, until the test reads it. Linux 6.1 takes
                    // fewer frames.
                    let mut waits = Ok(());
                    for frames in [1 << 18, 1 << 17, 1 << 16, 1 << 15, 1 << 14] {
                        let queue = LinkUnspec::new_with_index(index)
                            .append_extra_attribute(LinkAttribute::TxQueueLen(frames));
                        waits = links.link().set(queue.build()).execute().await;
                        if waits.is_ok() {
                            break;
                        }
                    }
                    waits.expect("make the queue of the tap long");
                }
                let up = LinkUnspec::new_with_index(bridge).mtu(MTU).up().build();
                links.link().set(up).execute().await.expect("raise the bridge");
            },
        );
        let tap = Tap { name: "guest0".to_owned(), ifindex: guest_index };
        Self {
            others: Vec::new(),
            guest,
            outside,
            offloads,
            tap,
            pins: tempfile::tempdir().unwrap(),
        }
    }

    /// The guest sends `frame`.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.guest.write_all(frame).expect("write to the guest's tap");
    }

    /// What arrives outside until nothing has come for 30 ms.
    pub(crate) fn arrivals(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut last = Instant::now();
        let mut buffer = vec![0; 1 << 17];
        let header = self.offloads.header();
        while last.elapsed() < Duration::from_millis(30) {
            match self.outside.read(&mut buffer) {
                Ok(n) => {
                    if buffer[header..][6..12] == GUEST_MAC {
                        frames.push(buffer[..n].to_vec());
                    }
                    last = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(200))
                }
                Err(e) => panic!("read outside: {e}"),
            }
        }
        frames
    }

    /// The link by which frames leave the bridge.
    pub(crate) fn uplink(&self) -> &'static str {
        "outside0"
    }

    pub(crate) fn uplink_index(&self) -> u32 {
        ifindex(self.uplink())
    }

    /// The index of the guest's tap now.
    pub(crate) fn tap_index(&self) -> u32 {
        ifindex(&self.tap.name)
    }

    /// A tap of another guest, down and in no bridge; it lasts as long as the wire.
    pub(crate) fn another_tap(&mut self, name: &str) -> Tap {
        self.others.push(open_tap(name, self.offloads));
        Tap { name: name.to_owned(), ifindex: ifindex(name) }
    }

    /// Deletes the guest's tap.
    pub(crate) fn delete_tap(&mut self) {
        self.guest = open_dev_null();
    }

    /// Gives the host an address on the bridge: the MAC address that it has there.
    pub(crate) fn host_on_bridge(&self, address: Ipv4Addr) -> [u8; 6] {
        give_address("br0", address)
    }

    /// Takes the guest's tap out of the bridge and gives the host an address on it: the MAC address that it has there.
    pub(crate) fn host_on_tap(&self, address: Ipv4Addr) -> [u8; 6] {
        let index = self.tap.ifindex;
        with_links(async |links| {
            let free = LinkUnspec::new_with_index(index).nocontroller().build();
            links.link().set(free).execute().await.expect("leave the bridge");
        });
        give_address(&self.tap.name, address)
    }

    /// Deletes the guest's tap and makes another of the same name.
    pub(crate) fn recreate_tap(&mut self) {
        self.delete_tap();
        self.guest = open_tap("guest0", self.offloads);
    }

    /// The VMM lets go of the tap, which stays, and takes it again in NAPI mode.
    pub(crate) fn retake_tap_in_napi_mode(&mut self) {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let kept = unsafe { libc::ioctl(self.guest.as_raw_fd(), libc::TUNSETPERSIST, 1) };
        assert_eq!(kept, 0, "keep the tap: {}", std::io::Error::last_os_error());
        self.guest = open_dev_null();
        self.guest = open_tap_with("guest0", self.offloads, libc::IFF_NAPI);
    }
}

/// What the ends of the wire leave to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offloads {
    None,
    All,
}

impl Offloads {
    /// Bytes before each frame.
    fn header(self) -> usize {
        match self {
            Self::None => 0,
            Self::All => VIRTIO_NET_HEADER,
        }
    }

    fn flags(self) -> i16 {
        let header = match self {
            Self::None => 0,
            Self::All => libc::IFF_VNET_HDR,
        };
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | header).unwrap()
    }

    /// Takes what the other end offers: large frames of TCP over IPv4 and IPv6, checksums still to be filled in.
    fn accept(self, tap: &File) {
        let accepted = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        if self == Self::All {
            // SAFETY: TUNSETOFFLOAD takes a number.
            let result = unsafe {
                libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(accepted))
            };
            assert_eq!(result, 0, "set offloads: {}", std::io::Error::last_os_error());
        }
    }
}

/// Bytes of the header of virtio-net, as a tap has it.
pub(crate) const VIRTIO_NET_HEADER: usize = 10;

/// A broadcast frame of the experimental ethertype that carries `number`.
pub(crate) fn numbered(number: u32) -> Vec<u8> {
    frame(0x88b5, &number.to_be_bytes())
}

/// The same with so many bytes of payload.
pub(crate) fn numbered_long(number: u32, payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; payload];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    frame(0x88b5, &bytes)
}

/// A broadcast frame from the guest, padded to the shortest length that Ethernet has.
pub(crate) fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(GUEST_MAC);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The number in a frame of [`numbered`].
pub(crate) fn number_in(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

fn enter_namespaces() {
    // SAFETY: concerns this thread alone.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "namespaces of its own need root: {}", std::io::Error::last_os_error());
    // SAFETY: terminated strings; makes mounts of this namespace its own.
    let result = unsafe {
        libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "private mounts: {}", std::io::Error::last_os_error());
}

fn open_tap(name: &str, offloads: Offloads) -> File {
    open_tap_with(name, offloads, 0)
}

/// Opens a tap with more flags than it always has.
pub(crate) fn open_tap_with(name: &str, offloads: Offloads, flags: libc::c_int) -> File {
    // SAFETY: a terminated path; the descriptor is checked and owned by the File.
    let tap = unsafe {
        let fd =
            libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK);
        assert!(fd >= 0, "open /dev/net/tun: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    };
    // SAFETY: ifreq is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::c_short::try_from(flags).expect("flags of a tap");
    request.ifr_ifru.ifru_flags = offloads.flags() | flags;
    // SAFETY: TUNSETIFF reads an ifreq that lives during the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(result, 0, "make tap {name}: {}", std::io::Error::last_os_error());
    offloads.accept(&tap);
    tap
}

fn give_address(link: &str, address: Ipv4Addr) -> [u8; 6] {
    let index = ifindex(link);
    with_links(async |links| {
        let add = links.address().add(index, address.into(), 24);
        add.execute().await.expect("add an address");
    });
    mac_of(link)
}

/// Runs `body` on a connection to the links of this thread's namespace.
fn with_links(body: impl AsyncFnOnce(rtnetlink::Handle)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, links, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        body(links).await;
    });
}

fn mac_of(link: &str) -> [u8; 6] {
    // SAFETY: ifreq is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed();
    }
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // SAFETY: SIOCGIFHWADDR fills an ifreq that lives during the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    assert_eq!(result, 0, "address of {link}: {}", std::io::Error::last_os_error());
    // SAFETY: the member that SIOCGIFHWADDR has just filled.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    std::array::from_fn(|n| address[n].cast_unsigned())
}

fn open_dev_null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

pub(crate) fn ifindex(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no interface {name:?}");
    index
}
