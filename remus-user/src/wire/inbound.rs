//! Frames that the guest was given, on their way to its backup.
//!
//! A guest that goes on from a checkpoint has never seen what came after it, though whoever sent that has it acknowledged
//! at best, and else waits for a timer of some 200 ms. So the primary passes on what it gives to the guest, and a
//! promoted backup gives it again. Nothing waits for it and nothing depends on it: what is missing was lost as on a wire,
//! what comes twice came twice as on a wire.

use remus_abi::{Epoch, Term};

use super::{
    CONTROL_BODY_MAX, WireError,
    field::{Field, Reader},
};

/// Frames in the order in which the guest was given them, each with the epoch in which it was.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct InboundFrames {
    /// Per frame: epoch u64, length u16, its bytes. As on the wire.
    records: Vec<u8>,
}

/// What the guest was given lately.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Inbound {
    pub term: Term,
    pub frames: InboundFrames,
}

impl InboundFrames {
    /// Bytes that the frames of one message may take, their records included.
    pub const BYTES_MAX: usize = CONTROL_BODY_MAX - size_of::<u32>();
    const HEAD: usize = size_of::<u64>() + size_of::<u16>();

    /// None so far, and room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { records: Vec::with_capacity(bytes) }
    }

    /// Bytes that a frame of `length` takes; `None` if it is too long for any message.
    pub fn bytes_of(length: usize) -> Option<usize> {
        u16::try_from(length).ok().map(|_| Self::HEAD + length).filter(|n| *n <= Self::BYTES_MAX)
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn clear(&mut self) {
        self.records.clear();
    }

    /// Appends a frame.
    ///
    /// # Panics
    /// When it is longer than [`bytes_of`](Self::bytes_of) has a number for.
    pub fn push(&mut self, epoch: Epoch, frame: &[u8]) {
        let length = u16::try_from(frame.len()).expect("the caller asked for its size");
        epoch.put(&mut self.records);
        length.put(&mut self.records);
        self.records.extend_from_slice(frame);
    }

    /// Appends all frames of `later`.
    pub fn append(&mut self, later: &Self) {
        self.records.extend_from_slice(&later.records);
    }

    /// Drops the frames of epochs up to `epoch`, as far as they stand before all others.
    pub fn drop_until(&mut self, epoch: Epoch) {
        let old = self.iter().take_while(|(of, _)| *of <= epoch);
        let bytes: usize = old.map(|(_, frame)| Self::HEAD + frame.len()).sum();
        self.records.drain(..bytes);
    }

    /// Each frame, with its epoch.
    pub fn iter(&self) -> impl Iterator<Item = (Epoch, &[u8])> + Clone {
        let mut reader = Reader::new(&self.records);
        std::iter::from_fn(move || record(&mut reader).ok())
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let records = body.rest();
        let mut reader = Reader::new(records);
        while !reader.is_empty() {
            record(&mut reader)?;
        }
        Ok(Self { records: records.to_vec() })
    }
}

fn record<'a>(reader: &mut Reader<'a>) -> Result<(Epoch, &'a [u8]), WireError> {
    Ok((Epoch::take(reader)?, reader.run(InboundFrames::BYTES_MAX)?))
}

impl Field for Inbound {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { term, frames } = self;
        term.put(out);
        out.extend_from_slice(&frames.records);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { term: Field::take(body)?, frames: InboundFrames::take(body)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    fn three() -> InboundFrames {
        let mut frames = InboundFrames::default();
        frames.push(epoch(1), b"one");
        frames.push(epoch(1), b"");
        frames.push(epoch(3), b"three");
        frames
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let all: Vec<_> = [(epoch(1), &b"one"[..]), (epoch(1), b""), (epoch(3), b"three")].into();
        assert_eq!(three().iter().collect::<Vec<_>>(), all);
        let sizes = all.iter().map(|(_, frame)| InboundFrames::bytes_of(frame.len()).unwrap());
        assert_eq!(three().bytes(), sizes.sum::<usize>());
    }

    #[test]
    fn a_committed_epoch_takes_its_frames_along() {
        let left = |until| {
            let mut frames = three();
            frames.drop_until(epoch(until));
            frames.iter().map(|(epoch, _)| epoch.get()).collect::<Vec<_>>()
        };
        assert_eq!([left(0), left(1), left(2), left(3)], [vec![1, 1, 3], vec![3], vec![3], vec![]]);
    }

    #[test]
    fn a_frame_that_no_message_can_carry_has_no_size() {
        let longest = InboundFrames::BYTES_MAX - InboundFrames::HEAD;
        assert_eq!(InboundFrames::bytes_of(longest), Some(InboundFrames::BYTES_MAX));
        assert_eq!(InboundFrames::bytes_of(longest + 1), None);
        assert_eq!(InboundFrames::bytes_of(usize::MAX), None);
    }

    #[test]
    fn records_that_end_too_early_are_refused() {
        let mut body = Vec::new();
        Inbound { term: Term::FIRST, frames: three() }.put(&mut body);
        let whole = Inbound::take(&mut Reader::new(&body)).unwrap();
        assert_eq!(whole.frames, three());
        for short in 1..b"three".len() {
            let body = &body[..body.len() - short];
            assert_eq!(Inbound::take(&mut Reader::new(body)), Err(WireError::Short));
        }
    }
}
