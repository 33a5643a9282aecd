//! `remus backup`: keeps images of VMs whose primaries connect, and takes over when one falls silent.
//!
//! The daemon accepts connections and tells whose they are; a [`follower`] thread a VM does everything else,
//! from the first page to the takeover, and runs the guest from then on. It judges silence, so it must know that
//! it has heard all that was said: one thread reads both connections of the session and keeps the time.

mod daemon;
mod disks;
mod follower;
mod greet;
mod handle;
mod hear;
mod kept;
mod openings;
mod receiver;
mod takeover;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::select;
use tracing::info;

use crate::{
    config::BackupOptions,
    os::{run_on, use_all_descriptors},
    signals::Ends,
};

/// Serves until it is told to end. Guests that run here by then are ended on purpose.
///
/// # Errors
/// When it cannot listen.
pub fn run(options: BackupOptions) -> Result<()> {
    use_all_descriptors();
    run_on(&options.placement.io_cpus).context("place the threads")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let result = runtime.block_on(async {
        let mut ends = Ends::new()?;
        let followers = Arc::new(Mutex::new(daemon::Followers::default()));
        let result = select! {
            result = daemon::serve(Arc::new(options), Arc::clone(&followers)) => result,
            () = ends.next() => Ok(()),
        };
        daemon::end_guests(&followers).await;
        result
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    info!("the backup ends");
    result
}
