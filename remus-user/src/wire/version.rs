//! The protocol's version, apart from the release's.

/// The version this code speaks: one more whenever a byte on the wire changes its meaning. What is only added gets a
/// bit of [`Features`](super::Features) instead.
///
/// Both hosts must speak the same one. A peer of another version is told so by a `Refuse`, whose header and
/// body are frozen and understood by every version.
pub const WIRE_VERSION: u16 = 7;
