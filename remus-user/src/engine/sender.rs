//! The sender thread of a session: compares, encodes, writes.
//!
//! It is the only one that knows what the backup has ([`Encoder`]'s shadow), so it begins with the session and
//! ends with it. The first that it sends is what the guest begins with. Shipments come back to the engine when they
//! are dealt with, also after the connection is lost: their buffers are used again, and what they carried is in the
//! engine's books.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use super::{
    input::Input,
    shipment::{Payload, Shipment},
};
use crate::{
    checkpoint::{BootImage, Encoder, EncoderSettings},
    link::BulkOut,
    os::{Post, boot_now},
    wire::{BODY_MAX, Begin, End, Session},
};
use anyhow::{Context, Result};

/// The thread, seen from the engine. Dropping it ends the thread once it has dealt with what it has.
pub(super) struct Sender {
    jobs: SyncSender<Box<Shipment>>,
}

impl Sender {
    /// Starts the thread. At most `depth` shipments may be with it.
    pub(super) fn start(
        session: Session,
        mut out: BulkOut,
        boot: Arc<BootImage>,
        ram_pages: u32,
        encoding: EncoderSettings,
        depth: usize,
        post: Post<Input>,
    ) -> Result<Self> {
        let (jobs, inbox) = sync_channel(depth);
        let run = move || {
            let sent = send_boot_image(&mut out, &boot, ram_pages, encoding);
            let broken = sent.inspect_err(|e| lost(session, e, &post)).is_err();
            run(session, out, Encoder::new(ram_pages, encoding), broken, &inbox, &post);
        };
        let thread = thread::Builder::new().name("sender".to_owned()).spawn(run);
        thread.context("start the sender thread")?;
        Ok(Self { jobs })
    }

    /// Hands a shipment over.
    ///
    /// # Panics
    /// When more are under way than `depth`: the engine has no more buffers than that.
    pub(super) fn ship(&self, shipment: Box<Shipment>) {
        self.jobs.try_send(shipment).expect("as many places as there are shipments");
    }
}

fn run(
    session: Session,
    mut out: BulkOut,
    mut encoder: Encoder,
    mut broken: bool,
    jobs: &Receiver<Box<Shipment>>,
    post: &Post<Input>,
) {
    for mut shipment in jobs {
        shipment.verdicts.clear();
        shipment.bytes = 0;
        if !broken {
            let before = out.bytes();
            if let Err(e) = send(session, &mut out, &mut encoder, &mut shipment, post) {
                broken = true;
                lost(session, &e, post);
            }
            shipment.bytes = out.bytes() - before;
        }
        post.send(Input::Shipped(shipment));
    }
}

fn lost(session: Session, e: &io::Error, post: &Post<Input>) {
    post.send(Input::Lost { session, why: format!("sending to the backup failed: {e}") });
}

fn send_boot_image(
    out: &mut BulkOut,
    boot: &BootImage,
    ram_pages: u32,
    encoding: EncoderSettings,
) -> io::Result<()> {
    // One of its own: that of the session must not take for sent what is not in the backup's RAM.
    let mut encoder = Encoder::new(ram_pages, EncoderSettings { copies: 0, ..encoding });
    for part in boot.parts() {
        let mut run = encoder.encode(part);
        while let Some(batch) = run.next_batch() {
            out.boot_pages(&batch)?;
        }
    }
    let mut state = Vec::new();
    boot.state().encode(&mut state);
    state.chunks(BODY_MAX).try_for_each(|part| out.boot_state(part))
}

fn send(
    session: Session,
    out: &mut BulkOut,
    encoder: &mut Encoder,
    shipment: &mut Shipment,
    post: &Post<Input>,
) -> io::Result<()> {
    let Shipment { staging, state, payload, verdicts, encoded, bytes: _ } = shipment;
    match *payload {
        Payload::Sync => {
            let mut run = encoder.encode(staging);
            while let Some(batch) = run.next_batch() {
                out.sync_pages(&batch)?;
            }
        }
        Payload::Checkpoint { term, epoch, predecessor, reset } => {
            if reset {
                encoder.forget();
            }
            encoded.clear();
            state.encode(encoded);
            out.begin(&Begin {
                session,
                term,
                epoch,
                predecessor,
                predecessor_digest: out.digest(),
                sent: boot_now(),
                pages_max: u32::try_from(staging.len()).expect("no more than RAM has"),
                state_len: u32::try_from(encoded.len()).expect("state is small"),
                reset,
            })?;
            let mut pages = 0;
            let mut run = encoder.encode(staging);
            while let Some(batch) = run.next_batch() {
                pages += batch.pages();
                out.pages(&batch)?;
            }
            for part in encoded.chunks(BODY_MAX) {
                out.state(part)?;
            }
            let digest = out.digest();
            // The ack must not be heard before this is.
            post.send(Input::Encoded { session, epoch, digest });
            out.end(&End { epoch, pages, digest })?;
        }
    }
    verdicts.extend_from_slice(encoder.verdicts());
    Ok(())
}
