//! How the attempts of one version ended, counted for canaries.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::outcome::{Cause, Outcome};

/// Counts since it was last taken.
#[derive(Debug, Default)]
pub struct Tally {
    runs: AtomicU64,
    failures: AtomicU64,
}

impl Tally {
    /// Notes an attempt that ended by itself. One that was stopped, or that asked to run later,
    /// says nothing of its version.
    pub fn note(&self, outcome: &Outcome) {
        let is_failure = match outcome {
            Outcome::Success(_) => false,
            Outcome::Failed(failure) => match failure.cause {
                Cause::RetryAfter(_) => return,
                _ => true,
            },
            Outcome::Interrupted | Outcome::Cancelled | Outcome::LeaseLost => return,
        };
        self.runs.fetch_add(1, Ordering::Relaxed);
        if is_failure {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes what was counted: runs and failures.
    pub(super) fn take(&self) -> (u64, u64) {
        (self.runs.swap(0, Ordering::Relaxed), self.failures.swap(0, Ordering::Relaxed))
    }

    /// Puts back what could not be kept.
    pub(super) fn put_back(&self, (runs, failures): (u64, u64)) {
        self.runs.fetch_add(runs, Ordering::Relaxed);
        self.failures.fetch_add(failures, Ordering::Relaxed);
    }
}
