//! What each signal does.
