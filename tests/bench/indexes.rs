//! What the indexes for lists and pruning cost each job.

use std::time::Instant;

use support::sqs::SqsQueue;

use crate::bench::{Bench, body, wait_until_empty};

/// Those of migration 6.
const INDEXES: [&str; 7] = [
    "jobs_to_stop",
    "jobs_finished",
    "jobs_pruned",
    "jobs_by_name",
    "jobs_by_queue",
    "jobs_by_status",
    "jobs_by_error",
];
/// Runs of each kind, in turn.
const RUNS: usize = 3;

/// Recorded jobs that lie on the queue when the worker starts, with and without the indexes.
pub(crate) fn indexes(host: &str, module: &str, count: usize) {
    for turn in 0..RUNS * 2 {
        let has_indexes = turn % 2 == 0;
        let bench = Bench::new(host, module);
        let mut sql = bench.sql();
        if !has_indexes {
            for name in INDEXES {
                sql.run(&format!("DROP INDEX {{p}}{name}"), 1);
            }
        }
        let queue = SqsQueue::unique();
        queue.send_many(&body("adder_job", "[1, 2, 3, 4]", "{}"), count);
        let mut worker = bench.worker(&[&queue], &[]);
        let begun = Instant::now();
        wait_until_empty(&queue);
        let took = begun.elapsed().as_secs_f64();
        worker.terminate();
        let what = if has_indexes { "with the indexes" } else { "without them" };
        #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let rate = count as f64 / took;
        println!("{count} jobs on {} {what}: {took:.2} s, {rate:.0} a second", bench.database());
    }
}
