//! A takeover does not fail on what could have been known before.
