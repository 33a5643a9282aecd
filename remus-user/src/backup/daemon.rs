//! The daemon: accepts connections and hands each to the follower of its VM.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use remus_abi::Term;
use tokio::{net::TcpListener, task::AbortHandle};
use tracing::{info, warn};

use super::{
    BackupOptions, follower,
    mailbox::{Letter, Mailbox},
    openings::{Crowd, Openings},
};
use crate::{
    link::{self, Opening},
    os::boot_now,
    wire::{Attach, Hello, Refusal, Refuse, VmName},
};

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
    let listen_at = options.listen;
    let listener = listen(listen_at).await?;
    info!("waiting for primaries at {listen_at}");
    let openings = Arc::new(Mutex::new(Openings::<AbortHandle>::new()));
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
        let (options, followers) = (Arc::clone(&options), Arc::clone(&followers));
        let opening = Arc::clone(&openings);
        let open = async move |number| {
            let _place = Place { openings: opening, number };
            let opened = link::accept(stream).await;
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
        let refuse = promoted.refuse(&hello);
        if promoted.must_fall_silent(&hello) {
            mailbox.silence_guest(refuse.text.clone());
        }
        return Ok(link::refuse(stream, refuse)?);
    }
    mailbox.send(Letter::Hello { hello, stream });
    Ok(())
}
