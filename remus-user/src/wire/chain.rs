//! The digest of everything a session has carried.

use xxhash_rust::xxh3::xxh3_64;

use super::{Digest, Frame, Kind, Session};

/// The running digest of a bulk connection, the same at both ends.
///
/// It begins with the session and takes in the kind and checksum of every frame that carries content
/// (`BootPages`, `BootState`, `SyncPages`, `Begin`, `Pages`, `State`); a checksum covers its frame, so each byte is
/// hashed once. `End` carries the value reached, which is then the digest of its checkpoint and the predecessor
/// digest that the next `Begin` must name. The digest of checkpoint n therefore covers that of n-1, back to the sync.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Chain(u64);

impl Chain {
    pub fn new(session: Session) -> Self {
        Self(link(0, 0, session.get()))
    }

    /// Takes in a frame of `kind` whose header carries `checksum`.
    pub fn absorb(&mut self, kind: Kind, checksum: u64) {
        self.0 = link(self.0, kind as u16, checksum);
    }

    /// Takes in a frame that arrived.
    pub fn absorb_frame(&mut self, frame: &Frame<'_>) {
        self.absorb(frame.kind, frame.checksum);
    }

    pub fn digest(&self) -> Digest {
        Digest(self.0)
    }
}

fn link(before: u64, kind: u16, checksum: u64) -> u64 {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&before.to_le_bytes());
    bytes[8..10].copy_from_slice(&kind.to_le_bytes());
    bytes[10..].copy_from_slice(&checksum.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_kind_and_session_all_count() {
        let run = |session, frames: &[(Kind, u64)]| {
            let mut chain = Chain::new(Session::new(session).unwrap());
            frames.iter().for_each(|(kind, sum)| chain.absorb(*kind, *sum));
            chain.digest()
        };
        let a = run(1, &[(Kind::Pages, 5), (Kind::State, 6)]);
        assert_eq!(a, run(1, &[(Kind::Pages, 5), (Kind::State, 6)]));
        assert_ne!(a, run(1, &[(Kind::State, 6), (Kind::Pages, 5)]));
        assert_ne!(a, run(1, &[(Kind::Pages, 6), (Kind::State, 5)]));
        assert_ne!(a, run(2, &[(Kind::Pages, 5), (Kind::State, 6)]));
        assert_ne!(a, run(1, &[(Kind::Pages, 5)]));
    }
}
