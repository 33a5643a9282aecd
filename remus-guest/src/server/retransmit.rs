//! When unacknowledged segments are sent again.
//!
//! smoltcp's timer begins at one second, doubles to a minute, and cannot be set. That suits no guest whose
//! host may die: what the dead host had not let out is sent again by the promoted guest, and each second
//! of patience there is a second of silence for its clients. So each connection has a [`Watch`] here. It
//! fires [`FIRST_NS`] after the peer last acknowledged something that moves the connection on, and then
//! each [`AGAIN_NS`], without backing off: at most 2.5 segments a second go to a peer that is away. After
//! a restore the clock has jumped beyond every deadline, and everything in doubt is sent at once.
//!
//! How a socket is made to send again: the [`Rewinder`] takes it out of its set and shows it, alone, a
//! time at which its timer has certainly expired, on a device that takes no frame. smoltcp then does what
//! it does at an expiry, which is to forget that the segments were sent, and finds that it cannot send
//! now. Back in its set the socket sends them in the next ordinary round, at the ordinary time.
//!
//! Left to smoltcp: fast retransmission, zero-window probes, TIME-WAIT.

use alloc::vec::Vec;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use super::instant;

/// First retransmission, after the last progress.
pub(super) const FIRST_NS: u64 = 200_000_000;
/// Every other retransmission, after the one before.
pub(super) const AGAIN_NS: u64 = 400_000_000;
/// So many in a row, five minutes, and the peer is gone.
pub(super) const GIVE_UP: u32 = 750;
/// Beyond smoltcp's longest retransmission timeout, 60 s.
const FAR: Duration = Duration::from_secs(61);

/// What an acknowledgement changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) state: tcp::State,
    /// Bytes acknowledged since the connection began.
    pub(super) acked: u64,
}

/// How long one connection has waited for an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Watch {
    #[default]
    Quiet,
    Waiting {
        mark: Mark,
        since_ns: u64,
        /// Retransmissions since the last progress.
        forced: u32,
    },
}

impl Watch {
    /// Takes note of what the connection waits for, if for anything.
    pub(super) fn observe(&mut self, waits_for: Option<Mark>, now_ns: u64) {
        match (&self, waits_for) {
            (_, None) => *self = Self::Quiet,
            (Self::Waiting { mark, .. }, Some(new)) if *mark == new => {}
            (_, Some(mark)) => *self = Self::Waiting { mark, since_ns: now_ns, forced: 0 },
        }
    }

    pub(super) fn due_ns(&self) -> Option<u64> {
        match self {
            Self::Quiet => None,
            Self::Waiting { since_ns, forced: 0, .. } => Some(since_ns + FIRST_NS),
            Self::Waiting { since_ns, .. } => Some(since_ns + AGAIN_NS),
        }
    }

    /// A retransmission was made.
    pub(super) fn forced(&mut self, now_ns: u64) {
        if let Self::Waiting { since_ns, forced, .. } = self {
            *since_ns = now_ns;
            *forced += 1;
        }
    }

    pub(super) fn is_hopeless(&self) -> bool {
        matches!(self, Self::Waiting { forced, .. } if *forced >= GIVE_UP)
    }
}

/// What `socket` waits for, if it has sent something that is not acknowledged. `written` is how many bytes
/// were given to it since the connection began.
pub(super) fn waits_for(socket: &tcp::Socket<'_>, written: u64) -> Option<Mark> {
    let state = socket.state();
    let queued = socket.send_queue() as u64;
    let waits = match state {
        tcp::State::Closed | tcp::State::Listen | tcp::State::TimeWait => false,
        // Nothing of ours is on its way, but a peer that never ends its half must not keep the socket.
        tcp::State::FinWait2 => true,
        // The SYN or FIN is unacknowledged for as long as the state lasts.
        tcp::State::SynSent
        | tcp::State::SynReceived
        | tcp::State::FinWait1
        | tcp::State::Closing
        | tcp::State::LastAck => true,
        tcp::State::Established | tcp::State::CloseWait => queued > 0,
    };
    waits.then(|| Mark { state, acked: written - queued })
}

/// Makes sockets forget that they have sent what is not acknowledged.
pub(super) struct Rewinder {
    alone: SocketSet<'static>,
}

impl Rewinder {
    pub(super) fn new() -> Self {
        Self { alone: SocketSet::new(Vec::with_capacity(1)) }
    }

    pub(super) fn rewind(
        &mut self,
        iface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        handle: SocketHandle,
        now_ns: u64,
    ) {
        let alone = self.alone.add(sockets.remove(handle));
        let polled = iface.poll_egress(instant(now_ns) + FAR, &mut Shut, &mut self.alone);
        assert_eq!(polled, PollResult::None, "a device that takes nothing was given a frame");
        let back = sockets.add(self.alone.remove(alone));
        assert_eq!(back, handle, "the only free place in the set is the one it came from");
    }
}

/// A device that takes no frame and has none.
struct Shut;

/// A token of [`Shut`]; there are none.
enum Never {}

impl Device for Shut {
    type RxToken<'a> = Never;
    type TxToken<'a> = Never;

    fn receive(&mut self, _: Instant) -> Option<(Never, Never)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Never> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps
    }
}

impl RxToken for Never {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _: F) -> R {
        match self {}
    }
}

impl TxToken for Never {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}
