//! A part that is away for a while: said once when it goes and once when it is back, not at
//! each try.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

/// Shortest wait between two tries.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Notes failures of one activity.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    activity: Arc<str>,
    is_on: Arc<AtomicBool>,
    since: Arc<Mutex<Option<Instant>>>,
}

impl Outage {
    pub(crate) fn new(activity: &str) -> Self {
        Self { activity: activity.into(), is_on: Arc::default(), since: Arc::default() }
    }

    /// Notes a failure; the first one of an outage is logged.
    pub(crate) fn note(&self, error: &(dyn std::error::Error + 'static)) {
        if !self.is_on.swap(true, Ordering::SeqCst) {
            *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            warn!("cannot {} and will keep trying: {}", self.activity, chain(error));
        }
    }

    /// Whether the last try failed.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Notes a success; the end of an outage is logged.
    pub(crate) fn over(&self) {
        if self.is_on.load(Ordering::Relaxed) && self.is_on.swap(false, Ordering::SeqCst) {
            let since = self.since.lock().unwrap_or_else(PoisonError::into_inner).take();
            let secs = since.map_or(0, |since| since.elapsed().as_secs());
            info!("can {} again, after {secs} s", self.activity);
        }
    }
}

/// Waits that double, with jitter, up to 10 s.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = FIRST_WAIT.saturating_mul(1 << self.tries.min(10)).min(LONGEST_WAIT);
        self.tries = self.tries.saturating_add(1);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_ten_seconds_and_no_further() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] <= FIRST_WAIT && waits[0] >= FIRST_WAIT / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
        assert!(waits[39] >= LONGEST_WAIT / 2);
    }
}
