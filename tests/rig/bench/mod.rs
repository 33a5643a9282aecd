//! `remus-rig bench`: what a part of Remus costs, against the same work without it.
//!
//! [`mod@gate`] puts the gate beside the same bridge without one; [`mod@checkpoint`] a protected guest beside the same
//! guest alone, and a pause beside the least that one can take; [`mod@lab`] puts a protected Linux guest beside others'
//! ways to do the same. All take turns with what they compare, several rounds of it, and tell medians ([`figures`]),
//! claims and a drawing ([`svg`]) in one form ([`report`]).

pub mod checkpoint;
pub mod gate;
pub mod lab;

mod figures;
mod report;
mod stage;
mod svg;

use std::{fs, io};

use anyhow::{Context, Result};

use crate::sys;

/// All of `these`, another one first in each round. Rounds are counted from 1.
fn in_turn<T>(round: u32, these: &'static [T]) -> impl Iterator<Item = &'static T> + use<T> {
    let first = (round as usize - 1) % these.len();
    these[first..].iter().chain(&these[..first])
}

/// Lets what else runs on this machine wait. Threads made from here on inherit it.
fn come_first() -> Result<()> {
    const NICENESS: libc::c_int = -15;
    sys::be_nice(NICENESS).context("take a higher priority")?;
    // Where sessions are scheduled as groups, niceness counts within the group only. A session of our own: the one
    // that started us, and what else runs in it, stays as it is. Signals come by way of the nest's outer process.
    sys::begin_session().context("begin a session")?;
    match fs::write("/proc/self/autogroup", NICENESS.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.context("take a higher priority as a session"),
    }
}
