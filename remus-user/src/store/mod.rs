//! What a host keeps on disk about a VM: its [`Record`].
//!
//! Deliberately absent: the backup's image, which lives in the memory of the VM that is prepared to run it.

mod record;
mod start;

pub use record::{Claim, Record, Standing, Store};
pub use start::{Permission, permission};
