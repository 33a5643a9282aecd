//! The buffer of an outlet.

use super::{CAPACITY, Kind};

/// Text that waits for its file, bounded by [`CAPACITY`].
pub(super) struct Room {
    kind: Kind,
    waiting: Vec<u8>,
    /// The number of bytes that were taken out and are not dealt with yet.
    under_way: u64,
    /// The number of units that found no room after what waits.
    missing: u64,
}

impl Room {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, waiting: Vec::with_capacity(CAPACITY), under_way: 0, missing: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of bytes that wait.
    pub(super) fn len(&self) -> u64 {
        self.waiting.len() as u64
    }

    pub(super) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Takes what there is room for, and returns the number of units that are lost.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u64 {
        let room = CAPACITY - self.waiting.len();
        let kept = match self.kind {
            Kind::Log if bytes.len() > room => 0,
            Kind::Log | Kind::Console => room.min(bytes.len()),
        };
        self.waiting.extend_from_slice(&bytes[..kept]);
        let lost = self.kind.measure(&bytes[kept..]);
        self.missing += lost;
        lost
    }

    /// Moves what waits into `taken`, whose buffer is used again. Returns the number of units that are missing after that.
    pub(super) fn take(&mut self, taken: &mut Vec<u8>) -> u64 {
        taken.clear();
        std::mem::swap(&mut self.waiting, taken);
        self.under_way = taken.len() as u64;
        std::mem::take(&mut self.missing)
    }

    /// Notes that what was taken is dealt with, and returns the number of its bytes.
    pub(super) fn dealt_with(&mut self) -> u64 {
        std::mem::take(&mut self.under_way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_kept_whole_or_lost_whole() {
        let mut room = Room::new(Kind::Log);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let kept = (0..1000).filter(|_| room.put(&line) == 0).count();
        assert_eq!(kept, CAPACITY / line.len());
        assert_eq!(room.put(b"short\nones\n"), 0, "what still fits is kept");
        let mut taken = Vec::with_capacity(CAPACITY);
        assert_eq!(room.take(&mut taken), 1000 - kept as u64);
        assert_eq!(taken.len(), kept * line.len() + 11);
        assert_eq!(room.put(&vec![b'x'; CAPACITY + 1]), 1, "longer than all the room");
        assert!(room.is_empty());
    }

    #[test]
    fn a_console_keeps_as_many_bytes_as_there_is_room_for() {
        let mut room = Room::new(Kind::Console);
        assert_eq!(room.put(&vec![b'x'; CAPACITY - 1]), 0);
        assert_eq!(room.put(b"abc"), 2);
        let mut taken = Vec::new();
        assert_eq!((room.take(&mut taken), taken.last()), (2, Some(&b'a')));
        assert_eq!((room.dealt_with(), room.dealt_with()), (CAPACITY as u64, 0));
    }
}
