//! What a checkpoint is made of: which pages ([`PageSet`]), their bytes ([`Staging`]).
//!
//! Pure: no clock, socket, file, thread or ioctl in here.

mod pages;
mod staging;

pub use pages::{PAGE_SIZE, Page, PageSet};
pub use staging::Staging;
