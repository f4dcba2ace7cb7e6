//! Measures what `docs/performance.md` tells. Run by `scripts/bench`, from a release build.
//!
//! ```text
//! sqjobs-bench attempt MODULE COUNT        fresh sandboxed attempts, one after the other
//! sqjobs-bench throughput HOST MODULE N    jobs through a real SQS server, and memory
//! ```
#![allow(clippy::unwrap_used, reason = "what fails here ends the measurement")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqjobs::outcome::Outcome;
use sqjobs::registry::cache::Cache;
use sqjobs::registry::load::Loader;
use sqjobs::retry::RetryPolicy;
use sqjobs::sandbox::limits::Limits;
use sqjobs::sandbox::{Call, Sandbox, Watch};
use support::sqs::{CREDENTIALS, SqsQueue};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["attempt", module, count] => attempt(module, count.parse().unwrap()),
        ["throughput", host, module, count] => throughput(host, module, count.parse().unwrap()),
        _ => {
            eprintln!("usage: sqjobs-bench attempt MODULE COUNT | throughput HOST MODULE COUNT");
            std::process::exit(2);
        }
    }
}

/// Every stage of the adder, each attempt in a fresh instance, one after the other.
fn attempt(module: &str, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = Arc::new(Sandbox::new(64).unwrap());
        let loader = Loader::new(sandbox.clone(), Cache::new(None));
        let module = loader.load(Path::new(module)).await.unwrap();
        let call = Call {
            job_id: "00000000-0000-4000-8000-000000000001".into(),
            job: "adder_job".into(),
            module: "adder".into(),
            queue: String::new(),
            attempt: 1,
            spent: 0,
            enqueued_at: None,
            schedule: None,
            generation: 0,
            args: "[1, 2, 3, 4]".into(),
            kwargs: "{}".into(),
            limits: Limits::default(),
            grants: Arc::default(),
            policy: RetryPolicy::default(),
        };
        let mut times = Vec::with_capacity(count);
        for turn in 0..count + count / 10 {
            let begun = Instant::now();
            let execution = sandbox.execute(&module.prepared, &call, None, Watch::none()).await;
            assert_eq!(execution.outcome, Outcome::Success(Some("10".into())));
            if turn >= count / 10 {
                times.push(begun.elapsed());
            }
        }
        tell("fresh attempt, all stages", times);
    });
}

/// Jobs that lie on the queue when the worker starts, until the last one is gone.
fn throughput(host: &str, module: &str, count: usize) {
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

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 1000).min(times.len() - 1)];
    println!(
        "{what}: p50 {:?}, p99 {:?}, maximum {:?} ({} runs)",
        at(500),
        at(990),
        times[times.len() - 1],
        times.len()
    );
}
