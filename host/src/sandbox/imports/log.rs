//! `log`: lines for the operator's log, kept with the attempt.

use std::sync::PoisonError;

use tracing::{debug, error, info, trace, warn};

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
        let mut line = message;
        for (key, value) in fields {
            line.push_str(&format!(" {key}={value}"));
            if line.len() > MAX_LINE_BYTES {
                break;
            }
        }
        let line = cut(line, MAX_LINE_BYTES);
        let (name, text) = (level_name(level), printable_block(&line));
        let is_kept = {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if target == PANIC {
                said.panic = Some(line.clone());
            }
            said.keep(&format!("{name}: {text}"), self.limits.log_bytes)
        };
        if is_kept {
            let label = &self.label;
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

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Trace => "TRACE",
        Level::Debug => "DEBUG",
        Level::Info => "INFO",
        Level::Warn => "WARN",
        Level::Error => "ERROR",
    }
}
