//! Workers that end: by a kill, until their jobs run elsewhere; by SIGTERM, until they are gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use support::WorkerProcess;
use support::sqs::SqsQueue;

use crate::bench::{Bench, body, wait_for};
use crate::figures::tell;

/// Jobs of a killed worker.
const JOBS: usize = 8;

/// From the kill of a worker to the moment when each of its jobs runs on another one, with the
/// default lease. The runs stand side by side, since each is mostly waiting.
pub(crate) fn failover(host: &str, module: &str, runs: usize) {
    let all: Vec<usize> = (0..runs).collect();
    let times = std::sync::Mutex::new(Vec::new());
    support::side_by_side(&all, runs, |_| {
        let bench = Bench::new(host, module);
        let queue = SqsQueue::unique();
        queue.send_many(&body("effect", "[]", r#"{"ms": 120000}"#), JOBS);
        let mut first = bench.worker(&[&queue], &[]);
        wait_for("the jobs of the first worker", || begun(&first) == JOBS);
        let mut second = bench.worker(&[&queue], &[]);
        first.kill();
        let killed_at = Instant::now();
        let mut seen: HashMap<usize, Duration> = HashMap::new();
        wait_for("its jobs on the other", || {
            for number in 0..begun(&second) {
                seen.entry(number).or_insert_with(|| killed_at.elapsed());
            }
            seen.len() == JOBS
        });
        times.lock().unwrap().extend(seen.into_values());
        second.kill();
    });
    tell("from a kill until its jobs run again", times.into_inner().unwrap());
}

/// From SIGTERM to the end of the process: of an idle worker, and of one whose every slot runs a
/// job of 100 ms while more wait.
pub(crate) fn drain(host: &str, module: &str, runs: usize) {
    for (what, count) in [("an idle worker", 0), ("a busy worker", 2_000)] {
        let bench = Bench::new(host, module);
        let mut times = Vec::new();
        for _ in 0..runs {
            let queue = SqsQueue::unique();
            queue.send_many(&body("effect", "[]", r#"{"ms": 100}"#), count);
            let mut worker = bench.worker(&[&queue], &[]);
            wait_for("running jobs", || begun(&worker) >= count.min(64));
            let told_at = Instant::now();
            assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
            times.push(told_at.elapsed());
        }
        tell(&format!("from SIGTERM to the end of {what}"), times);
    }
}

fn begun(worker: &WorkerProcess) -> usize {
    worker.log().iter().filter(|line| line.contains(": begun ")).count()
}
