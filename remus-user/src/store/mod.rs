//! What a host keeps on disk about a VM: its [`Record`].
//!
//! Deliberately absent: the backup's image, which lives in the memory of the VM that is prepared to run it.

mod entry;
mod record;
mod start;

pub use entry::{Record, Standing};
pub use record::{Claim, Store};
pub use start::{Beginning, Names, Permission, permission};
