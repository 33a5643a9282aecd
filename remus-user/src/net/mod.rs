//! The host's network as the gate needs it: links by rtnetlink ([`Links`]), the tap ([`Tap`]), the announcements that tell
//! switches and neighbours where the guest is now ([`announce`], pure), and the frames for a guest that no host runs yet
//! ([`Overheard`]).
//!
//! This module knows nothing of eBPF: the caller says whether our own gate guards an existing tap. Deliberately absent:
//! addresses and routes (the guest has those, not the host), and making bridges.

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
