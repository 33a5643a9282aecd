//! Whether the gate still does what it was put there for.
//!
//! A pin alone proves nothing: a tap that is deleted takes its programs along and leaves the pins; a program put
//! in front may send frames past the gate; a tap that steers frames to other CPUs stamps them late. So the kernel
//! is asked before any vCPU runs and on every tick, and what it answers is compared with what must be. Whatever
//! is not known for certain is a loss.
//!
//! A check is a dozen system calls on descriptors that are open: no allocation while all is well. It asks by the
//! link's number and by files of a sysfs of our own, opened once, so neither a new tap of the same name nor
//! another namespace's /sys can answer in its place. It is made from a thread in the link's network namespace.

use std::{
    error,
    ffi::CString,
    fmt,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    chain::{self, Side, TCX_ROOM},
    hook::{self, Hook, HookKind},
    pins::{self, Pins},
    rtnl::{Attributes, Request, Rtnl, word},
};
use crate::os::Sysfs;

/// What has become of a gate that guards no more. Frames may be passing it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lost {
    /// The link was deleted, and the gate with it.
    Deleted { link: String },
    /// The link was deleted, and another has its name.
    Recreated { link: String, was: u32, now: u32 },
    /// The program is not attached any more.
    Detached { link: String, program: &'static str },
    /// The clsact qdisc was removed, and the program with it.
    QdiscRemoved { link: String, program: &'static str },
    /// A program was put in front; 0 for a classifier that has none.
    Displaced { link: String, program: &'static str, by: u32, kind: String },
    /// An XDP program sees the frames first.
    XdpInFront { link: String },
    /// Frames go to other CPUs before the gate sees them. `what` is the sysfs file, `value` what it says.
    Steered { link: String, what: &'static str, value: String },
    /// The tap hands frames over later than `write` returns.
    Napi { link: String },
    /// The tap has several queues, and the gate's slots one producer.
    SeveralQueues { link: String },
    /// A pin is gone, or another object's.
    PinGone { path: PathBuf },
    /// The bpffs with the pins is gone.
    PinsUnmounted { path: PathBuf },
    /// Netfilter does not hold this link's frames as it was told to, or somebody else does.
    QueueGone { link: String, how: String },
    /// Nobody knows: the kernel did not answer.
    Unknown { question: &'static str, error: String },
}

/// What helps against a loss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// A new gate in the place of the lost one.
    NewGate,
    /// Only whoever did it can undo it.
    Wait,
    /// Nothing: there is no tap any more that the guest's frames come from.
    None,
}

impl Lost {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Detached { .. }
            | Self::QdiscRemoved { .. }
            | Self::Displaced { .. }
            | Self::PinGone { .. }
            | Self::PinsUnmounted { .. }
            | Self::QueueGone { .. } => Remedy::NewGate,
            Self::XdpInFront { .. }
            | Self::Steered { .. }
            | Self::Napi { .. }
            | Self::SeveralQueues { .. }
            | Self::Unknown { .. } => Remedy::Wait,
            Self::Deleted { .. } | Self::Recreated { .. } => Remedy::None,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deleted { link } => write!(f, "{link} was deleted, and the gate with it"),
            Self::Recreated { link, was, now } => write!(
                f,
                "{link} was deleted and made again (link {was} is link {now} now): the new one has no gate"
            ),
            Self::Detached { link, program } => {
                write!(f, "{program} is not attached to {link} any more: frames pass unseen")
            }
            Self::QdiscRemoved { link, program } => write!(
                f,
                "the clsact qdisc of {link} was removed, and {program} with it: frames pass unseen"
            ),
            Self::Displaced { link, program, by: 0, kind } => write!(
                f,
                "a {kind} classifier was put in front of {program} on {link}: frames may pass unseen \
                 (tc filter show dev {link} ingress shows it)"
            ),
            Self::Displaced { link, program, by, kind } => write!(
                f,
                "{kind} program {by} was put in front of {program} on {link}: frames may pass unseen \
                 (bpftool prog show id {by} says whose it is)"
            ),
            Self::XdpInFront { link } => write!(
                f,
                "an XDP program was put on {link}: it sees frames before the gate and may send them elsewhere"
            ),
            Self::Steered { link, what, value } => write!(
                f,
                "{link} has receive packet steering on ({what} is {value}): frames are stamped too late"
            ),
            Self::Napi { link } => {
                write!(f, "{link} is in NAPI mode: frames are stamped too late")
            }
            Self::SeveralQueues { link } => {
                write!(f, "{link} has several queues: the gate guards one")
            }
            Self::PinGone { path } => write!(
                f,
                "the pin {} is gone: the gate would open should this process die",
                path.display()
            ),
            Self::PinsUnmounted { path } => write!(
                f,
                "the bpffs at {} is gone, and the gate's pins with it: the gate would open should this process die",
                path.display()
            ),
            Self::QueueGone { link, how } => {
                write!(f, "netfilter does not hold the frames of {link} as it should: {how}")
            }
            Self::Unknown { question, error } => {
                write!(f, "nobody knows whether the gate is in place: {question}: {error}")
            }
        }
    }
}

impl error::Error for Lost {}

/// Asks whether a hook is attached, and first.
///
/// # Errors
/// [`Lost`] when it is not.
pub(super) fn check_hook(hook: &Hook, rtnl: &Rtnl) -> Result<(), Lost> {
    let Hook { program, program_id, link, place, .. } = hook;
    let (program, ours) = (*program, *program_id);
    let mut ids = [0; TCX_ROOM];
    let tcx = chain::tcx(*place, &mut ids)
        .map_err(|e| gone(hook, e, "which TCX programs are there"))?
        .unwrap_or(&[]);
    let displaced = |by: u32, kind: &str| Lost::Displaced {
        link: link.clone(),
        program,
        by,
        kind: kind.to_owned(),
    };
    let detached = || Lost::Detached { link: link.clone(), program };
    match (hook.kind(), tcx.first()) {
        (HookKind::Tcx, Some(first)) if *first == ours => Ok(()),
        // Several gates share an uplink, and one guard comes after another. What an earlier program lets out past a
        // guard is seen by the flush that sent it.
        (HookKind::Tcx, Some(_)) if place.side == Side::Egress && tcx.contains(&ours) => Ok(()),
        (HookKind::Tcx, Some(first)) if tcx.contains(&ours) => Err(displaced(*first, "TCX")),
        (HookKind::Tcx, _) => Err(detached()),
        (HookKind::Clsact, Some(first)) => Err(displaced(*first, "TCX")),
        (HookKind::Clsact, None) => {
            let mut front = Front::Nothing;
            chain::filters(rtnl, *place, &mut |filter| front = front.before(&filter, ours))
                .map_err(|e| gone(hook, e, "which filters are there"))?;
            match front {
                Front::Ours => Ok(()),
                Front::Other { then_ours: true, .. } if place.side == Side::Egress => Ok(()),
                Front::Other { by, then_ours: true, kind } => Err(displaced(by, kind.as_str())),
                Front::Nothing | Front::Other { then_ours: false, .. } => {
                    match chain::has_clsact(rtnl, *place) {
                        Ok(true) => Err(detached()),
                        Ok(false) => Err(Lost::QdiscRemoved { link: link.clone(), program }),
                        Err(e) => Err(gone(hook, e, "whether the clsact qdisc is there")),
                    }
                }
            }
        }
    }
}

/// What was seen of a chain of filters.
#[derive(Clone, Copy, Debug)]
enum Front {
    Nothing,
    Ours,
    Other { by: u32, then_ours: bool, kind: Kind },
}

/// The name of a classifier, as far as a message needs it.
#[derive(Clone, Copy, Debug)]
struct Kind([u8; 8]);

impl Kind {
    fn of(name: &[u8]) -> Self {
        let mut kind = [0; 8];
        for (to, from) in kind.iter_mut().zip(name) {
            *to = if from.is_ascii_graphic() { *from } else { b'?' };
        }
        Self(kind)
    }

    fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        str::from_utf8(&self.0[..len]).unwrap_or("")
    }
}

impl Front {
    /// What is known once `filter` was seen behind what is known.
    fn before(self, filter: &chain::Filter<'_>, ours: u32) -> Self {
        let is_ours = filter.program == Some(ours);
        match self {
            Self::Nothing if is_ours => Self::Ours,
            // The entry of a BPF classifier, which judges nothing; its filters follow. Others may judge by it.
            Self::Nothing if filter.handle == 0 && filter.kind == b"bpf" => Self::Nothing,
            Self::Nothing => Self::Other {
                by: filter.program.unwrap_or(0),
                then_ours: false,
                kind: Kind::of(filter.kind),
            },
            Self::Ours => Self::Ours,
            Self::Other { by, then_ours, kind } => {
                Self::Other { by, then_ours: then_ours || is_ours, kind }
            }
        }
    }
}

/// An answer about the link of `hook` that is none: most often because the link is gone.
fn gone(hook: &Hook, error: io::Error, question: &'static str) -> Lost {
    if error.raw_os_error() != Some(libc::ENODEV) {
        return Lost::Unknown { question, error: error.to_string() };
    }
    let (link, was) = (hook.link.clone(), hook.place.ifindex);
    match hook::ifindex(&link) {
        // Even with the number that it had: a number can be asked for.
        Some(now) => Lost::Recreated { link, was, now },
        None => Lost::Deleted { link },
    }
}

/// What must stay as it is around the hook on a tap.
pub(super) struct Health {
    rtnl: Rtnl,
    tun_flags: File,
    /// `None` in a kernel without receive packet steering.
    steering: Option<Steering>,
    pins: Vec<Pin>,
}

struct Steering {
    rps_cpus: File,
    rps_flow_cnt: File,
}

/// A pin, and which object it was.
struct Pin {
    path: CString,
    device: u64,
    inode: u64,
}

impl Health {
    /// Opens what a check reads. `pinned` are the names of the pins that must stay.
    ///
    /// # Errors
    /// When the link is no tap, or a pin is not there.
    pub(super) fn watch(hook: &Hook, pins: &Pins, pinned: &[&str]) -> Result<Self> {
        let sysfs = Sysfs::open().context("open a sysfs of this network namespace")?;
        let of_link = |file: &str| sysfs.file(&format!("class/net/{}/{file}", hook.link));
        let tun_flags = of_link("tun_flags").with_context(|| format!("{} is no tap", hook.link))?;
        // A tap of one queue, which `check` insists on, has one receive queue.
        let steering = match of_link("queues/rx-0/rps_cpus") {
            Ok(rps_cpus) => Some(Steering {
                rps_cpus,
                rps_flow_cnt: of_link("queues/rx-0/rps_flow_cnt").context("open rps_flow_cnt")?,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).context("open rps_cpus"),
        };
        let pins = pinned.iter().map(|name| Pin::watch(&pins.path(name))).collect::<Result<_>>()?;
        let rtnl = Rtnl::open().context("open an rtnetlink socket")?;
        Ok(Self { rtnl, tun_flags, steering, pins })
    }

    /// The socket, for questions about another hook.
    pub(super) fn rtnl(&self) -> &Rtnl {
        &self.rtnl
    }

    /// Asks for everything.
    ///
    /// # Errors
    /// The first [`Lost`] that is found.
    pub(super) fn check(&self, hook: &Hook) -> Result<(), Lost> {
        check_hook(hook, &self.rtnl)?;
        self.check_tap(hook)?;
        self.check_xdp(hook)?;
        self.pins.iter().try_for_each(Pin::check)
    }

    fn check_tap(&self, hook: &Hook) -> Result<(), Lost> {
        const NAPI: u32 = (libc::IFF_NAPI | libc::IFF_NAPI_FRAGS).cast_unsigned();
        const SEVERAL_QUEUES: u32 = libc::IFF_MULTI_QUEUE.cast_unsigned();
        let link = || hook.link.clone();
        let unread = |e| gone(hook, e, "what the tap is like");
        let mut buffer = [0; 64];
        let text = read(&self.tun_flags, &mut buffer).map_err(unread)?;
        let Some(flags) =
            text.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok())
        else {
            let error = format!("tun_flags is {text:?}");
            return Err(Lost::Unknown { question: "what the tap is like", error });
        };
        if flags & NAPI != 0 {
            return Err(Lost::Napi { link: link() });
        }
        if flags & SEVERAL_QUEUES != 0 {
            return Err(Lost::SeveralQueues { link: link() });
        }
        let Some(Steering { rps_cpus, rps_flow_cnt }) = &self.steering else { return Ok(()) };
        // Flow steering picks a CPU by the flow table alone, whatever rps_cpus says (`get_rps_cpu`, 6.18).
        for (what, file) in [("rps_cpus", rps_cpus), ("rps_flow_cnt", rps_flow_cnt)] {
            // A mask has nine bytes for every 32 CPUs; `read` refuses one that is longer than this.
            let mut buffer = [0; 2560];
            let value = read(file, &mut buffer).map_err(unread)?;
            if value.bytes().any(|b| !matches!(b, b'0' | b',')) {
                return Err(Lost::Steered { link: link(), what, value: value.to_owned() });
            }
        }
        Ok(())
    }

    fn check_xdp(&self, hook: &Hook) -> Result<(), Lost> {
        const IFINFOMSG_BYTES: usize = 16;
        const IFLA_EXT_MASK: u16 = 29;
        const IFLA_XDP: u16 = 43;
        const IFLA_XDP_ATTACHED: u16 = 2;
        const SKIP_STATISTICS: u32 = 1 << 3;
        let mut message = [0; IFINFOMSG_BYTES];
        message[4..8].copy_from_slice(&hook.place.ifindex.to_ne_bytes());
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &message)
            .with(IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes());
        let mut answered = false;
        let mut attached = false;
        self.rtnl
            .ask(request, &mut |body| {
                answered |= word(body, 4) == Some(hook.place.ifindex);
                for (kind, value) in Attributes(body.get(IFINFOMSG_BYTES..).unwrap_or(&[])) {
                    if kind == IFLA_XDP {
                        attached |= Attributes(value)
                            .any(|(kind, value)| kind == IFLA_XDP_ATTACHED && value != [0]);
                    }
                }
            })
            .map_err(|e| gone(hook, e, "what the link has"))?;
        if !answered {
            let error = "no answer about this link".to_owned();
            return Err(Lost::Unknown { question: "what the link has", error });
        }
        if attached {
            return Err(Lost::XdpInFront { link: hook.link.clone() });
        }
        Ok(())
    }
}

impl Pin {
    fn watch(path: &Path) -> Result<Self> {
        let text = CString::new(path.as_os_str().as_bytes()).context("a path without NUL")?;
        let (device, inode) =
            identity(&text).with_context(|| format!("look at the pin {}", path.display()))?;
        Ok(Self { path: text, device, inode })
    }

    fn check(&self) -> Result<(), Lost> {
        match identity(&self.path) {
            Ok(found) if found == (self.device, self.inode) => Ok(()),
            // Not there, not to be reached, or another.
            Ok(_) | Err(_) => {
                let path = PathBuf::from(std::ffi::OsStr::from_bytes(self.path.as_bytes()));
                let directory = path.parent().unwrap_or(Path::new("/"));
                Err(match pins::is_bpffs(directory) {
                    Ok(true) => Lost::PinGone { path },
                    Ok(false) | Err(_) => Lost::PinsUnmounted { path: directory.to_owned() },
                })
            }
        }
    }
}

/// Device and inode of the object at `path`.
fn identity(path: &CString) -> io::Result<(u64, u64)> {
    // SAFETY: stat is plain data.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a place for the answer, both alive during the call.
    if unsafe { libc::lstat(path.as_ptr(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((about.st_dev, about.st_ino))
}

/// The one line of a sysfs file, whole.
fn read<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let got = file.read_at(buffer, 0)?;
    let line =
        buffer[..got].strip_suffix(b"\n").ok_or_else(|| io::Error::other("a line cut off"))?;
    str::from_utf8(line).map_err(io::Error::other)
}
