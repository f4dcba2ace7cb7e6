//! Path 1, step 10: every metric: name, unit, labels.
//!
//! Labels are bounded: queues and jobs are those that the operator serves, outcomes and kinds
//! are fixed words, modules are files of the jobs folders. Without an exporter each of them costs next to nothing.

use crate::clock::millis;
use std::time::Duration;

/// Counter, by `queue`: messages received.
pub const RECEIVED: &str = "sqjobs_messages_received_total";
/// Counter, by `queue`, `job`, `outcome`: attempts whose outcome is stored.
pub const ATTEMPTS: &str = "sqjobs_attempts_total";
/// Histogram in seconds, by `queue`, `job`: how long attempts took.
pub const DURATION: &str = "sqjobs_attempt_duration_seconds";
/// Counter, by `queue`: messages whose lease could not be held; their attempts were stopped.
pub const LEASES_LOST: &str = "sqjobs_leases_lost_total";
/// Counter, by `queue`, `kind`: messages and jobs put into the dead list.
pub const PUT_ASIDE: &str = "sqjobs_put_aside_total";
/// Counter, by `queue`: jobs parked in SQL, since the queue could not hold them any longer.
pub const PARKED: &str = "sqjobs_parked_total";
/// Counter, by `module`: files that were refused, once for each new reason.
pub const MODULES_REFUSED: &str = "sqjobs_modules_refused_total";

/// Counts an attempt whose outcome is stored.
pub(crate) fn attempt_settled(queue: &str, job: &str, outcome: &'static str, took: Duration) {
    let labels = [("queue", queue.to_owned()), ("job", job.to_owned())];
    metrics::histogram!(DURATION, &labels)
        .record(f64::from(u32::try_from(millis(took)).unwrap_or(u32::MAX)) / 1000.0);
    metrics::counter!(ATTEMPTS, "queue" => labels[0].1.clone(), "job" => labels[1].1.clone(), "outcome" => outcome)
        .increment(1);
}

/// Counts by queue.
pub(crate) fn count(name: &'static str, queue: &str, by: u64) {
    metrics::counter!(name, "queue" => queue.to_owned()).increment(by);
}

/// Counts what was put aside.
pub(crate) fn put_aside(queue: &str, kind: &'static str) {
    metrics::counter!(PUT_ASIDE, "queue" => queue.to_owned(), "kind" => kind).increment(1);
}

/// Counts a module's file that does not serve.
pub(crate) fn module_refused(module: String) {
    metrics::counter!(MODULES_REFUSED, "module" => module).increment(1);
}
