//! Features: what a release adds to the protocol without a new version.
//!
//! Each host names the features that it knows, as bits, in `Hello` or `Welcome`. Those that both named are the
//! session's. A kind of message or a field of a feature is sent only in a session that has the feature, and refused in
//! any other ([`WireError::Feature`](super::WireError::Feature)).
//!
//! Bits that a host does not know are ignored, so that a later release adds bits and still works with this one. Three
//! rules keep that true:
//! - a bit is given out once, above all that were given out before, and never reused;
//! - fields of features stand behind all other fields of their message, in the order of the bits;
//! - `Hello` and `Welcome` are sent before the session has features, so a field of theirs goes by the bits that the
//!   message itself names. Bytes behind the last known field are skipped if it names a bit that is not known here.

use std::fmt;

/// From one table: the features, their bits, and their names.
macro_rules! features {
    ($($(#[doc = $doc:literal])* $(#[cfg($cfg:meta)])? $bit:literal $feature:ident $name:literal;)*) => {
        /// One feature; its value is its bit.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Feature {
            $($(#[doc = $doc])* $(#[cfg($cfg)])? $feature = $bit,)*
        }

        impl Feature {
            /// Every feature that this build knows.
            pub const ALL: &'static [Self] = &[$($(#[cfg($cfg)])? Self::$feature,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $($(#[cfg($cfg)])? Self::$feature => $name,)*
                }
            }
        }
    };
}

features! {
    /// `Heartbeat` carries the age of the engine's last turn.
    0 EngineAge "engine-age";
    /// Nothing but a test of the table of kinds uses this one.
    #[cfg(test)]
    63 Trial "trial";
}

/// A set of features, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Features(pub(super) u64);

impl Features {
    pub const NONE: Self = Self(0);
    /// What this build names in `Hello` and `Welcome`.
    pub const OURS: Self = Self::of(&[Feature::EngineAge]);

    pub const fn of(features: &[Feature]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < features.len() {
            bits |= 1 << features[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Returns what a session has whose other end named `theirs`.
    pub const fn shared_with(theirs: Self) -> Self {
        Self(Self::OURS.0 & theirs.0)
    }

    pub const fn has(self, feature: Feature) -> bool {
        self.0 & Self::of(&[feature]).0 != 0
    }

    /// Whether the set names a bit that this build does not know.
    pub(super) const fn has_unknown(self) -> bool {
        self.0 & !Self::of(Feature::ALL).0 != 0
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
