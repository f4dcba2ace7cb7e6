//! What an operator waits for: a cancel, a job's progress, a delayed job.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::Json;
use support::sqs::SqsQueue;

use crate::bench::{Bench, wait_for};
use crate::figures::tell;
use crate::sql::Sql;

/// From before `cancel ID` until the job is CANCELLED: one that computes for ever, and one that
/// is blocked in a host call.
pub(crate) fn cancel(host: &str, module: &str, runs: usize) {
    let bench = Bench::new(host, module);
    let mut sql = bench.sql();
    let queue = SqsQueue::unique();
    let mut worker = bench.worker(&[&queue], &[]);
    for (what, job) in [
        ("a busy loop", &["spin"][..]),
        ("a blocked host call", &["sleep_ms", "600000"]),
        ("a job that waits for a minute", &["counter", "--delay", "60s"]),
    ] {
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            let id = bench.add(&queue, job);
            if !job.contains(&"--delay") {
                wait_for_status(&mut sql, &id, "RUNNING");
            }
            // The worker looks twice a second: the cancels come at any moment in between.
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..500)));
            let begun = Instant::now();
            // Its exit code tells of the end too, after which the row is as it is.
            let output = bench.command(&["cancel", &id]).output().unwrap();
            wait_for_status(&mut sql, &id, "CANCELLED");
            assert!(output.status.success(), "{output:?}");
            times.push(begun.elapsed());
        }
        tell(&format!("from `cancel` until it is CANCELLED: {what}"), times);
    }
    worker.terminate();
}

fn wait_for_status(sql: &mut Sql, id: &str, status: &str) {
    let query = format!("SELECT status FROM {{p}}jobs WHERE id = '{id}'");
    wait_for(status, || sql.text(&query).as_deref() == Some(status));
}

/// From the moment at which a job tells of its progress until `status` shows it. The job tells it
/// every 700 ms, with the time.
pub(crate) fn progress(host: &str, module: &str, runs: usize) {
    let bench = Bench::new(host, module);
    let queue = SqsQueue::unique();
    let mut worker = bench.worker(&[&queue], &[]);
    let id = bench.add(&queue, &["progress_clock", &runs.to_string(), "700"]);
    let mut times = Vec::with_capacity(runs);
    let mut last = String::new();
    while times.len() < runs {
        let row = Json::parse(&bench.run(&["status", "--output", "json", "--", &id]));
        assert_ne!(row.text("status"), "FAILURE", "{row}");
        if row.raw("progress_message") == "null" || row.text("progress_message") == last {
            continue;
        }
        last = row.text("progress_message");
        let told_at = UNIX_EPOCH + Duration::from_millis(last.parse().unwrap());
        times.push(SystemTime::now().duration_since(told_at).unwrap_or_default());
        if row.text("status") == "SUCCESS" {
            break;
        }
    }
    worker.terminate();
    tell("from the progress told until `status` shows it", times);
}

/// Delayed jobs that wait in the database and are due evenly over one minute: from the instant at
/// which each may run until it begins. Each is sent once.
pub(crate) fn delayed(host: &str, module: &str, count: usize) {
    let bench = Bench::new(host, module);
    let mut sql = bench.sql();
    let queue = SqsQueue::unique();
    let mut workers = [bench.worker(&[&queue], &[]), bench.worker(&[&queue], &[])];
    let due = format!("now + 10000 + n * 60000 / {count}");
    let insert = format!(
        "INSERT INTO {{p}}jobs (id, name, queue, args, kwargs, fingerprint, not_before, created_at, \
         enqueued_at, updated_at) SELECT 'delayed-' || n, 'counter', '{name}', '[]', '{{}}', '', \
         {due}, now, now, now FROM {{numbers}} AS numbers, (SELECT {{now}} AS now) AS clock; \
         INSERT INTO {{p}}outbox (job_id, job_name, queue, enqueued_at, not_before) \
         SELECT id, name, queue, created_at, not_before FROM {{p}}jobs WHERE name = 'counter'",
        name = queue.name
    );
    sql.run(&insert, count);
    let fingerprint = sqjobs::payload::Job {
        id: String::new(),
        name: "counter".into(),
        args: "[]".into(),
        kwargs: "{}".into(),
        enqueued_at: None,
        is_tracked: false,
        is_revived: false,
    }
    .fingerprint();
    sql.run(&format!("UPDATE {{p}}jobs SET fingerprint = '{fingerprint}'"), 1);
    let all = i64::try_from(count).unwrap();
    let done = "SELECT count(*) FROM {p}jobs WHERE status = 'SUCCESS' AND attempts = 1";
    wait_for("the delayed jobs", || {
        std::thread::sleep(Duration::from_millis(500));
        sql.count(done) == all
    });
    assert_eq!(sql.count("SELECT count(*) FROM {p}jobs WHERE sends = 1"), all, "each sent once");
    for (what, column) in [("sent", "sent_at"), ("begun", "started_at")] {
        let late = sql.numbers(&format!("SELECT {column} - not_before FROM {{p}}jobs"));
        assert!(what == "sent" || late.iter().all(|ms| *ms >= 0), "none before it is due");
        let late = late.iter().map(|ms| Duration::from_millis(u64::try_from(*ms).unwrap_or(0)));
        tell(&format!("{count} delayed jobs due in one minute: how late {what}"), late.collect());
    }
    for worker in &mut workers {
        worker.terminate();
    }
}
