//! The log subscriber.

use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;

/// Starts logging to standard error: our own lines from `level` on, those of libraries from
/// `warn` on. Colour only on a terminal.
pub fn start(format: LogFormat, level: Level) {
    use std::io::IsTerminal as _;
    let libraries = if level >= Level::DEBUG { Level::INFO } else { level.min(Level::WARN) };
    let filter = Targets::new()
        .with_target("sqjobs", level)
        .with_target("sqjobs_host", level)
        // What it would log reaches us as an error too, and is told there once.
        .with_target("sqlx", LevelFilter::OFF)
        .with_default(libraries);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        // It would tell on standard error that standard error can't be written, and panic.
        .log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Fails only when a subscriber is set already, as in tests: then that one stays.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
