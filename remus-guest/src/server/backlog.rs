//! What stands in for a listen backlog.
//!
//! smoltcp has none: a SYN that finds no listening socket is answered by a reset, and the client is told
//! that nobody serves there. A server whose sockets are only busy, most of them waiting for the last
//! acknowledgement of a connection that is over, should be silent instead; the client's SYN comes again.
//! So the device that smoltcp sees here is the real one, seen through a [`Backlog`], which hides from it the
//! SYNs for which there is no socket.

use smoltcp::phy::{Device, DeviceCapabilities, RxToken};
use smoltcp::time::Instant;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A device that shows at most `listening` SYNs.
pub(super) struct Backlog<'d, D> {
    pub(super) device: &'d mut D,
    pub(super) port: u16,
    pub(super) listening: usize,
}

/// A frame that has come.
pub(super) struct Arrival<'b, R> {
    token: R,
    port: u16,
    listening: &'b mut usize,
}

impl<D: Device> Device for Backlog<'_, D> {
    type RxToken<'a>
        = Arrival<'a, D::RxToken<'a>>
    where
        Self: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (token, room) = self.device.receive(now)?;
        Some((Arrival { token, port: self.port, listening: &mut self.listening }, room))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.device.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

impl<R: RxToken> RxToken for Arrival<'_, R> {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, f: F) -> T {
        let Self { token, port, listening } = self;
        token.consume(|frame| {
            if !begins_connection(frame, port) {
                return f(frame);
            }
            match listening.checked_sub(1) {
                Some(left) => {
                    *listening = left;
                    f(frame)
                }
                // smoltcp passes over an empty frame.
                None => f(&[]),
            }
        })
    }
}

/// Whether the frame is a SYN to `port`. It may be anything; what is not whole is not one.
fn begins_connection(frame: &[u8], port: u16) -> bool {
    let Some((ethernet, ip)) = frame.split_at_checked(ETHERNET) else { return false };
    if ethernet[12..] != IPV4 || ip.len() < 20 || ip[9] != TCP {
        return false;
    }
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    match ip.get(header_len..) {
        Some([_, _, high, low, tcp @ ..]) if tcp.len() >= 16 => {
            u16::from_be_bytes([*high, *low]) == port && tcp[9] & (SYN | ACK) == SYN
        }
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(port: u16, flags: u8) -> [u8; 54] {
        let mut frame = [0; 54];
        frame[12..14].copy_from_slice(&IPV4);
        frame[14] = 0x45;
        frame[23] = TCP;
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[47] = flags;
        frame
    }

    #[test]
    fn only_a_syn_to_the_port_begins_a_connection() {
        assert!(begins_connection(&segment(6379, SYN), 6379));
        assert!(!begins_connection(&segment(6379, SYN | ACK), 6379));
        assert!(!begins_connection(&segment(6379, ACK), 6379));
        assert!(!begins_connection(&segment(6380, SYN), 6379));
        assert!(!begins_connection(&segment(6379, SYN)[..47], 6379));
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(mut frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            begins_connection(&frame, 1);
            if frame.len() > 24 {
                frame[12..14].copy_from_slice(&IPV4);
                frame[23] = TCP;
                begins_connection(&frame, 1);
            }
        }
    }
}
