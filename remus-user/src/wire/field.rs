//! One codec per kind of field, so that no message says the same thing twice.

use std::time::Duration;

use remus_abi::{Epoch, Term};

use super::{
    Digest, Feature, Features, Frame, Instance, Kind, Moment, Nonce, Session, VmId, WireError,
};

/// A value that has a form on the wire.
pub(super) trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(body: &mut Reader<'_>) -> Result<Self, WireError>;
}

/// What is left of a body. Every read is checked; running out is [`WireError::Short`].
#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// What the session has.
    features: Features,
    /// The first feature whose field was looked for, and which the session does not have.
    absent: Option<Feature>,
}

impl<'a> Reader<'a> {
    /// Reads bytes that have no fields of features.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, features: Features::NONE, absent: None }
    }

    pub(super) fn of(frame: &Frame<'a>) -> Self {
        Self { features: frame.features, ..Self::new(frame.body) }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or(WireError::Short)?;
        self.bytes = rest;
        Ok(head)
    }

    /// Reads a field that is there exactly when the session has `feature`.
    pub(super) fn field_of<T: Field>(&mut self, feature: Feature) -> Result<Option<T>, WireError> {
        if self.features.has(feature) {
            return T::take(self).map(Some);
        }
        self.absent.get_or_insert(feature);
        Ok(None)
    }

    /// Skips what a sender that named `theirs` may have put behind the fields that are known here.
    pub(super) fn skip_unknown(&mut self, theirs: Features) {
        if theirs.has_unknown() {
            self.rest();
        }
    }

    /// A `u16` length, at most `max`, then so many bytes.
    pub(super) fn run(&mut self, max: usize) -> Result<&'a [u8], WireError> {
        let len = usize::from(u16::take(self)?);
        if len > max {
            return Err(WireError::Value("length of a run of bytes"));
        }
        self.bytes(len)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The body of a `kind` must be used up. What is left of it may be a field of a feature that the session lacks.
    pub(super) fn end(self, kind: Kind) -> Result<(), WireError> {
        match self.absent {
            _ if self.is_empty() => Ok(()),
            Some(feature) => Err(WireError::Feature { kind, feature }),
            None => Err(WireError::Trailing),
        }
    }
}

/// The counterpart of [`Reader::run`].
///
/// # Panics
/// When the run is longer than `max`: the sender composes it, so that is a bug here.
pub(super) fn put_run(out: &mut Vec<u8>, bytes: &[u8], max: usize) {
    assert!(bytes.len() <= max, "{} bytes where the protocol has room for {max}", bytes.len());
    u16::try_from(bytes.len()).expect("every run's limit is below 64 KiB").put(out);
    out.extend_from_slice(bytes);
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Field for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
                let bytes = body.bytes(size_of::<$int>())?;
                Ok(<$int>::from_le_bytes(bytes.try_into().expect("as long as asked for")))
            }
        }
    )*};
}
integers!(u16, u32, u64, u128);

impl Field for Features {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        u64::take(body).map(Self)
    }
}

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        match body.bytes(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(WireError::Value("a truth value")),
        }
    }
}

/// Newtypes over an integer: how to get at it, and how to make one of what arrived.
macro_rules! newtypes {
    ($($name:ty: $int:ty, $get:expr, $make:expr;)*) => {$(
        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let get: fn(&$name) -> $int = $get;
                get(self).put(out);
            }
            fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
                let make: fn($int) -> Option<$name> = $make;
                make(<$int>::take(body)?).ok_or(WireError::Value(stringify!($name)))
            }
        }
    )*};
}
newtypes! {
    Term: u32, |t| t.get(), Term::new;
    Epoch: u64, |e| e.get(), Epoch::new;
    Session: u64, |s| s.get(), Session::new;
    Instance: u64, |i| i.get(), Instance::new;
    Nonce: u64, |n| n.get(), Nonce::new;
    VmId: u128, |id| id.get(), VmId::new;
    Digest: u64, |d| d.0, |n| Some(Digest(n));
    Moment: u64, |m| m.0, |n| Some(Moment(n));
    Duration: u64, |d| u64::try_from(d.as_nanos()).expect("spans are checked to be short"), |n| Some(Duration::from_nanos(n));
}

/// A struct whose fields are all [`Field`]s, in the order written.
macro_rules! fields {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.put(out);)*
            }
            fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
                $(let $field = Field::take(body)?;)*
                Ok(Self { $($field),* })
            }
        }
    )*};
}
pub(super) use fields;
