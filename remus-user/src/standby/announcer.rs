//! Tells switches where the guest's address is: as soon as the guest may be heard here, and a few times more.
//!
//! Neighbours need not be told, since the address is the same. What is said goes into the tap as if the guest had sent
//! it, so a gate that holds keeps it until its epoch is committed. Only the engine's thread speaks here: the gate's
//! buffer has one producer.

use std::{fs::File, io::Write, os::fd::OwnedFd, time::Duration};

use crate::{
    net::{Mac, Station, VNET_HEADER_BYTES, announce},
    wire::Moment,
};

/// When, from the first time on: a switch that is busy with the death of a link may miss some.
const AT: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1250),
];

pub(crate) struct Announcer {
    /// The guest's end of the tap. It does not block.
    tap: File,
    frame: Vec<u8>,
    first: Option<Moment>,
    said: usize,
}

impl Announcer {
    pub(super) fn new(tap: OwnedFd, mac: Mac) -> Self {
        let mut frame = vec![0; VNET_HEADER_BYTES];
        frame.extend(announce::rarp(Station { mac, vlan: None }));
        Self { tap: tap.into(), frame, first: None, said: 0 }
    }

    /// Says what is due. To be called often while the gate is not closed.
    pub(crate) fn poll(&mut self, now: Moment) {
        while let Some(at) = AT.get(self.said) {
            if now < *self.first.get_or_insert(now) + *at {
                return;
            }
            self.said += 1;
            // A frame that the tap does not take is said again, and the guest will speak for itself.
            self.tap.write_all(&self.frame).ok();
        }
    }

    /// Begins anew: the guest is behind another port than before.
    pub(crate) fn again(&mut self) {
        (self.first, self.said) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_announcement_is_made_at_once_and_three_times_more() {
        let (mut tap, theirs) = std::io::pipe().unwrap();
        let mut announcer = Announcer::new(theirs.into(), Mac([2, 0, 0, 0, 0, 1]));
        let length = announcer.frame.len();
        let poll = |announcer: &mut Announcer, ms: u64| {
            announcer.poll(Moment(ms * 1_000_000));
            announcer.said
        };
        let said: Vec<_> =
            [5000, 5040, 5050, 5240, 5260, 9000, 9999].map(|ms| poll(&mut announcer, ms)).into();
        assert_eq!(said, [1, 1, 2, 2, 3, 4, 4]);
        announcer.again();
        assert_eq!(poll(&mut announcer, 20_000), 1);
        let mut frames = vec![0; 5 * length];
        tap.read_exact(&mut frames).unwrap();
        assert!(frames.chunks(length).all(|frame| frame == announcer.frame));
    }
}
