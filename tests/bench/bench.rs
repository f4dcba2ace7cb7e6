//! A folder with one module deployed, and workers run in it with the default settings.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use support::WorkerProcess;
use support::sqs::{CREDENTIALS, SqsQueue};

/// A folder of its own, removed at the end.
pub(crate) struct Bench {
    host: String,
    folder: PathBuf,
    schema: String,
    /// Where the worker finds SQS.
    pub(crate) endpoint: String,
}

impl Bench {
    pub(crate) fn new(host: &str, module: &str) -> Self {
        let folder = std::env::temp_dir().join(support::servers::unique("bench"));
        std::fs::create_dir_all(folder.join("jobs")).unwrap();
        std::fs::copy(module, folder.join("jobs/module.wasm")).unwrap();
        // Longer than the slowest job that is measured; all else as by default.
        std::fs::write(folder.join("sqjobs.toml"), "[jobs.effect]\ntimeout = \"5m\"\n").unwrap();
        Self {
            host: host.to_owned(),
            folder,
            schema: support::servers::unique("bench"),
            endpoint: support::servers::sqs_url(),
        }
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) fn worker(&self, queues: &[&SqsQueue], arguments: &[&str]) -> WorkerProcess {
        let mut command = Command::new(&self.host);
        command
            .args(["worker", "--migrate"])
            .args(queues.iter().map(|queue| &queue.name))
            .args(arguments)
            .current_dir(&self.folder)
            .env("SQJOBS_BROKER", "sqs")
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .envs(CREDENTIALS);
        if let Ok(url) = std::env::var("SQJOBS_BENCH_DATABASE_URL") {
            command.env("SQJOBS_DATABASE", url).env("SQJOBS_SCHEMA", &self.schema);
        }
        let mut worker = WorkerProcess::spawn(command);
        worker.wait_until_ready();
        worker
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The body of a job, by its name and arguments.
pub(crate) fn body(name: &str, args: &str, kwargs: &str) -> String {
    sqjobs::payload::encode(&sqjobs::payload::Job {
        id: String::new(),
        name: name.into(),
        args: args.into(),
        kwargs: kwargs.into(),
        enqueued_at: None,
        is_tracked: false,
        is_revived: false,
    })
}

/// Waits for a condition, looking often, for ten minutes at most.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(600), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the queue holds nothing at all.
pub(crate) fn wait_until_empty(queue: &SqsQueue) {
    wait_for("an empty queue", || queue.depth().iter().sum::<u64>() == 0);
}
