//! `log`: lines for the operator's log, kept with the attempt.

use std::sync::PoisonError;

use tracing::{debug, error, info, trace, warn};

use crate::failpoint;
use crate::sandbox::bindings::sqjobs::job::log::{Host, Level};
use crate::sandbox::context::AttemptContext;
use crate::text::{cut, printable, printable_block};

/// Longest line that is taken, in bytes.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Target under which the SDK tells the message of a panic, just before the trap.
const PANIC: &str = "panic";

impl Host for AttemptContext {
    fn write(
        &mut self,
        level: Level,
        target: String,
        message: String,
        fields: Vec<(String, String)>,
    ) -> wasmtime::Result<()> {
        failpoint::reach("logging", &self.label.job);
        if target != PANIC && self.is_silenced() {
            return Ok(()); // a flood costs no more than the call itself
        }
        let mut line = message;
        for (key, value) in fields {
            line.push_str(&format!(" {key}={value}"));
            if line.len() > MAX_LINE_BYTES {
                break;
            }
        }
        let line = cut(self.grants.redacted(line), MAX_LINE_BYTES);
        let (name, text) = (level_name(level), printable_block(&line));
        let is_kept = {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if target == PANIC {
                said.panic = Some(panic_message(&line));
            }
            said.keep(&format!("{name}: {text}"), self.limits.log_bytes)
        };
        // Without a job's id it is `describe` that speaks: its error will say so.
        if is_kept && !self.label.job_id.is_empty() {
            let (label, target) = (&self.label, self.grants.redact(&target));
            macro_rules! tell {
                ($event:ident) => {
                    $event!(
                        target: "sqjobs::guest",
                        {
                            job.id = %printable(&label.job_id), module = %label.module,
                            attempt = label.attempt, guest.target = %printable(&target)
                        },
                        "{}: {}", printable(&label.job), printable(&line)
                    )
                };
            }
            match level {
                Level::Trace => tell!(trace),
                Level::Debug => tell!(debug),
                Level::Info => tell!(info),
                Level::Warn => tell!(warn),
                Level::Error => tell!(error),
            }
        }
        Ok(())
    }
}

impl AttemptContext {
    /// Whether the attempt has said all that it may.
    fn is_silenced(&self) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).is_full
    }
}

/// A panic's message with its place behind it, from `panicked at PLACE:` and the message in the
/// line below, as Rust tells them.
fn panic_message(told: &str) -> String {
    let parted = told.strip_prefix("panicked at ").and_then(|rest| rest.split_once(":\n"));
    match parted {
        Some((place, message)) => format!("panic: {message} (at {place})"),
        None => told.to_owned(),
    }
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Trace => "TRACE",
        Level::Debug => "DEBUG",
        Level::Info => "INFO",
        Level::Warn => "WARN",
        Level::Error => "ERROR",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_by_its_message_first() {
        assert_eq!(
            panic_message("panicked at src/lib.rs:1:2:\nno way"),
            "panic: no way (at src/lib.rs:1:2)"
        );
        assert_eq!(panic_message("anything else"), "anything else");
    }
}
