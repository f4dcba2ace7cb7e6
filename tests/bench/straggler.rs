//! One slow job among many quick ones: a worker that waits for the slowest of a batch shows here.

use std::time::{Duration, Instant};

use support::sqs::SqsQueue;

use crate::bench::{Bench, body, wait_for, wait_until_empty};

const SLOW: Duration = Duration::from_secs(60);
const QUICK: Duration = Duration::from_millis(10);
const QUICK_JOBS: u32 = 999;

/// With the default settings, where the slow job should be all that is waited for; and with two
/// slots, of which the quick jobs should keep the other one busy without a pause.
pub(crate) fn straggler(host: &str, module: &str) {
    for arguments in [&[][..], &["--concurrency", "2"]] {
        let bench = Bench::new(host, module);
        let queue = SqsQueue::unique();
        let job =
            |time: Duration| body("effect", "[]", &format!(r#"{{"ms": {}}}"#, time.as_millis()));
        let mut worker = bench.worker(&[&queue], arguments);
        queue.send(&job(SLOW));
        let slow_runs = |worker: &support::WorkerProcess| {
            worker.log().iter().any(|line| line.contains(": begun "))
        };
        wait_for("the slow job", || slow_runs(&worker));
        let begun = Instant::now();
        queue.send_many(&job(QUICK), QUICK_JOBS as usize);
        wait_for("the quick jobs", || queue.depth().iter().sum::<u64>() <= 1);
        let quick = begun.elapsed();
        wait_until_empty(&queue);
        let all = begun.elapsed();
        worker.terminate();
        let slots = if arguments.is_empty() { 64 } else { 2 };
        let ideal = QUICK * QUICK_JOBS / (slots - 1);
        println!(
            "1 job of 60 s among 999 of 10 ms, {slots} slots: all after {:.1} s ({:.0}% of ideal), \
             the quick ones after {:.2} s (ideal {:.2} s)",
            all.as_secs_f64(),
            100.0 * SLOW.as_secs_f64() / all.as_secs_f64(),
            quick.as_secs_f64(),
            ideal.as_secs_f64(),
        );
    }
}
