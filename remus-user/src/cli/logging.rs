//! The log goes to stderr, and no thread waits for that: see [`outlet`].

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::outlet;

/// Starts the log with `filter`; without one with RUST_LOG, and without that at level info.
pub(super) fn start(filter: Option<&str>) -> Result<()> {
    // First, so that the error about a bad filter does not wait for a reader either.
    outlet::start_log().context("start the log")?;
    let from_environment = std::env::var("RUST_LOG").ok();
    let (text, source) = match (filter, &from_environment) {
        (Some(text), _) => (text, "--log"),
        (None, Some(text)) if !text.is_empty() => (text.as_str(), "RUST_LOG"),
        (None, Some(_) | None) => ("info", "the default"),
    };
    let filter = EnvFilter::try_new(text).with_context(|| {
        format!("{source}: {text:?} is not a log filter: write a level (warn) or target=level,... (remus::net=debug)")
    })?;
    // Colours are for a terminal: a file or a journal gets plain text.
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(Events)
        // The thread that logs would print its own errors to stderr, and wait.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// The log as the formatter writes to it: each event in one write.
#[derive(Clone, Copy)]
struct Events;

impl Write for Events {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        outlet::put_event(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Events {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
