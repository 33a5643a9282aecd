//! What a queue listener and the kernel say to each other (include/uapi/linux/netfilter/nfnetlink_queue.h).
//!
//! The kernel sends one message a frame: its id in the queue, counted from 1, and its mark. The listener answers with a
//! verdict on one id, or on all ids up to one, which is how an epoch leaves at once. Of the verdicts that netfilter
//! knows, two are here: the others skip rules that come later, and with them the second lock, or ask again.
//!
//! Deliberately absent: the frames' content (asked for is metadata only), and verdicts that change a frame.

use super::netlink::{ACK, Reply, Requests, attributes, replies};

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
const VERDICT_BATCH: u16 = SUBSYSTEM | 3;

/// Attributes of a packet or verdict.
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const MARK: u16 = 3;

/// Attributes of a configuration.
const COMMAND: u16 = 1;
const PARAMETERS: u16 = 2;
const MAX_LENGTH: u16 = 3;
const FLAG_MASK: u16 = 4;
const FLAGS: u16 = 5;

const BIND: u8 = 1;
const COPY_META: u8 = 1;
/// Give large frames whole, checksum still to be filled in, to the queue as they are.
const KEEP_OFFLOADS: u32 = 1 << 2;

/// The number of a queue in a network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueNumber(pub(super) u16);

/// The kernel's number of a frame in a queue. Goes on by one a frame and wraps around.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameId(pub(super) u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Verdict {
    Drop = 0,
    /// Goes on to the rules that follow the queue.
    Accept = 1,
}

/// What the kernel told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// A frame waits. A mark of 0 is none.
    Waits { queue: QueueNumber, id: FrameId, mark: u32 },
    /// An earlier request was refused: an errno. Of a verdict: no such frames wait (any more).
    Refused(i32),
}

/// Asks for the queue: it must be nobody's.
pub(super) fn bind(queue: QueueNumber) -> Requests {
    config(queue, |it| {
        it.attribute(COMMAND, &[BIND, 0, 0, 0]);
    })
}

/// Sets how the queue tells of its frames, and how many it takes.
pub(super) fn configure(queue: QueueNumber, max_frames: u32) -> Requests {
    config(queue, |it| {
        it.attribute(PARAMETERS, &[0, 0, 0, 0, COPY_META]);
        it.number(MAX_LENGTH, max_frames);
        it.number(FLAG_MASK, KEEP_OFFLOADS);
        it.number(FLAGS, KEEP_OFFLOADS);
    })
}

/// The verdict on every waiting frame up to and with `last`.
pub(super) fn verdict_up_to(queue: QueueNumber, verdict: Verdict, last: FrameId) -> Requests {
    judge(VERDICT_BATCH, queue, verdict, last)
}

/// The verdict on one waiting frame.
pub(super) fn verdict_on(queue: QueueNumber, verdict: Verdict, id: FrameId) -> Requests {
    judge(VERDICT, queue, verdict, id)
}

fn judge(kind: u16, queue: QueueNumber, verdict: Verdict, id: FrameId) -> Requests {
    let mut requests = Requests::default();
    let mut header = [0; 8];
    header[..4].copy_from_slice(&(verdict as u32).to_be_bytes());
    header[4..].copy_from_slice(&id.0.to_be_bytes());
    requests.message(kind, 0, 0, queue.0).attribute(VERDICT_HEADER, &header);
    requests
}

fn config(queue: QueueNumber, attributes: impl FnOnce(&mut Requests)) -> Requests {
    let mut requests = Requests::default();
    attributes(requests.message(CONFIG, ACK, 0, queue.0));
    requests
}

/// What one datagram tells, as far as it can be read.
pub(super) fn events(datagram: &[u8]) -> impl Iterator<Item = Event> {
    replies(datagram).filter_map(|reply| match reply {
        Reply::Data { kind: PACKET, resource, attributes, .. } => {
            waits(QueueNumber(resource), attributes)
        }
        Reply::Refused { errno, .. } => Some(Event::Refused(errno)),
        Reply::Data { .. } | Reply::Done | Reply::Interrupted => None,
    })
}

fn waits(queue: QueueNumber, bytes: &[u8]) -> Option<Event> {
    let (mut id, mut mark) = (None, 0);
    for (kind, value) in attributes(bytes) {
        let number = value.first_chunk().map(|number| u32::from_be_bytes(*number));
        match kind {
            PACKET_HEADER => id = number,
            MARK => mark = number?,
            // Interfaces, addresses, times: not asked for, nor looked at.
            _ => {}
        }
    }
    Some(Event::Waits { queue, id: FrameId(id?), mark })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUEUE: QueueNumber = QueueNumber(0x5d00);

    fn packet(id: u32, mark: Option<u32>) -> Vec<u8> {
        let mut requests = Requests::default();
        let header = [&id.to_be_bytes()[..], &[8, 0, 0]].concat();
        requests.message(PACKET, 0, 7, QUEUE.0).attribute(PACKET_HEADER, &header);
        if let Some(mark) = mark {
            requests.number(MARK, mark);
        }
        requests.attribute(10, &[9; 30]);
        requests.bytes().to_vec()
    }

    #[test]
    fn verdicts_have_their_golden_bytes() {
        let batch = verdict_up_to(QUEUE, Verdict::Accept, FrameId(0x0102_0304));
        let expected: &[u8] = &[
            32, 0, 0, 0, 3, 3, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x5d, 0, // header
            12, 0, 2, 0, 0, 0, 0, 1, 1, 2, 3, 4, // verdict, id
        ];
        assert_eq!(batch.bytes(), expected);
        let one = verdict_on(QUEUE, Verdict::Drop, FrameId(5));
        assert_eq!(one.bytes()[4..6], [1, 3]);
        assert_eq!(one.bytes()[20..], [12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    }

    #[test]
    fn a_frame_tells_its_id_and_mark_and_without_a_mark_it_is_0() {
        let datagram = [packet(3, Some(0x5d00_0009)), packet(4, None)].concat();
        let read: Vec<_> = events(&datagram).collect();
        let waits = |id, mark| Event::Waits { queue: QUEUE, id: FrameId(id), mark };
        assert_eq!(read, [waits(3, 0x5d00_0009), waits(4, 0)]);
    }

    #[test]
    fn a_frame_without_an_id_is_not_reported() {
        let mut requests = Requests::default();
        requests.message(PACKET, 0, 7, QUEUE.0).number(MARK, 1);
        assert_eq!(events(requests.bytes()).count(), 0);
    }

    proptest! {
        #[test]
        fn a_packet_that_is_cut_or_changed_is_read_or_left_and_never_a_panic(
            cut in 0usize..80, at in 0usize..80, to: u8,
        ) {
            let mut bytes = packet(7, Some(8));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            bytes.truncate(cut);
            prop_assert!(events(&bytes).count() <= 4);
        }
    }
}
