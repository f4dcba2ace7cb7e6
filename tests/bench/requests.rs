//! How many calls a worker makes, counted by a proxy that passes them all on.

use std::time::Duration;

use support::proxy::{Faults, Proxy};
use support::sqs::SqsQueue;

use crate::bench::{Bench, body, wait_until_empty};

/// What a worker calls again and again.
const ACTIONS: [&str; 3] = ["ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"];
/// Queues of the idle worker.
const IDLE_QUEUES: usize = 10;
/// How long the idle worker is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// Calls for each job while the queue is full, with the default settings.
pub(crate) fn requests(host: &str, module: &str, count: usize) {
    let mut bench = Bench::new(host, module);
    let proxy = Proxy::start(0, Faults::default());
    bench.endpoint = proxy.url();
    let queue = SqsQueue::unique();
    queue.send_many(&body("adder_job", "[1, 2, 3, 4]", "{}"), count);
    let mut worker = bench.worker(&[&queue], &[]);
    wait_until_empty(&queue);
    let calls = ACTIONS.map(|action| proxy.calls(action));
    worker.terminate();
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let per_job = |calls: u64| calls as f64 / count as f64;
    println!("{:.3} calls to SQS for each of {count} jobs", per_job(calls.iter().sum()));
    for (action, calls) in ACTIONS.iter().zip(calls) {
        println!("  {:.3} {action}", per_job(calls));
    }
}

/// Receives of idle queues, from a minute to a day.
pub(crate) fn idle(host: &str, module: &str) {
    let mut bench = Bench::new(host, module);
    let proxy = Proxy::start(0, Faults::default());
    bench.endpoint = proxy.url();
    let queues: Vec<SqsQueue> = (0..IDLE_QUEUES).map(|_| SqsQueue::unique()).collect();
    let mut worker = bench.worker(&queues.iter().collect::<Vec<_>>(), &[]);
    // The first polls end, and all have their rhythm.
    std::thread::sleep(Duration::from_secs(25));
    let before = proxy.calls("ReceiveMessage");
    std::thread::sleep(WATCHED);
    let calls = proxy.calls("ReceiveMessage") - before;
    worker.terminate();
    let a_day = calls * (86_400 / WATCHED.as_secs()) / IDLE_QUEUES as u64;
    println!(
        "{a_day} receives for each idle queue and day ({calls} of {IDLE_QUEUES} queues in {} s)",
        WATCHED.as_secs()
    );
}
