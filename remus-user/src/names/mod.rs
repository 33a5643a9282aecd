//! What everything has a name by: machines, links, hosts, sessions, contents, moments.

mod link;

use std::{fmt, ops::Add, time::Duration};

pub use self::link::{BadName, LinkName};

/// One replication connection, from `Hello` to the loss of a link: random, chosen by the primary, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Session(u64);

/// Which backup a host is: random, never 0.
///
/// A backup keeps its own together with the newest term it has heard of; one that has forgotten the term must
/// come back as another instance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instance(u64);

/// Who speaks in a term: random, never 0, drawn by the speaker for each of its terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nonce(u64);

/// Which virtual machine it is, whatever others have the same name: random, never 0, drawn by the host that starts it for
/// the first time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(u128);

/// What a session has carried up to a point: see [`Chain`](crate::wire::Chain).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Digest(pub u64);

/// A moment on *one* host's CLOCK_BOOTTIME, in nanoseconds. It also runs while that host is suspended, and is
/// what `bpf_ktime_get_boot_ns` reads. Moments of two hosts are never compared: a moment that crosses the wire
/// is echoed to the host that took it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Moment(pub u64);

/// The name of a virtual machine: it becomes a directory under /run/remus, so it is 1 to 64 ASCII letters,
/// digits, `-` or `_`, also when a stranger sends it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmName(String);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAnId;

impl Session {
    /// `None` for 0, which names nothing.
    pub const fn new(n: u64) -> Option<Self> {
        if n == 0 { None } else { Some(Self(n)) }
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Instance {
    /// `None` for 0, which names nothing.
    pub const fn new(n: u64) -> Option<Self> {
        if n == 0 { None } else { Some(Self(n)) }
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Nonce {
    /// `None` for 0, which names nobody.
    pub const fn new(n: u64) -> Option<Self> {
        if n == 0 { None } else { Some(Self(n)) }
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl VmId {
    /// `None` for 0, which names nothing.
    pub const fn new(n: u128) -> Option<Self> {
        if n == 0 { None } else { Some(Self(n)) }
    }

    pub const fn get(self) -> u128 {
        self.0
    }
}

impl Moment {
    /// How long ago `earlier` was; zero when it was not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Saturates, after 584 years.
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl VmName {
    pub const LEN_MAX: usize = 64;

    /// # Errors
    /// [`NameError`] for anything but 1 to 64 ASCII letters, digits, `-` or `_`.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let fits = (1..=Self::LEN_MAX).contains(&name.len());
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits && plain { Ok(Self(name.to_owned())) } else { Err(NameError) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for VmId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        u128::from_str_radix(text, 16).ok().and_then(Self::new).ok_or(NotAnId)
    }
}

impl fmt::Display for NotAnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the id of a VM is a hexadecimal number of up to 32 digits, and not 0")
    }
}

impl std::error::Error for NotAnId {}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a VM's name is 1 to 64 ASCII letters, digits, '-' or '_'")
    }
}

impl std::error::Error for NameError {}

impl std::str::FromStr for VmName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_its_directory_is_refused() {
        for bad in ["", "..", "a/b", "a b", "\0", "é", &"x".repeat(65)] {
            assert_eq!(VmName::new(bad), Err(NameError), "{bad:?}");
        }
        assert_eq!(VmName::new("web-1_a").unwrap().as_str(), "web-1_a");
    }
}
