//! Logs on stderr.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

/// Starts logging with `filter`, else with RUST_LOG, else at info.
pub(super) fn start(filter: Option<&str>) -> Result<()> {
    let from_environment = std::env::var("RUST_LOG").ok();
    let (text, source) = match (filter, &from_environment) {
        (Some(text), _) => (text, "--log"),
        (None, Some(text)) if !text.is_empty() => (text.as_str(), "RUST_LOG"),
        (None, Some(_) | None) => ("info", "the default"),
    };
    let filter = EnvFilter::try_new(text).with_context(|| {
        format!("{source}: {text:?} is no filter: write a level (warn) or target=level,... (remus::net=debug)")
    })?;
    // Colours are for people who look on: a file or a journal gets plain text.
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(io::stderr)
        .init();
    Ok(())
}
