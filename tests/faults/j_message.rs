//! Messages say what is, and what to do.
