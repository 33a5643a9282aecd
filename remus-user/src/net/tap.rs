//! The tap whose other end is the guest's network card.
//!
//! The tap is made down and in no bridge: the caller attaches the gate, and only then calls [`Tap::persist`],
//! [`Links::join`] and [`Links::up`]. At no moment can a frame pass ungated. A persistent tap outlives the process that made
//! it, with its gate still attached: a killed controller must leave a shut door, not a missing one. A tap without a gate is
//! not persistent: a process that is killed in between leaves nothing, rather than a tap that no process knows as its own.
//!
//! The gate's ring of slots takes one producer and trusts that a frame is stamped when `write()` returns. So these are
//! refused: several queues, and receive packet steering (RPS) on a tap that existed before. A new tap begins without RPS,
//! whatever `net.core.rps_default_mask` says. NAPI mode is switched off by attaching without its flag.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};
use libc::{c_int, c_ulong};

use super::{
    Mac,
    links::{IfIndex, Kind, Link, Links},
    sysfs,
};

/// Bytes of `struct virtio_net_hdr_v1` before every frame that is read from or written to the tap.
pub const VNET_HEADER_BYTES: usize = 12;

/// The tap that a VM needs.
#[derive(Clone, Debug)]
pub struct TapSpec<'a> {
    pub name: &'a str,
    /// The guest's own address; the tap gets [`Mac::host_side`] of it.
    pub guest_mac: Mac,
    pub mtu_bytes: u32,
    /// The VM's name, which goes into the link's alias for people to read.
    pub vm: &'a str,
}

/// An attached tap: down, in no bridge, and mute until its gate is attached and the tap is set up.
#[derive(Debug)]
pub struct Tap {
    /// The tap's descriptor, non-blocking. Every frame has [`VNET_HEADER_BYTES`] before it.
    pub fd: OwnedFd,
    pub index: IfIndex,
    /// Whether the tap existed before, and the caller knew it as its own.
    pub adopted: bool,
}

impl Tap {
    /// Makes the tap outlive its descriptor. Attach the gate first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn persist(&self) -> Result<()> {
        tun_ioctl(&self.fd, libc::TUNSETPERSIST, 1).context("make the tap persistent")
    }
}

/// Returns the alias of a tap that was made for the VM `vm`. For people, and for a first guess: anybody may write one.
pub fn tap_alias(vm: &str) -> String {
    format!("remus VM {vm}")
}

impl Links {
    /// Makes the tap, or adopts the existing one if `ours` says that it is (a tap that carries our own gate);
    /// `ours` is not asked about a tap that is made here.
    ///
    /// Call it in the network namespace of this [`Links`]. A tap made here goes with its descriptor, until
    /// [`Tap::persist`] is called.
    ///
    /// # Errors
    /// Somebody else's link has the name; another process has the tap open; it has several queues or RPS; or
    /// a call of the kernel fails (no CAP_NET_ADMIN, no /dev/net/tun).
    pub fn ensure_tap(&self, spec: &TapSpec<'_>, ours: impl FnOnce(&Link) -> bool) -> Result<Tap> {
        let before = self.find(spec.name)?;
        if let Some(link) = before.clone() {
            check_adoptable(&link)?;
            if !ours(&link) {
                bail!(
                    "tap {} is somebody else's: {}. Give this VM a tap name of its own (net.tap), or delete that \
                     tap if nobody needs it (ip link delete {})",
                    spec.name,
                    whose(&link),
                    spec.name
                );
            }
        }
        let adopted = before.is_some();
        let file = attach(spec.name, adopted)?;
        let link = self.find(spec.name)?.context("the tap has been deleted meanwhile")?;
        if before.is_some_and(|b| b.index != link.index) {
            bail!("tap {} was replaced by another while it was being adopted", spec.name);
        }
        let index = link.index;
        if adopted {
            // Down first, then out of the bridge: no frame of a stale carrier may find an unbridged, ungated way.
            self.down(index)?;
            self.leave(index)?;
        }
        if !adopted {
            // New links get this by net.core.rps_default_mask. On a tap that existed before, somebody has set it on purpose.
            sysfs::steer_nothing(spec.name)
                .with_context(|| format!("switch receive packet steering of {} off", spec.name))?;
        }
        self.configure(&file, index, spec)?;
        Ok(Tap { fd: file.into(), index, adopted })
    }

    fn configure(&self, file: &File, index: IfIndex, spec: &TapSpec<'_>) -> Result<()> {
        let name = spec.name;
        // Nothing unfinished may reach the guest before its driver has asked for that (0 is no offload): the network
        // device sets the tap to what the driver takes.
        tun_ioctl(file, libc::TUNSETOFFLOAD, 0)
            .with_context(|| format!("switch offloads of {name} off"))?;
        let mut header = c_int::try_from(VNET_HEADER_BYTES).expect("twelve");
        // SAFETY: the fd is an attached tap; the kernel reads one int through a valid pointer.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut header) } != 0 {
            let e = io::Error::last_os_error();
            return Err(e).with_context(|| format!("set the virtio-net header size of {name}"));
        }
        self.describe(index, spec.guest_mac.host_side(), spec.mtu_bytes, &tap_alias(spec.vm))
            .with_context(|| format!("prepare {name}"))?;
        disable_ipv6(name)?;
        sysfs::gro_off(name).with_context(|| format!("switch GRO of {name} off"))?;
        if let Some(mask) = sysfs::receive_packet_steering(name)? {
            bail!(
                "tap {name} has receive packet steering on (rps_cpus = {mask}): frames would pass the gate late. \
                 Write 0 to /sys/class/net/{name}/queues/rx-0/rps_cpus"
            );
        }
        Ok(())
    }
}

/// Returns who has the tap `name` open, in words; `None` when nobody has. The tap is opened for a moment to know.
///
/// # Errors
/// When there is no such tap, or the kernel refuses.
pub fn tap_user(name: &str) -> Result<Option<String>> {
    match attach(name, true) {
        Ok(_) => Ok(None),
        Err(e) if is_busy(&e) => Ok(Some(match holder(name) {
            Some((pid, command)) => format!("process {pid} ({command})"),
            None => "a process of another network namespace".to_owned(),
        })),
        Err(e) => Err(e),
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    let error = error.root_cause().downcast_ref::<io::Error>();
    error.is_some_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn check_adoptable(link: &Link) -> Result<()> {
    match &link.kind {
        Kind::Tap { multi_queue: false, .. } => Ok(()),
        Kind::Tap { multi_queue: true, .. } => Err(anyhow!(
            "tap {} has several queues ({}), and the gate guards one. Use a single-queue tap, or let remus make the \
            tap",
            link.name,
            whose(link)
        )),
        Kind::Bridge { .. } | Kind::Other(_) => Err(anyhow!(
            "{} is a {}, not a tap: give this VM a tap name of its own (net.tap)",
            link.name,
            link.kind
        )),
    }
}

/// Returns what can be said about whose a tap is: its alias, its owner, the process that has it open.
fn whose(link: &Link) -> String {
    let mut says = vec![format!("link {}", link.index)];
    if let Some(alias) = &link.alias {
        says.push(format!("alias \"{}\"", alias.escape_default()));
    }
    if let Kind::Tap { owner_uid: Some(uid), .. } = link.kind {
        says.push(format!("owned by uid {uid}"));
    }
    match holder(&link.name) {
        Some((pid, command)) => says.push(format!("open in process {pid} ({command})")),
        None => says.push("open in no process".into()),
    }
    says.join(", ")
}

/// Returns a process of this network namespace that has the tap `name` open. Only for messages: best effort.
fn holder(name: &str) -> Option<(u32, String)> {
    let namespace = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let here = |thread: &Path| fs::read_link(thread.join("ns/net")).is_ok_and(|n| n == namespace);
    let wanted = format!("iff:\t{name}");
    let holds = |fdinfo: &Path| {
        fs::read_to_string(fdinfo).is_ok_and(|text| text.lines().any(|line| line == wanted))
    };
    let any = |directory: &Path, is: &dyn Fn(&Path) -> bool| {
        fs::read_dir(directory).is_ok_and(|all| all.flatten().any(|entry| is(&entry.path())))
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let path = entry.path();
        let found = any(&path.join("task"), &here) && any(&path.join("fdinfo"), &holds);
        let command = found.then(|| fs::read_to_string(path.join("comm")).unwrap_or_default())?;
        Some((pid, command.trim().to_owned()))
    })
}

/// Opens /dev/net/tun and attaches to the tap `name`: an existing one, or else a new one and no other.
fn attach(name: &str, existing: bool) -> Result<File> {
    // With this flag the call refuses a tap that was made since this process looked.
    const IFF_TUN_EXCL: c_int = 0x8000;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .context(
            "open /dev/net/tun (is the tun driver loaded, and may this user open the device?)",
        )?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if !existing {
        flags |= IFF_TUN_EXCL;
    }
    let mut request = sysfs::ifreq(name)?;
    // The field is a short; 0x8000 sets its sign bit.
    request.ifr_ifru.ifru_flags =
        i16::from_ne_bytes(u16::try_from(flags).expect("flags of 16 bits").to_ne_bytes());
    // SAFETY: the fd is /dev/net/tun; `request` is a whole ifreq, which the kernel reads and writes.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } == 0 {
        return Ok(file);
    }
    let error = io::Error::last_os_error();
    let why = match error.raw_os_error() {
        Some(libc::EBUSY) => match holder(name) {
            Some((pid, command)) => format!("tap {name} is open in process {pid} ({command})"),
            None => format!("tap {name} is in use, or another process has just made it"),
        },
        Some(libc::EPERM) => format!("make or open tap {name}: this needs CAP_NET_ADMIN"),
        Some(_) | None => format!("make or open tap {name}"),
    };
    Err(error).context(why)
}

/// Keeps the host from speaking IPv6 to the guest from the tap by itself (router solicitations, MLD reports).
fn disable_ipv6(name: &str) -> Result<()> {
    // /proc/sys/net shows the calling thread's network namespace, whatever is mounted where.
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match fs::write(&path, "1") {
        Ok(()) => Ok(()),
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("write 1 to {path}")),
    }
}

/// Calls one of the tun ioctls that take their argument by value.
fn tun_ioctl(file: &impl AsRawFd, request: c_ulong, value: c_ulong) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST and TUNSETOFFLOAD read `value` itself; no pointer is passed.
    if unsafe { libc::ioctl(file.as_raw_fd(), request, value) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
