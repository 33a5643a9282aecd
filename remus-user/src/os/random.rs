//! Names and secrets that nobody else has, from the kernel's generator.

use remus_abi::ack::AckKey;

use crate::names::{Instance, Nonce, Session, VmId};

/// A session that nobody else has.
pub(crate) fn fresh_session() -> Session {
    fresh(Session::new)
}

/// An identity that nobody else has.
pub(crate) fn fresh_instance() -> Instance {
    fresh(Instance::new)
}

/// A name for a speaker that nobody else has.
pub(crate) fn fresh_nonce() -> Nonce {
    fresh(Nonce::new)
}

/// The id of a VM that has never run.
pub(crate) fn fresh_vm_id() -> VmId {
    let word = || u128::from(random());
    VmId::new(word() << 64 | word()).unwrap_or_else(fresh_vm_id)
}

/// A secret that nobody can guess: from the kernel's generator, which is seeded before it gives anything.
pub(crate) fn fresh_key() -> AckKey {
    AckKey([random(), random()])
}

/// The first random number that names something.
fn fresh<T>(name: impl Fn(u64) -> Option<T>) -> T {
    loop {
        if let Some(named) = name(random()) {
            return named;
        }
    }
}

/// A random word.
fn random() -> u64 {
    loop {
        let mut bytes = [0u8; 8];
        // SAFETY: a buffer of that length, alive during the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Up to 256 bytes come whole or not at all (man 2 getrandom); not at all means that a signal came.
        assert!(got == 8 || got == -1, "getrandom gives all or nothing");
        if got == 8 {
            return u64::from_ne_bytes(bytes);
        }
    }
}
