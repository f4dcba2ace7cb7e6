//! Path 1, step 10: every metric: name, unit, labels.
//!
//! Labels are bounded: queues and jobs are those that the operator serves, outcomes and kinds
//! are fixed words, modules are files of the jobs folders. Without an exporter each of them costs next to nothing.

use std::time::Duration;

use crate::broker::Depth;
use crate::clock::millis;

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

/// Gauge: attempts that may run at once.
pub const SLOTS: &str = "sqjobs_slots";
/// Gauge: slots that nobody uses.
pub const SLOTS_UNUSED: &str = "sqjobs_slots_unused";
/// Gauge: messages held, running or waiting for their turn.
pub const HELD: &str = "sqjobs_messages_held";
/// Gauge: attempts that run.
pub const RUNNING: &str = "sqjobs_attempts_running";
/// Gauge, by `queue`: 1 while the queue is paused.
pub const PAUSED: &str = "sqjobs_queue_paused";
/// Gauge, by `queue`, `state` (`visible`, `in-flight`, `delayed`): messages in the queue, looked
/// at every 30 s.
pub const MESSAGES: &str = "sqjobs_queue_messages";

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

/// Sets a gauge.
pub(crate) fn gauge(name: &'static str, value: f64) {
    metrics::gauge!(name).set(value);
}

/// Sets a gauge of a queue.
pub(crate) fn queue_gauge(name: &'static str, queue: &str, value: f64) {
    metrics::gauge!(name, "queue" => queue.to_owned()).set(value);
}

/// Sets the gauges of a queue's depth.
pub(crate) fn depth(queue: &str, depth: Depth) {
    let Depth { visible, in_flight, delayed } = depth;
    for (state, count) in [("visible", visible), ("in-flight", in_flight), ("delayed", delayed)] {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a double")]
        metrics::gauge!(MESSAGES, "queue" => queue.to_owned(), "state" => state).set(count as f64);
    }
}

/// What a metric counts, for people.
#[must_use]
pub fn help(name: &str) -> &'static str {
    match name {
        RECEIVED => "Messages received.",
        ATTEMPTS => "Attempts whose outcome is stored.",
        DURATION => "How long attempts took.",
        LEASES_LOST => "Messages whose lease could not be held.",
        PUT_ASIDE => "Messages and jobs put into the dead list.",
        PARKED => "Jobs parked in SQL.",
        MODULES_REFUSED => "Module files refused, once for each new reason.",
        SLOTS => "Attempts that may run at once.",
        SLOTS_UNUSED => "Slots that nobody uses.",
        HELD => "Messages held, running or waiting for their turn.",
        RUNNING => "Attempts that run.",
        PAUSED => "1 while the queue is paused.",
        MESSAGES => "Messages in the queue, as the broker tells it; approximate on SQS.",
        _ => "",
    }
}
