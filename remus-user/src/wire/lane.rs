//! The messages of each lane, with their codecs: made from the [table of kinds](super::kind).

#[cfg(test)]
pub use super::tests::Trial;
use super::{
    Ack, Attach, Begin, End, Frame, Goodbye, GoodbyeAck, HEADER_LEN, Heartbeat, HeartbeatAck,
    Hello, Inbound, Kind, Lacks, Refuse, StandDown, Welcome, WireError,
    field::{Field, Reader},
    head,
    kind::table,
};

/// Makes, for each lane, the enum of its messages with `encode` and `decode`.
macro_rules! messages {
    ($(
        $(#[doc = $doc:literal])*
        $(#[cfg($lane_cfg:meta)])?
        lane $lane:ident up to $body_max:expr => $messages:ident $(<$a:lifetime>)? {$(
            $(#[cfg($cfg:meta)])? $number:literal $kind:ident $body:ident $(<$b:lifetime>)? $(if $feature:ident)?;
        )*}
    )*) => {
        $(
            $(#[doc = $doc])*
            $(#[cfg($lane_cfg)])?
            #[derive(Clone, PartialEq, Eq, Hash, Debug)]
            #[allow(
                clippy::large_enum_variant,
                reason = "a message is taken apart where it is decoded"
            )]
            pub enum $messages $(<$a>)? {$(
                $kind(body_of!($body $(<$b>)? $kind)),
            )*}

            $(#[cfg($lane_cfg)])?
            impl $(<$a>)? $messages $(<$a>)? {
                /// Appends the message as a frame, and returns its checksum.
                pub fn encode(&self, out: &mut Vec<u8>) -> u64 {
                    match self {$(
                        Self::$kind(body) => put_frame(out, Kind::$kind, body),
                    )*}
                }

                /// Decodes a frame of this lane. What is inside of `bytes` is not looked at here.
                ///
                /// # Errors
                /// [`WireError`] when the body is not what its kind says, or the kind is another lane's.
                pub fn decode(frame: &Frame<$($a)?>) -> Result<Self, WireError> {
                    match frame.kind {
                        $(Kind::$kind => decode_as!($body frame).map(Self::$kind),)*
                        kind => Err(WireError::Lane { kind }),
                    }
                }
            }

            $( $(#[cfg($cfg)])? encode_alone!($body $kind); )*
        )*
    };
}

macro_rules! body_of {
    (message $message:ident) => {
        $message
    };
    (bytes<$a:lifetime> $kind:ident) => {
        &$a[u8]
    };
}

macro_rules! decode_as {
    (message $frame:ident) => {
        whole($frame)
    };
    (bytes $frame:ident) => {
        Ok($frame.body)
    };
}

macro_rules! encode_alone {
    (message $message:ident) => {
        impl $message {
            /// Appends the message as a frame, and returns its checksum: for the [`Chain`](super::Chain) of a bulk
            /// connection.
            pub fn encode(&self, out: &mut Vec<u8>) -> u64 {
                put_frame(out, Kind::$message, self)
            }
        }
    };
    (bytes $kind:ident) => {};
}

table!(messages);

/// Appends a frame of `kind`, and returns its checksum.
fn put_frame(out: &mut Vec<u8>, kind: Kind, body: &impl Body) -> u64 {
    let at = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    body.put_body(out);
    let (header, checksum) = head(kind, std::iter::once(&out[at + HEADER_LEN..]));
    out[at..at + HEADER_LEN].copy_from_slice(&header);
    checksum
}

/// Decodes a body that must be used up.
fn whole<T: Field>(frame: &Frame<'_>) -> Result<T, WireError> {
    let mut body = Reader::of(frame);
    let message = T::take(&mut body)?;
    body.end(frame.kind)?;
    Ok(message)
}

/// What a frame may carry: a message, or bytes that are encoded elsewhere.
trait Body {
    fn put_body(&self, out: &mut Vec<u8>);
}

impl<T: Field> Body for T {
    fn put_body(&self, out: &mut Vec<u8>) {
        self.put(out);
    }
}

impl Body for &[u8] {
    fn put_body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}
