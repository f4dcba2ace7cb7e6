//! Jobs through a real SQS server, and what memory the worker takes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::sqs::{CREDENTIALS, SqsQueue};

/// Jobs that lie on the queue when the worker starts, until the last one is gone.
pub(crate) fn throughput(host: &str, module: &str, count: usize) {
    let folder = std::env::temp_dir().join(support::servers::unique("bench"));
    std::fs::create_dir_all(folder.join("jobs")).unwrap();
    std::fs::copy(module, folder.join("jobs/adder.wasm")).unwrap();
    let queue = SqsQueue::unique();
    let body = sqjobs::payload::encode(&sqjobs::payload::Job {
        id: String::new(),
        name: "adder_job".into(),
        args: "[1, 2, 3, 4]".into(),
        kwargs: "{}".into(),
        enqueued_at: None,
        is_tracked: false,
        is_revived: false,
    });

    let mut worker = Command::new(host);
    worker
        .args(["worker", &queue.name, "--log-level", "error", "--migrate"])
        .current_dir(&folder)
        .env("SQJOBS_BROKER", "sqs")
        .env("AWS_ENDPOINT_URL", support::servers::sqs_url())
        .envs(CREDENTIALS)
        .stdout(Stdio::null());
    if let Ok(url) = std::env::var("SQJOBS_BENCH_DATABASE_URL") {
        worker.env("SQJOBS_DATABASE", url).env("SQJOBS_SCHEMA", support::servers::unique("bench"));
    }
    let mut worker = worker.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let idle = memory_kib(worker.id());

    // From several threads, or the sender would be what is measured.
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let mut left = count;
        for share in (0..8).rev() {
            let mine = left / (share + 1);
            left -= mine;
            let (queue, body) = (&queue, &body);
            scope.spawn(move || queue.send_many(body, mine));
        }
    });
    let sent = begun.elapsed();
    while queue.depth().iter().sum::<u64>() > 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = begun.elapsed();
    let after = memory_kib(worker.id());
    support::worker::signal(worker.id(), "TERM");
    worker.wait().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "{count} jobs in {:.2} s ({rate:.0} a second; all sent after {:.2} s)",
        took.as_secs_f64(),
        sent.as_secs_f64()
    );
    println!(
        "resident memory of the worker: {} MiB idle, {} MiB after {count} jobs",
        idle / 1024,
        after / 1024
    );
}

fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
