//! A line of log costs no VM.
