//! Where the acks of a session are to be sent as datagrams too, and what proves them.

use std::num::NonZeroU16;

use remus_abi::ack::AckKey;

use super::{
    WireError,
    field::{Field, Reader},
};

/// Each commit ack is also to come as a datagram (`remus_abi::ack`), to this UDP port of the address from which
/// the control connection came, tagged with this key. The key is of one session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AckTo {
    pub port: NonZeroU16,
    pub key: AckKey,
}

/// Always 18 bytes: the port, 0 for "no datagrams", then the key's two words, 0 without a port.
impl Field for Option<AckTo> {
    fn put(&self, out: &mut Vec<u8>) {
        let (port, AckKey([low, high])) = match self {
            Some(AckTo { port, key }) => (port.get(), *key),
            None => (0, AckKey([0, 0])),
        };
        port.put(out);
        low.put(out);
        high.put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let port = NonZeroU16::new(u16::take(body)?);
        let key = [u64::take(body)?, u64::take(body)?];
        match (port, key) {
            (Some(port), key) => Ok(Some(AckTo { port, key: AckKey(key) })),
            (None, [0, 0]) => Ok(None),
            (None, _) => Err(WireError::Value("AckTo")),
        }
    }
}
