//! What a running VM shows to the outside: counters that the engine writes ([`Shared`]), the document made of them
//! ([`status::Status`]), the socket that answers with the document ([`StatusSocket`], [`query`]), and the directory that
//! belongs to one instance of a VM ([`VmDir`]).
//!
//! The engine thread never waits for a reader: everything that it writes in an epoch is a plain atomic. The socket also
//! takes an operator's [`Order`] and hands it on. Deliberately absent: anything that follows an order. No part of the
//! program decides by these numbers.

mod by_name;
mod epochs;
mod histogram;
mod order;
mod render;
mod shared;
mod socket;
pub mod status;
mod tally;
mod vm_dir;

pub use epochs::PauseParts;
pub use order::{Asked, Order};
pub use render::render;
pub(crate) use render::{alarms, by_unit};
pub use shared::{GateReading, Shared};
pub use socket::{StatusSocket, order, query};
pub(crate) use tally::Tally;
pub use vm_dir::{Holder, Unsafe, VmDir, holder, running};
