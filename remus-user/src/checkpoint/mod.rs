//! What a checkpoint is made of, from the pause to the backup's memory:
//!
//! ```text
//! DirtyBook (which pages are owed) ─► Staging (their bytes) ─► Encoder (compared with Shadow) ─► Batch
//!      ▲                                                          │ verdicts                      │ wire
//!      └────────────── HotSet (which stay writable) ◄─────────────┘                               ▼
//!                                                                                       Assembly ─► memory
//! ```
//!
//! Beside the pages goes the machine's other state, [`MachineState`]: plain values, with their own encoding. Before the
//! first of them goes what the guest begins with, [`BootImage`], for its resets.
//!
//! Pure: no clock, socket, file, thread or ioctl in here.

mod assembly;
mod batch;
mod boot_image;
mod budget;
mod delta;
mod dirty;
mod encoder;
mod hotset;
mod pack;
mod pages;
mod shadow;
mod staging;
mod state;
mod walk;

pub use assembly::{Arrived, Assembly, STATE_MAX};
pub use batch::{BATCH_MAX, Batch, BatchError, Content, Encoding};
pub use boot_image::{BootAssembly, BootImage};
pub use budget::PauseBudget;
pub use delta::{Delta, DeltaError};
pub use dirty::DirtyBook;
pub use encoder::{COPIES_DEFAULT, Encoded, Encoder, EncoderSettings, OutBatch, Totals, Verdict};
pub use hotset::{HotSet, QUIET_EPOCHS_DEFAULT};
pub use pack::Compression;
pub(crate) use pages::bits;
pub use pages::{PAGE_SIZE, Page, PageSet};
pub use staging::{StagedPage, Staging};
pub use state::{
    ClockState, DeviceState, Image, MachineState, Msr, QueueState, STATE_VERSION, SerialState,
    StateError, VCPUS_MAX, VcpuState,
};
pub use walk::{Comparer, DELTA_ROOM, Difference};
