//! Names of network links. They become part of paths and of kernel objects, so their characters are limited.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a network link, as the kernel takes it: 1 to 15 bytes, here limited to `a-z A-Z 0-9 - _ .`
/// and a letter or digit first. `all` and `default` are no names: in `/proc/sys/net/*/conf` they stand for every link, and
/// for those to come.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

/// Why a text is not a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadName {
    Empty,
    TooLong {
        max: usize,
    },
    First(char),
    Character(char),
    /// One of [`RESERVED`].
    Reserved(&'static str),
}

/// What the kernel's settings mean by these is more than one link.
const RESERVED: [&str; 2] = ["all", "default"];

impl LinkName {
    /// IFNAMSIZ less the terminating zero.
    pub const MAX: usize = 15;

    /// # Errors
    /// Says which rule `name` breaks.
    pub fn new(name: &str) -> Result<Self, BadName> {
        check(name, Self::MAX).map(|()| Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(name: &str, max: usize) -> Result<(), BadName> {
    let first = name.chars().next().ok_or(BadName::Empty)?;
    if let Some(c) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
        return Err(BadName::Character(c));
    }
    if !first.is_ascii_alphanumeric() {
        return Err(BadName::First(first));
    }
    if let Some(reserved) = RESERVED.into_iter().find(|reserved| *reserved == name) {
        return Err(BadName::Reserved(reserved));
    }
    if name.len() > max { Err(BadName::TooLong { max }) } else { Ok(()) }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a name must not be empty"),
            Self::TooLong { max } => write!(f, "a name has at most {max} characters here"),
            Self::First(c) => write!(f, "a name begins with a letter or digit, not {c:?}"),
            Self::Character(c) => {
                write!(f, "{c:?} may not be in a name (only a-z A-Z 0-9 - _ . may)")
            }
            Self::Reserved(name) => {
                write!(
                    f,
                    "no link can be called {name}: the kernel's settings mean more than one link by it"
                )
            }
        }
    }
}

impl std::error::Error for BadName {}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LinkName {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(&name)
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

impl std::str::FromStr for LinkName {
    type Err = BadName;

    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::new(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "a\0", "-rf", "é"] {
            assert!(LinkName::new(bad).is_err(), "{bad:?}");
        }
        assert!(LinkName::new(&"a".repeat(16)).is_err());
        assert_eq!(LinkName::new("tap-1.lan").unwrap().as_str(), "tap-1.lan");
    }

    #[test]
    fn names_that_stand_for_more_than_one_link_or_that_the_kernel_refuses_are_refused() {
        for bad in ["all", "default", "tap%d", "tap:0", "tap/0", "tap 0", "tap\n0"] {
            assert!(LinkName::new(bad).is_err(), "{bad:?}");
        }
        assert!(LinkName::new("all0").is_ok() && LinkName::new("default.1").is_ok());
    }
}
