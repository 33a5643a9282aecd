//! The daemon: accepts connections and hands each to the follower of its VM.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use remus_abi::Term;
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::{debug, info, warn};

use super::{
    BackupOptions, follower,
    mailbox::{Letter, Mailbox},
};
use crate::{
    link::{self, Opening},
    wire::{Attach, Hello, Refusal, Refuse, VmName},
};

/// Connections that may be between accepting and their first message.
const OPENING_MAX: usize = 32;
/// VMs that one daemon follows.
const FOLLOWED_MAX: usize = 64;

/// How long guests that run here have to end, once the daemon is told to.
const END_WITHIN: Duration = Duration::from_secs(4);

/// Who follows which VM.
pub(super) type Followers = BTreeMap<VmName, Mailbox>;

/// Ends the guests that run here, on purpose and in order.
pub(super) async fn end_guests(followers: &Mutex<Followers>) {
    let has_guests = || lock(followers).values().any(Mailbox::has_guest);
    lock(followers).values().for_each(Mailbox::end_guest);
    let until = tokio::time::Instant::now() + END_WITHIN;
    while has_guests() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whoever panicked with the lock left the map whole: every change of it is one insertion or removal.
fn lock(followers: &Mutex<Followers>) -> MutexGuard<'_, Followers> {
    followers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until the listener cannot be had.
pub(super) async fn serve(
    options: Arc<BackupOptions>,
    followers: Arc<Mutex<Followers>>,
) -> Result<()> {
    let listener = listen(options.listen).await?;
    info!("waiting for primaries at {}", options.listen);
    let opening = Arc::new(Semaphore::new(OPENING_MAX));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, most likely: those in use go on, newcomers wait.
                warn!("accepting failed: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&opening).try_acquire_owned() else {
            debug!("{peer} dropped: {OPENING_MAX} connections have not said yet what they want");
            continue;
        };
        let (options, followers) = (Arc::clone(&options), Arc::clone(&followers));
        tokio::spawn(async move {
            let opened = link::accept(stream).await;
            if let Err(e) = opened
                .and_then(|(opening, stream)| hand_over(opening, stream, &options, &followers))
            {
                warn!("connection from {peer}: {e:#}");
            }
            drop(place);
        });
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listen at {address}: is it an address of this host, and the port free?")
    })
}

fn hand_over(
    opening: Opening,
    stream: TcpStream,
    options: &Arc<BackupOptions>,
    followers: &Mutex<Followers>,
) -> Result<()> {
    let mut followers = lock(followers);
    match opening {
        Opening::Hello(hello) => greet(hello, stream, options, &mut followers),
        Opening::Attach(Attach { session }) => {
            let mailbox = followers
                .values()
                .find(|mailbox| mailbox.awaits_bulk_of(session))
                .context("a bulk connection of a session that nobody asked for")?;
            mailbox.send(Letter::Attached { session, stream });
            Ok(())
        }
    }
}

fn greet(
    hello: Box<Hello>,
    stream: TcpStream,
    options: &Arc<BackupOptions>,
    followers: &mut Followers,
) -> Result<()> {
    followers.retain(|_, mailbox| mailbox.is_open());
    let is_full = followers.len() >= FOLLOWED_MAX;
    let refuse = |stream, text: &str| {
        Ok(link::refuse(stream, Refuse::new(Refusal::NotReady, Term::NONE, text))?)
    };
    let mailbox = match followers.entry(hello.vm.clone()) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(_) if is_full => {
            return refuse(stream, &format!("this backup follows {FOLLOWED_MAX} VMs already"));
        }
        Entry::Vacant(new) => match follower::start(hello.vm.clone(), Arc::clone(options)) {
            Ok(mailbox) => new.insert(mailbox),
            Err(e) => return refuse(stream, &format!("{e:#}")),
        },
    };
    if let Some(promoted) = mailbox.promoted() {
        return Ok(link::refuse(stream, promoted.refuse())?);
    }
    mailbox.send(Letter::Hello { hello, stream });
    Ok(())
}
