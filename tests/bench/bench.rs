//! A folder with one module deployed, and the host run in it with the default settings.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::WorkerProcess;
use support::sqs::{CREDENTIALS, SqsQueue};

use crate::sql::Sql;

/// A folder of its own, removed at the end, with its tables.
pub(crate) struct Bench {
    host: String,
    folder: PathBuf,
    schema: String,
    database_url: Option<String>,
    /// Where the host finds SQS.
    pub(crate) endpoint: String,
}

impl Bench {
    pub(crate) fn new(host: &str, module: &str) -> Self {
        let bench = Self::without_module(host);
        std::fs::create_dir_all(bench.folder.join("jobs")).unwrap();
        std::fs::copy(module, bench.folder.join("jobs/module.wasm")).unwrap();
        bench
    }

    pub(crate) fn without_module(host: &str) -> Self {
        let folder = std::env::temp_dir().join(support::servers::unique("bench"));
        std::fs::create_dir_all(&folder).unwrap();
        // Longer than the slowest job that is measured; all else as by default.
        std::fs::write(folder.join("sqjobs.toml"), "[jobs.effect]\ntimeout = \"5m\"\n").unwrap();
        Self {
            host: host.to_owned(),
            folder,
            schema: support::servers::unique("bench"),
            database_url: std::env::var("SQJOBS_BENCH_DATABASE_URL").ok(),
            endpoint: support::servers::sqs_url(),
        }
    }

    /// The name of the database, as figures are told with.
    pub(crate) fn database(&self) -> &'static str {
        if self.database_url.is_some() { "PostgreSQL" } else { "SQLite" }
    }

    /// A command of the host.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.host);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("SQJOBS_BROKER", "sqs")
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .envs(CREDENTIALS)
            .stdin(Stdio::null());
        if let Some(url) = &self.database_url {
            command.env("SQJOBS_DATABASE", url).env("SQJOBS_SCHEMA", &self.schema);
        }
        command
    }

    /// Runs a command to its end, and returns what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Adds a job to a queue, and returns its id.
    pub(crate) fn add(&self, queue: &SqsQueue, job: &[&str]) -> String {
        let added = self.run(&[&["add", "--queue", &queue.name], job].concat());
        added.trim().to_owned()
    }

    /// Makes the tables, and a connection to them.
    pub(crate) fn sql(&self) -> Sql {
        self.run(&["migrate"]);
        match &self.database_url {
            Some(url) => Sql::postgres(url, &self.schema),
            None => Sql::sqlite(&self.folder.join(".sqjobs/sqjobs.db")),
        }
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) fn worker(&self, queues: &[&SqsQueue], arguments: &[&str]) -> WorkerProcess {
        let names: Vec<&str> = queues.iter().map(|queue| queue.name.as_str()).collect();
        let mut worker = WorkerProcess::spawn(
            self.command(&[&["worker", "--migrate"], &names[..], arguments].concat()),
        );
        worker.wait_until_ready();
        worker
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        if let Some(url) = &self.database_url {
            let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.schema);
            Sql::postgres(url, &self.schema).run(&drop, 1);
        }
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
