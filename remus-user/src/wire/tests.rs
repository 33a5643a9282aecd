//! The protocol as bytes: what was agreed for this version, and what a hostile peer may try.

use std::{num::NonZeroU16, time::Duration};

use proptest::prelude::*;
use remus_abi::{Epoch, Term, ack::AckKey};

use super::{
    field::{Field, Reader, fields},
    *,
};

use crate::names::VmName;

mod features;

/// One frame a line, `name hex`, as this version has them.
const GOLDEN: &str = include_str!("../../../tests/golden/wire-v7.txt");

/// What the sessions of these tests have.
const AGE: Features = Features::of(&[Feature::EngineAge]);
const LANES: [Lane; 4] =
    [Lane::ControlToBackup, Lane::ControlToPrimary, Lane::BulkToBackup, Lane::BulkToPrimary];

/// A message of the feature of the same name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Trial {
    term: Term,
}

fields! {
    Trial { term }
}

fn term(n: u32) -> Term {
    Term::new(n).unwrap()
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

fn session() -> Session {
    Session::new(0x0102_0304_0506_0708).unwrap()
}

fn to_backup() -> Vec<ToBackup> {
    vec![
        ToBackup::Hello(Hello {
            vm: VmName::new("web-1").unwrap(),
            session: session(),
            features: AGE,
            id: VmId::new(0x3132_3334_3536_3738_4142_4344_4546_4748).unwrap(),
            nonce: Nonce::new(0xaabb).unwrap(),
            ancestry: ancestry(),
            term: term(3),
            ram_pages: 32_768,
            timing: Timing::default(),
            acks_to: Some(AckTo {
                port: NonZeroU16::new(7001).unwrap(),
                key: AckKey([0x1112_1314_1516_1718, 0x2122_2324_2526_2728]),
            }),
            shape: vec![1, 2, 3],
            cpu: vec![4; 5],
        }),
        ToBackup::Heartbeat(heartbeat(Some(Duration::from_millis(13)))),
        ToBackup::Goodbye(Goodbye { term: term(3), epoch: epoch(9), why: GoodbyeWhy::PowerOff }),
        ToBackup::Inbound(Inbound { term: term(3), frames: inbound_frames() }),
    ]
}

fn heartbeat(engine_age: Option<Duration>) -> Heartbeat {
    Heartbeat { term: term(3), seq: 77, sent: Moment(1_000_000), engine_age }
}

/// Two terms: of the first neither speaker nor last epoch is known.
fn ancestry() -> Ancestry {
    let (old, of) = (TermId { term: term(1), nonce: None }, Nonce::new(0x51).unwrap());
    Ancestry::none().spoken_in(old).spoken_in(TermId::new(term(2), of)).ended_with(epoch(57))
}

fn inbound_frames() -> InboundFrames {
    let mut frames = InboundFrames::default();
    frames.push(epoch(9), &[1, 2, 3]);
    frames.push(epoch(10), &[4; 5]);
    frames
}

fn to_primary() -> Vec<ToPrimary> {
    vec![
        ToPrimary::Welcome(Welcome {
            session: session(),
            features: AGE,
            backup: Instance::new(0xccdd).unwrap(),
            ancestry: ancestry(),
        }),
        ToPrimary::Refuse(Refuse::new(Refusal::OutdatedTerm, term(4), "too late")),
        ToPrimary::Refuse(Refuse::new(Refusal::Split, term(2), "choose").with(ancestry())),
        ToPrimary::HeartbeatAck(HeartbeatAck { term: term(3), seq: 77, sent: Moment(1_000_000) }),
        ToPrimary::GoodbyeAck(GoodbyeAck { term: term(3), epoch: epoch(9) }),
        ToPrimary::StandDown(StandDown { ancestry: ancestry() }),
        ToPrimary::Lacks(Lacks::new("br0 is not there")),
    ]
}

fn begin() -> Begin {
    Begin {
        session: session(),
        term: term(3),
        epoch: epoch(9),
        predecessor: epoch(8),
        predecessor_digest: Digest(0x1122),
        sent: Moment(5),
        pages_max: 1000,
        state_len: 8192,
        reset: true,
    }
}

fn end() -> End {
    End { epoch: epoch(9), pages: 990, digest: Digest(0x3344) }
}

fn ack() -> Ack {
    Ack {
        session: session(),
        term: term(3),
        epoch: epoch(9),
        digest: Digest(0x3344),
        sent: Moment(5),
    }
}

fn raw(kind: Kind, body: &[u8]) -> Vec<u8> {
    let (header, _) = head(kind, std::iter::once(body));
    [&header[..], body].concat()
}

/// Every message once: its lane and its frame.
fn every_frame() -> Vec<(Lane, Vec<u8>)> {
    let framed = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        out
    };
    let mut frames = Vec::new();
    frames.extend(
        to_backup().iter().map(|m| (Lane::ControlToBackup, framed(&|out| _ = m.encode(out)))),
    );
    frames.extend(
        to_primary().iter().map(|m| (Lane::ControlToPrimary, framed(&|out| _ = m.encode(out)))),
    );
    let bulk = Lane::BulkToBackup;
    frames.push((bulk, framed(&|out| _ = Attach { session: session() }.encode(out))));
    frames.push((bulk, raw(Kind::BootPages, &[7, 8])));
    frames.push((bulk, raw(Kind::BootState, &[9])));
    frames.push((bulk, raw(Kind::SyncPages, &[1, 2, 3])));
    frames.push((bulk, framed(&|out| _ = begin().encode(out))));
    frames.push((bulk, raw(Kind::Pages, &[4, 5])));
    frames.push((bulk, raw(Kind::State, &[6])));
    frames.push((bulk, framed(&|out| _ = end().encode(out))));
    frames.push((Lane::BulkToPrimary, framed(&|out| _ = ack().encode(out))));
    frames
}

/// What arrives in a session with all features.
fn buffer_of(lane: Lane, bytes: &[u8]) -> FrameBuffer {
    buffer_with(AGE, lane, bytes)
}

fn buffer_with(features: Features, lane: Lane, bytes: &[u8]) -> FrameBuffer {
    let mut buffer = FrameBuffer::new(lane);
    buffer.agree(features);
    buffer.space()[..bytes.len()].copy_from_slice(bytes);
    buffer.filled(bytes.len());
    buffer
}

/// Whether the frame decodes on its lane.
fn decodes(lane: Lane, frame: &Frame<'_>) -> Result<(), WireError> {
    match lane {
        Lane::ControlToBackup => ToBackup::decode(frame).map(drop),
        Lane::ControlToPrimary => ToPrimary::decode(frame).map(drop),
        Lane::BulkToBackup => BulkToBackup::decode(frame).map(drop),
        Lane::BulkToPrimary => BulkToPrimary::decode(frame).map(drop),
        Lane::Trial => OnTrial::decode(frame).map(drop),
    }
}

fn error_of(lane: Lane, bytes: &[u8]) -> WireError {
    error_with(AGE, lane, bytes)
}

fn error_with(features: Features, lane: Lane, bytes: &[u8]) -> WireError {
    let mut buffer = buffer_with(features, lane, bytes);
    match buffer.next_frame() {
        Err(error) => error,
        Ok(frame) => decodes(lane, &frame.expect("a whole frame")).expect_err("it is wrong"),
    }
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    for message in to_backup() {
        let mut out = Vec::new();
        message.encode(&mut out);
        let mut buffer = buffer_of(Lane::ControlToBackup, &out);
        assert_eq!(ToBackup::decode(&buffer.next_frame().unwrap().unwrap()), Ok(message));
    }
    for message in to_primary() {
        let mut out = Vec::new();
        message.encode(&mut out);
        let mut buffer = buffer_of(Lane::ControlToPrimary, &out);
        assert_eq!(ToPrimary::decode(&buffer.next_frame().unwrap().unwrap()), Ok(message));
    }
    let mut out = Vec::new();
    begin().encode(&mut out);
    let checksum = end().encode(&mut out);
    let mut buffer = buffer_of(Lane::BulkToBackup, &out);
    let begun = BulkToBackup::decode(&buffer.next_frame().unwrap().unwrap());
    assert_eq!(begun, Ok(BulkToBackup::Begin(begin())));
    let frame = buffer.next_frame().unwrap().unwrap();
    let ended = BulkToBackup::decode(&frame);
    assert_eq!((frame.checksum, ended), (checksum, Ok(BulkToBackup::End(end()))));
}

#[test]
fn the_bytes_are_those_of_this_version() {
    let golden: Vec<_> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    let frames = every_frame();
    let now: Vec<_> = frames
        .iter()
        .map(|(lane, bytes)| {
            let mut buffer = buffer_of(*lane, bytes);
            let kind = buffer.next_frame().unwrap().unwrap().kind;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{kind:?} {hex}")
        })
        .collect();
    assert_eq!(
        golden,
        now,
        "changed bytes need a new WIRE_VERSION; the new lines:\n{}",
        now.join("\n")
    );
}

#[test]
fn a_frame_on_the_wrong_lane_is_refused() {
    for (lane, bytes) in every_frame() {
        for wrong in LANES.into_iter().filter(|other| *other != lane) {
            // The header alone tells: a body may be longer than that lane has room for.
            let found = error_of(wrong, &bytes[..HEADER_LEN]);
            assert!(matches!(found, WireError::Lane { .. }), "{found}");
        }
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    for (lane, bytes) in every_frame() {
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            let mut buffer = buffer_of(lane, &flipped);
            // A longer length may make the frame wait for bytes that never come; all else is an error.
            match buffer.next_frame() {
                Err(_) => {}
                Ok(frame) => assert!(frame.is_none() && (8..12).contains(&at), "byte {at}"),
            }
        }
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_the_body_is_there() {
    let mut bytes = raw(Kind::Pages, &[]);
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = WireError::TooLong { kind: Kind::Pages, len: u32::MAX };
    assert_eq!(buffer_of(Lane::BulkToBackup, &bytes).next_frame().unwrap_err(), refused);
}

#[test]
fn another_version_is_named_and_only_its_refusal_is_understood() {
    let theirs = WIRE_VERSION + 1;
    let mut bytes = raw(Kind::Ack, &[]);
    bytes[4..6].copy_from_slice(&theirs.to_le_bytes());
    assert_eq!(error_of(Lane::BulkToPrimary, &bytes), WireError::Version { theirs });
    let mut body = Vec::new();
    ToPrimary::Refuse(Refuse::new(Refusal::Version, Term::NONE, "no")).encode(&mut body);
    body.drain(..HEADER_LEN);
    let mut refusal = raw(Kind::Refuse, &body);
    refusal[4..6].copy_from_slice(&theirs.to_le_bytes());
    let sum = xxhash_rust::xxh3::xxh3_64(&[&refusal[..16], &body].concat());
    refusal[16..24].copy_from_slice(&sum.to_le_bytes());
    let mut buffer = buffer_of(Lane::ControlToPrimary, &refusal);
    assert!(matches!(
        ToPrimary::decode(&buffer.next_frame().unwrap().unwrap()),
        Ok(ToPrimary::Refuse(_))
    ));
}

#[test]
fn zero_names_nothing_on_the_wire() {
    assert_eq!(
        error_of(Lane::BulkToBackup, &raw(Kind::Attach, &[0; 8])),
        WireError::Value("Session")
    );
    let mut zeroed = raw(Kind::Attach, &[0; 8]);
    zeroed[6] = 0;
    assert_eq!(error_of(Lane::BulkToBackup, &zeroed), WireError::Kind { number: 0 });
    let refuse = raw(Kind::Refuse, &[0; 8]);
    assert_eq!(error_of(Lane::ControlToPrimary, &refuse), WireError::Value("Refusal"));
}

#[test]
fn a_key_without_a_port_is_refused_and_neither_is_fine() {
    let mut hello = to_backup().remove(0);
    let ToBackup::Hello(inner) = &mut hello else { panic!("a hello") };
    inner.acks_to = None;
    let mut out = Vec::new();
    hello.encode(&mut out);
    let mut buffer = buffer_of(Lane::ControlToBackup, &out);
    assert_eq!(ToBackup::decode(&buffer.next_frame().unwrap().unwrap()), Ok(hello));

    // Behind session, features, term, nonce, id, pages, five spans and the port comes the key.
    let mut body = out[HEADER_LEN..].to_vec();
    body[8 + 8 + 4 + 8 + 16 + 4 + 40 + 2] = 1;
    let error = error_of(Lane::ControlToBackup, &raw(Kind::Hello, &body));
    assert_eq!(error, WireError::Value("AckTo"));
}

#[test]
fn spans_beyond_reason_are_carried_but_fail_their_check() {
    let mut hello = to_backup().remove(0);
    if let ToBackup::Hello(hello) = &mut hello {
        hello.timing.detect = Duration::from_nanos(u64::MAX);
    }
    let mut out = Vec::new();
    hello.encode(&mut out);
    let mut buffer = buffer_of(Lane::ControlToBackup, &out);
    let Ok(ToBackup::Hello(hello)) = ToBackup::decode(&buffer.next_frame().unwrap().unwrap())
    else {
        panic!("a hello")
    };
    assert_eq!(hello.timing.check(), Err(TimingError::OutOfRange));
}

proptest! {
    #[test]
    fn no_bytes_panic(lane in 0usize..4, kind in 0u16..50, body in proptest::collection::vec(any::<u8>(), 0..120), noise in proptest::collection::vec(any::<u8>(), 0..60)) {
        let lane = LANES[lane];
        // A frame whose checksum holds, of any kind and content, and noise after it.
        let mut bytes = raw(Kind::Pages, &body);
        bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        let sum = xxhash_rust::xxh3::xxh3_64(&[&bytes[..16], &body].concat());
        bytes[16..24].copy_from_slice(&sum.to_le_bytes());
        bytes.extend(noise);
        bytes.truncate(lane.body_max() + HEADER_LEN);
        let mut buffer = buffer_of(lane, &bytes);
        while let Ok(Some(frame)) = buffer.next_frame() {
            _ = decodes(lane, &frame);
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive(
        lens in proptest::collection::vec(0usize..300_000, 1..12),
        cuts in proptest::collection::vec(1usize..700_000, 1..12),
    ) {
        let stream: Vec<u8> = lens.iter().flat_map(|len| raw(Kind::Pages, &vec![9; *len])).collect();
        let (mut buffer, mut rest, mut seen) = (FrameBuffer::new(Lane::BulkToBackup), &stream[..], Vec::new());
        for cut in cuts.iter().cycle() {
            let space = buffer.space();
            prop_assert!(!space.is_empty());
            let len = (*cut).min(rest.len()).min(space.len());
            space[..len].copy_from_slice(&rest[..len]);
            buffer.filled(len);
            rest = &rest[len..];
            while let Some(frame) = buffer.next_frame().unwrap() {
                seen.push(frame.body.len());
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(seen, lens);
    }
}
