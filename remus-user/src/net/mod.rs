//! The host's network as the gate needs it: links by rtnetlink ([`Links`]), the tap ([`Tap`]), what tells
//! switches and neighbours where the guest is now ([`announce`], pure), and what comes for it before it is anywhere
//! ([`Overheard`]).
//!
//! Knows nothing of eBPF: whether an existing tap is guarded by our own gate is the caller's to say.
//! Deliberately absent: addresses and routes (the guest has those, not the host), and making bridges.

pub mod announce;
mod foreign_tap;
mod identity;
mod links;
mod mac;
mod overheard;
mod route;
mod sysfs;
mod tap;

pub use foreign_tap::ForeignTap;
pub use identity::{Identity, Station};
pub use links::{IfIndex, Kind, Link, Links};
pub use mac::{Mac, NotAMac};
pub use overheard::Overheard;
pub use tap::{Tap, TapSpec, VNET_HEADER_BYTES, tap_alias, tap_user};
