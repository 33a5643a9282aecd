//! Logs on stderr.

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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}
