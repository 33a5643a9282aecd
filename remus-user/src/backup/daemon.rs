//! The daemon: accepts connections and hands each to the follower of its VM.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use remus_abi::Term;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::{
    follower,
    handle::{Call, Handle},
    openings::{Crowd, Openings},
};
use crate::{
    config::BackupOptions,
    link::{Accepted, Listener, Opening},
    names::VmName,
    os::boot_now,
    wire::{Attach, Hello, Refusal, Refuse},
};

/// VMs that one daemon follows.
const FOLLOWED_MAX: usize = 64;

/// How long guests that run here have to end, once the daemon is told to.
const END_WITHIN: Duration = Duration::from_secs(4);

/// Who follows which VM.
pub(super) type Followers = BTreeMap<VmName, Handle>;

/// Ends the guests that run here, on purpose and in order.
pub(super) async fn end_guests(followers: &Mutex<Followers>) {
    let has_guests = || lock(followers).values().any(Handle::has_guest);
    lock(followers).values().for_each(Handle::end_guest);
    let until = boot_now() + END_WITHIN;
    while has_guests() && boot_now() < until {
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
    let listen_at = options.listen;
    let listener = Listener::bind(listen_at).await?;
    info!("waiting for primaries at {listen_at}");
    let openings = Arc::new(Mutex::new(Openings::<AbortHandle>::new()));
    loop {
        let (caller, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, most likely: those in use go on, newcomers wait.
                warn!("accepting failed: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (options, followers) = (Arc::clone(&options), Arc::clone(&followers));
        let opening = Arc::clone(&openings);
        let open = async move |number| {
            let _place = Place { openings: opening, number };
            let opened = caller.opening().await;
            // Nothing is awaited from here on: who has said what it wants gives way to nobody.
            if let Err(e) = opened
                .and_then(|(opening, stream)| hand_over(opening, stream, &options, &followers))
            {
                warn!("connection from {peer}: {e:#}");
            }
        };
        let mut openings = waiting(&openings);
        if let Some(oldest) = openings.make_room(peer.ip()) {
            oldest.abort();
        }
        openings.enter(peer.ip(), |number| tokio::spawn(open(number)).abort_handle());
        if let Some(Crowd { dropped, most_from }) = openings.poll_warning(boot_now()) {
            warn!(
                "{dropped} connections were dropped, since they did not say what they want and others came; most were from \
                 {most_from}. Nothing but primaries should connect to {listen_at}"
            );
        }
    }
}

/// The place of a connection that has not said yet what it wants.
struct Place {
    openings: Arc<Mutex<Openings<AbortHandle>>>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        waiting(&self.openings).leave(self.number);
    }
}

/// As [`lock`].
fn waiting(openings: &Mutex<Openings<AbortHandle>>) -> MutexGuard<'_, Openings<AbortHandle>> {
    openings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hand_over(
    opening: Opening,
    stream: Accepted,
    options: &Arc<BackupOptions>,
    followers: &Mutex<Followers>,
) -> Result<()> {
    let mut followers = lock(followers);
    match opening {
        Opening::Hello(hello) => greet(hello, stream, options, &mut followers),
        Opening::Attach(Attach { session }) => {
            let follower_of = followers
                .values()
                .find(|follower| follower.awaits_bulk_of(session))
                .context("a bulk connection of a session that nobody asked for")?;
            follower_of.send(Call::Attached { session, stream });
            Ok(())
        }
    }
}

fn greet(
    hello: Box<Hello>,
    stream: Accepted,
    options: &Arc<BackupOptions>,
    followers: &mut Followers,
) -> Result<()> {
    followers.retain(|_, follower| follower.is_open());
    let is_full = followers.len() >= FOLLOWED_MAX;
    let refuse = |stream: Accepted, text: &str| {
        Ok(stream.refuse(Refuse::new(Refusal::NotReady, Term::NONE, text))?)
    };
    let follower_of = match followers.entry(hello.vm.clone()) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(_) if is_full => {
            return refuse(stream, &format!("this backup follows {FOLLOWED_MAX} VMs already"));
        }
        Entry::Vacant(new) => match follower::start(hello.vm.clone(), Arc::clone(options)) {
            Ok(follower_of) => new.insert(follower_of),
            Err(e) => return refuse(stream, &format!("{e:#}")),
        },
    };
    if let Some(promoted) = follower_of.promoted() {
        let refuse = promoted.refuse(&hello);
        if promoted.must_fall_silent(&hello) {
            follower_of.silence_guest(refuse.text.clone());
        }
        return Ok(stream.refuse(refuse)?);
    }
    follower_of.send(Call::Hello { hello, stream });
    Ok(())
}
