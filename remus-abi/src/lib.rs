//! What crosses a border between the crates of Remus, and nothing else.
//!
//! `remus-user` (the host), `remus-ebpf` (the gate in the kernel) and `remus-guest` (the demo guest)
//! are built for three targets. The numbers and layouts on which two of them must agree live here, so that each has one
//! definition: [`Term`], [`Epoch`] and [`Stamp`], and the rule of release ([`may_leave`]); the values in the gate's maps
//! ([`gate`]); the tables of what its programs count ([`counters`]); the marks of frames that netfilter holds
//! ([`queue`]); the values of the program that measures the gate ([`sink`]); the commit ack as a datagram ([`ack`])
//! and the hash that proves it ([`siphash`]); the block through which the VMM greets a bare-metal guest ([`boot`]); the
//! marks by which a beacon frame is known on the wire ([`beacon`]).
//!
//! Deliberately absent: the replication protocol (`remus-user`'s `wire`: both of its ends are hosts), and
//! anything that allocates.
#![no_std]

pub mod ack;
pub mod beacon;
pub mod boot;
pub mod counters;
pub mod gate;
mod kept;
pub mod queue;
pub mod sink;
pub mod siphash;
mod stamp;

pub use kept::{Kept, Release, Turns, may_leave, releasable};
pub use stamp::{Epoch, Stamp, Term};
