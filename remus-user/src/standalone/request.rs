//! Reads the requests of the line protocol from bytes: pure, and bounded whatever a client sends.
//!
//! A request is one line of at most [`LINE_BYTES_MAX`] bytes, its end included: a word and at most one number, separated
//! by blanks. Numbers are decimal digits and nothing else. See docs/gate.md.

use std::time::Duration;

use remus_abi::Epoch;

/// The longest line in bytes, with its end.
pub(super) const LINE_BYTES_MAX: usize = 64;
/// The longest lease that can be asked for.
pub(super) const LEASE_MS_MAX: u64 = 60_000;

/// What a client may ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// Hold what the guest sends from now on.
    Hold,
    /// The guest is paused at a checkpoint: end the epoch.
    Seal,
    /// The checkpoint that ends this epoch is kept: release.
    Commit(Epoch),
    /// Release everything, and let new frames pass.
    Open,
    /// Drop new frames, and release nothing.
    Close,
    /// Discard what is held and not committed: the guest goes on from its committed checkpoint.
    Discard,
    /// Allow releases for so long from now.
    Lease(Duration),
    Status,
    Stats,
    /// Answer when the gate fills, so that the epoch is sealed early.
    Wait,
}

/// Why a line is not a request; the text is for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Malformed(pub(super) String);

/// Reads a line without its end.
pub(super) fn parse(line: &[u8]) -> Result<Request, Malformed> {
    let text = std::str::from_utf8(line)
        .ok()
        .filter(|text| text.chars().all(|c| matches!(c, ' '..='~' | '\t')))
        .ok_or_else(|| Malformed("a request is printable ASCII".to_owned()))?;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let request = match words.as_slice() {
        ["hold"] => Request::Hold,
        ["seal"] => Request::Seal,
        ["commit", epoch] => Request::Commit(self::epoch(epoch)?),
        ["open"] => Request::Open,
        ["close"] => Request::Close,
        ["discard"] => Request::Discard,
        ["lease", ms] => Request::Lease(lease(ms)?),
        ["status"] => Request::Status,
        ["stats"] => Request::Stats,
        ["wait"] => Request::Wait,
        _ => {
            return Err(Malformed(
                "requests are hold, seal, commit EPOCH, open, close, discard, lease MS, status, stats, wait"
                    .to_owned(),
            ));
        }
    };
    Ok(request)
}

/// Reads the epoch of a request. An epoch that has been sealed has a number from 1.
fn epoch(text: &str) -> Result<Epoch, Malformed> {
    number(text)
        .and_then(Epoch::new)
        .filter(|epoch| *epoch != Epoch::NONE)
        .ok_or_else(|| Malformed(format!("an epoch is a number from 1 to {}", Epoch::MAX)))
}

fn lease(text: &str) -> Result<Duration, Malformed> {
    number(text)
        .filter(|ms| (1..=LEASE_MS_MAX).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| Malformed(format!("a lease is 1 to {LEASE_MS_MAX} milliseconds")))
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_request_is_read() {
        let epoch = Epoch::new(17).unwrap();
        for (line, request) in [
            ("hold", Request::Hold),
            ("seal", Request::Seal),
            ("commit 17", Request::Commit(epoch)),
            ("  commit\t00017 ", Request::Commit(epoch)),
            ("open", Request::Open),
            ("close", Request::Close),
            ("discard", Request::Discard),
            ("lease 250", Request::Lease(Duration::from_millis(250))),
            ("status", Request::Status),
            ("stats", Request::Stats),
            ("wait", Request::Wait),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(request), "{line}");
        }
    }

    #[test]
    fn whatever_is_not_exactly_a_request_is_none() {
        for line in [
            "",
            " ",
            "SEAL",
            "seal 1",
            "seal\r",
            "commit",
            "commit 0",
            "commit -1",
            "commit +1",
            "commit 1.0",
            "commit 0x1",
            "commit 1 2",
            "commit 1099511627776",
            "commit 99999999999999999999999999",
            "lease 0",
            "lease 60001",
            "hold\0",
            "commit \u{661}",
            "open;close",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?}");
        }
        assert!(parse(&[0xff, 0xfe]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..LINE_BYTES_MAX)) {
            parse(&line).ok();
        }
    }
}
