//! A refused message changes nothing.
