//! The checking client: long-lived connections that remember every request and reply, and a judge who reads
//! what they remember.
//!
//! [`history`] is pure: requests, replies, and whether they fit together. [`connection`] asks in a closed
//! loop, one request outstanding on each connection.

pub mod connection;
pub mod history;

pub use connection::{Client, Outcome};
pub use history::{Contradiction, Gap, History, Request, Verdict};
