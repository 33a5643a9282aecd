//! Moving frames between the virtqueues and the tap.
//!
//! The guest writes the rings and descriptors, at any time: lengths and addresses are taken as numbers that
//! may be anything. What breaks the rules (a chain without an end, a buffer outside of RAM or of the wrong
//! direction, an index that runs away) breaks the device, until the guest resets it. A frame that is unfit for
//! the wire, or a header that lies about it, costs the guest that frame.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::QueueT;

use super::super::interrupt::Interrupt;
use super::super::log_limit::LogLimit;
use super::super::mmio::{Effect, Identity, Transport};
use super::super::port::{Device, Progress};
use super::super::ring::{self, Breach, Stop, Used};
use super::frame::{Scatter, gather};
use super::header::{self, HEADER, Job, UNCUT_MAX, Unfit};
use super::offloads::{self, Negotiated, Offloads, REQUIRES};
use super::segment::{self, Segments};
use super::tap::Tap;
use crate::checkpoint::DeviceState;
use crate::machine::memory::Ram;

/// Numbers of the virtqueues.
pub(in crate::machine) const RECEIVE: usize = 0;
pub(in crate::machine) const TRANSMIT: usize = 1;

const QUEUE_MAX: u16 = 256;
/// Frames moved in one go, so that the serving thread comes back to its other duties.
const BUDGET: usize = 128;
/// Bytes of a frame beyond its MTU: addresses and type, and two VLAN tags.
const BEYOND_MTU: usize = segment::ETHERNET + 8;

/// How many frames went which way. Counted from the device's creation on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct NetCounters {
    /// Taken by the tap; a frame that was cut here counts as one.
    pub sent: u64,
    /// The tap did not take them, or they were too short or too long for it.
    pub sent_dropped: u64,
    /// Their header asked for what was not negotiated, or did not fit them.
    pub sent_refused: u64,
    /// Segments that were cut here out of longer frames, because the gate copies what those were.
    pub sent_segments: u64,
    pub received: u64,
    /// Frames that did not come by the tap: [`Prepared::give`](crate::machine::Prepared::give).
    pub received_ahead: u64,
    /// Too long for the guest, or for its buffers.
    pub received_dropped: u64,
    /// How often a frame had to wait because the guest had no buffer.
    pub receive_starved: u64,
}

/// The device.
pub(in crate::machine) struct Net {
    transport: Transport,
    tap: Tap,
    /// What the driver has taken, and the tap is set to.
    negotiated: Negotiated,
    /// The longest finished frame, in bytes.
    frame_max: usize,
    /// A header and a frame on its way out.
    out: Box<[u8]>,
    /// A blank header and a segment cut out of that frame.
    segment: Box<[u8]>,
    /// A header and a frame on its way in, and a byte by which one that is too long is known.
    inward: Box<[u8]>,
    /// Bytes in `inward`, header included, that the guest has no buffers for yet. They are no state: like what
    /// is still in the tap they are lost with the host.
    waiting: Option<usize>,
    /// Frames, each behind its header, that come before those in the tap.
    ahead: VecDeque<Box<[u8]>>,
    /// Chains that the frame on its way in was put into.
    used: Box<[Used; QUEUE_MAX as usize]>,
    counters: NetCounters,
    limit: LogLimit,
}

/// What became of a frame for the guest.
enum Delivery {
    Done,
    /// The guest is to put more buffers there.
    Short,
    /// No number of buffers will do.
    TooLong,
}

impl Net {
    /// A device with this Ethernet address over this tap, for packets of up to `mtu_bytes`.
    ///
    /// # Errors
    /// When `tap` is none, or of another kind (see [`Tap::new`]).
    pub(in crate::machine) fn new(
        mac: [u8; 6],
        mtu_bytes: u16,
        offloads: Offloads,
        tap: OwnedFd,
    ) -> Result<Self> {
        Self::over(mac, mtu_bytes, offloads, Tap::new(tap)?)
    }

    fn over(mac: [u8; 6], mtu_bytes: u16, offloads: Offloads, tap: Tap) -> Result<Self> {
        let transport = Transport::new(Identity {
            name: "network device",
            device_id: VIRTIO_ID_NET,
            features: offloads.features(),
            requires: &REQUIRES,
            queues: 2,
            queue_max: QUEUE_MAX,
            // mac, status, max_virtqueue_pairs (neither of the two is offered), mtu
            config: [&mac[..], &[0; 4], &mtu_bytes.to_le_bytes()].concat(),
        })?;
        let frame_max = usize::from(mtu_bytes) + BEYOND_MTU;
        let (out, segment) = match offloads {
            Offloads::None => (frame_max, 0),
            Offloads::Segmentation => (UNCUT_MAX, frame_max),
        };
        let buffer = |frame: usize| vec![0; HEADER + frame].into_boxed_slice();
        Ok(Self {
            transport,
            tap,
            negotiated: Negotiated::default(),
            frame_max,
            out: buffer(out),
            segment: buffer(segment),
            inward: buffer(out + 1),
            waiting: None,
            ahead: VecDeque::new(),
            used: Box::new([Used::default(); QUEUE_MAX as usize]),
            limit: LogLimit::default(),
            counters: NetCounters::default(),
        })
    }

    pub(in crate::machine) fn counters(&self) -> NetCounters {
        self.counters
    }

    pub(in crate::machine) fn tap_fd(&self) -> RawFd {
        self.tap.as_raw_fd()
    }

    /// Sets the tap, and what is expected of frames, to what the driver has taken.
    fn settle(&mut self) -> io::Result<()> {
        self.negotiated = Negotiated(self.transport.negotiated());
        // It was for the driver before, which may have understood it.
        self.waiting = None;
        self.ahead.clear();
        self.tap.set_offloads(self.negotiated)
    }

    /// Has the guest given `frames`, each behind its header, before what is in the tap. They are forgotten with the
    /// driver they are for.
    pub(in crate::machine) fn give(&mut self, frames: impl Iterator<Item = Box<[u8]>>) {
        self.ahead.extend(frames);
    }

    /// Sends what the guest has put into its transmit queue.
    ///
    /// # Errors
    /// When the tap is gone or the interrupt cannot be raised.
    pub(in crate::machine) fn transmit(
        &mut self,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Progress> {
        let before = self.transport.queue(TRANSMIT).next_used();
        let outcome = self.transmit_some(ram);
        self.conclude(TRANSMIT, before, outcome, ram, interrupt).context("transmit")
    }

    /// Hands frames from the tap to the guest, and tells `given` of each that it was given, with its header before it.
    ///
    /// # Errors
    /// When the tap is gone or the interrupt cannot be raised.
    pub(in crate::machine) fn receive(
        &mut self,
        ram: &Ram,
        interrupt: &Interrupt,
        given: &mut dyn FnMut(&[u8]),
    ) -> Result<Progress> {
        let before = self.transport.queue(RECEIVE).next_used();
        let outcome = self.receive_some(ram, given);
        self.conclude(RECEIVE, before, outcome, ram, interrupt).context("receive")
    }

    fn transmit_some(&mut self, ram: &Ram) -> Result<Progress, Stop> {
        if !self.transport.is_live() {
            return Ok(Progress::Idle);
        }
        let longest = if self.negotiated.any_tcp() { UNCUT_MAX } else { self.frame_max };
        let mut budget = BUDGET;
        loop {
            while let Some(chain) = ring::next_chain(self.transport.queue(TRANSMIT), ram)? {
                let head = chain.head_index();
                let bytes = gather(chain, ram, &mut self.out[..HEADER + longest])?;
                let frames = self.send(bytes)?;
                ring::publish(self.transport.queue(TRANSMIT), ram, &[Used { head, len: 0 }])?;
                budget = budget.saturating_sub(frames);
                if budget == 0 {
                    return Ok(Progress::More);
                }
            }
            // Asks for a doorbell at the next frame, and finds one that came in the meantime.
            if !self.transport.queue(TRANSMIT).enable_notification(ram)? {
                return Ok(Progress::Idle);
            }
        }
    }

    /// Sends the frame of `bytes` (header included; `None` for more than there is room for) that is in
    /// `out`. How many frames that took, at least one.
    fn send(&mut self, bytes: Option<usize>) -> io::Result<usize> {
        let whole = bytes.and_then(|bytes| self.out.get_mut(..bytes));
        let Some((header, frame)) = whole.and_then(<[u8]>::split_first_chunk_mut::<HEADER>) else {
            self.counters.sent_dropped += 1;
            return Ok(1);
        };
        let job = match header::judge(header, frame, self.negotiated, self.frame_max) {
            Ok(job) => job,
            Err(Unfit::Length) => {
                self.counters.sent_dropped += 1;
                return Ok(1);
            }
            Err(Unfit::Header) => {
                self.counters.sent_refused += 1;
                return Ok(1);
            }
        };
        *header = [0; HEADER];
        let bytes = HEADER + frame.len();
        let (sent, frames) = match job {
            Job::Pass(written) => {
                *header = written;
                (self.tap.send(&self.out[..bytes])?, 1)
            }
            Job::Complete { start, at } => {
                segment::complete_checksum(frame, start, at);
                (self.tap.send(&self.out[..bytes])?, 1)
            }
            Job::Cut { tcp, size } => {
                let mut segments = Segments::new(frame, tcp, size);
                let (mut sent, mut frames) = (true, 0);
                while let Some(length) = segments.write_next(&mut self.segment[HEADER..]) {
                    sent &= self.tap.send(&self.segment[..HEADER + length])?;
                    frames += 1;
                }
                self.counters.sent_segments += frames as u64;
                (sent, frames)
            }
        };
        let counter = if sent { &mut self.counters.sent } else { &mut self.counters.sent_dropped };
        *counter += 1;
        Ok(frames)
    }

    fn receive_some(&mut self, ram: &Ram, given: &mut dyn FnMut(&[u8])) -> Result<Progress, Stop> {
        if !self.transport.is_live() {
            return Ok(Progress::Starved);
        }
        for _ in 0..BUDGET {
            // The buffer first: a frame without one stays in the tap, where the kernel counts it.
            let queue = self.transport.queue(RECEIVE);
            if !ring::has_chain(queue, ram)? && !queue.enable_notification(ram)? {
                self.counters.receive_starved += 1;
                return Ok(Progress::Starved);
            }
            let length = match self.waiting {
                Some(length) => length,
                None => match self.next_inward()? {
                    None => return Ok(Progress::Idle),
                    Some(length) if self.admit(length) => length,
                    Some(_) => {
                        self.counters.received_dropped += 1;
                        continue;
                    }
                },
            };
            self.waiting = None;
            match self.deliver(ram, length)? {
                Delivery::Done => {
                    self.counters.received += 1;
                    given(&self.inward[..length]);
                }
                Delivery::TooLong => self.counters.received_dropped += 1,
                Delivery::Short => {
                    self.waiting = Some(length);
                    self.counters.receive_starved += 1;
                    return Ok(Progress::Starved);
                }
            }
        }
        Ok(Progress::More)
    }

    /// Reads the next header and frame into `inward`, and returns their length together.
    fn next_inward(&mut self) -> io::Result<Option<usize>> {
        let Some(frame) = self.ahead.pop_front() else {
            return self.tap.receive(&mut self.inward);
        };
        self.counters.received_ahead += 1;
        // As a read would: of one that is too long as much as there is room for, by which it is known.
        let length = frame.len().min(self.inward.len());
        self.inward[..length].copy_from_slice(&frame[..length]);
        Ok(Some(length))
    }

    /// Returns whether the frame in `inward` is one for this driver, and makes its header fit the driver.
    fn admit(&mut self, length: usize) -> bool {
        let Some((header, rest)) = self.inward.split_first_chunk_mut::<HEADER>() else {
            return false;
        };
        // Room for one byte more than the longest frame: what fills it was longer.
        let Some(frame) = length.checked_sub(HEADER).filter(|length| *length < rest.len()) else {
            return false;
        };
        if let Some((start, at)) = header::to_complete(header, frame, self.negotiated) {
            segment::complete_checksum(&mut rest[..frame], start, at);
            *header = [0; HEADER];
        }
        let passed = header::for_guest(header, frame, self.negotiated, self.frame_max);
        passed.map(|passed| *header = passed).is_some()
    }

    /// Puts the first `length` bytes of `inward` into the guest's buffers, or takes none of them.
    fn deliver(&mut self, ram: &Ram, length: usize) -> Result<Delivery, Breach> {
        let queue = self.transport.queue(RECEIVE);
        let first = queue.next_avail();
        let chains_max = if self.negotiated.mergeable() { usize::from(queue.size()) } else { 1 };
        let mut scatter = Scatter::new(&self.inward[..length]);
        let mut chains = 0;
        while !scatter.is_done() {
            if chains == chains_max {
                queue.set_next_avail(first);
                return Ok(Delivery::TooLong);
            }
            // The doorbell is asked for with all buffers taken: the one that rings it is new.
            let mut chain = ring::next_chain(queue, ram)?;
            if chain.is_none() && queue.enable_notification(ram)? {
                chain = ring::next_chain(queue, ram)?;
            }
            let Some(chain) = chain else {
                queue.set_next_avail(first);
                return Ok(Delivery::Short);
            };
            let head = chain.head_index();
            let len = u32::try_from(scatter.fill(chain, ram)?).expect("a frame's length");
            self.used[chains] = Used { head, len };
            chains += 1;
        }
        if chains > 1 {
            scatter.say_buffers(ram, u16::try_from(chains).expect("chains of one ring"))?;
        }
        ring::publish(queue, ram, &self.used[..chains])?;
        Ok(Delivery::Done)
    }

    /// Tells the guest what happened to its queue, whose used index was `before`.
    fn conclude(
        &mut self,
        queue: usize,
        before: u16,
        outcome: Result<Progress, Stop>,
        ram: &Ram,
        interrupt: &Interrupt,
    ) -> Result<Progress> {
        let Self { transport, limit, .. } = self;
        let progress = ring::conclude(transport, limit, queue, before, outcome, ram, interrupt)?;
        Ok(progress.unwrap_or(Progress::Starved))
    }
}

impl Device for Net {
    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn write(&mut self, ram: &Ram, offset: u64, data: &[u8]) -> Effect {
        let effect = self.transport.write(ram, offset, data);
        match effect {
            Effect::Reset | Effect::Negotiated => match self.settle() {
                Ok(()) => effect,
                Err(e) => {
                    tracing::error!("network device: set the tap's offloads: {e}");
                    self.transport.break_down();
                    Effect::Broken
                }
            },
            Effect::None | Effect::Notify(_) | Effect::Broken => effect,
        }
    }

    fn restore(&mut self, ram: &Ram, state: &DeviceState) -> Result<()> {
        let lacks = offloads::names(state.driver_features & !self.transport.features());
        ensure!(
            lacks.is_empty(),
            "the guest has negotiated {lacks}, which this device does not offer: both hosts must run the same \
             engine of the gate"
        );
        self.transport.restore(ram, state)?;
        self.settle().context("set the tap's offloads")
    }
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
