//! A table of finished jobs: listed, and pruned while a worker runs.

use std::time::{Duration, Instant};

use support::sqs::SqsQueue;

use crate::bench::Bench;
use crate::figures::{tell, tell_by_95};
use crate::sql::Sql;

/// Runs of each command.
const RUNS: usize = 20;
/// Jobs that run beside the pruning, before it begins: what they take by themselves.
const JOBS_BEFORE: usize = 100;

/// Writes finished jobs with an attempt each, over the 30 days before now: four in five of one
/// name, a hundred of a rare one; every fortieth failed, one in 4,000 of those with a rare error,
/// and every two hundredth was cancelled.
fn write_finished(sql: &mut Sql, rows: usize) {
    let ago = format!("{{now}} - 2592000000 + n * (2591000000 / {rows})");
    let status = "CASE WHEN n % 40 = 7 THEN 'FAILURE' WHEN n % 200 = 3 THEN 'CANCELLED' \
                  ELSE 'SUCCESS' END";
    let is_rare = format!("n % {} = 8", (rows / 100).max(1));
    let insert = format!(
        "INSERT INTO {{p}}jobs (id, name, queue, status, args, kwargs, fingerprint, result, error, \
         error_kind, attempts, worker_id, module, sent_at, created_at, enqueued_at, started_at, \
         finished_at, updated_at) SELECT {{uuid}}, CASE WHEN {is_rare} THEN 'rare' \
         WHEN n % 5 = 0 THEN 'report' ELSE 'invoice' END, CASE WHEN {is_rare} THEN 'imports' \
         WHEN n % 3 = 0 THEN 'mail' ELSE 'orders' END, {status}, '[' || n || ', \"some text\"]', \
         '{{}}', 'f' || n, CASE WHEN n % 40 = 7 THEN NULL ELSE '\"result ' || n || '\"' END, \
         CASE WHEN n % 160000 = 7 THEN 'no such host: db-' || n WHEN n % 40 = 7 \
         THEN 'connection refused by 10.0.0.' || n END, CASE WHEN n % 40 = 7 THEN 'permanent' END, \
         1, 'w', 'module', {ago}, {ago}, {ago}, {ago}, {ago}, {ago} FROM {{numbers}} AS numbers"
    );
    sql.run(&insert, rows);
    sql.run(
        "INSERT INTO {p}attempts (job_id, number, token, worker_id, outcome, module, \
         module_digest, started_at, logs) SELECT id, 1, id, 'w', 'success', 'module', 'd', \
         created_at, 'a line of its log' FROM {p}jobs",
        1,
    );
    sql.settle();
}

/// Times the real commands on a table of `rows` finished jobs.
pub(crate) fn lists(host: &str, rows: usize) {
    let bench = Bench::without_module(host);
    let mut sql = bench.sql();
    write_finished(&mut sql, rows);
    let database = bench.database();
    let middle =
        format!("SELECT id FROM {{p}}jobs ORDER BY created_at LIMIT 1 OFFSET {}", rows / 2);
    let middle = sql.text(&middle).unwrap();
    let failed = "SELECT id FROM {p}jobs WHERE status = 'FAILURE' ORDER BY created_at LIMIT 1";
    let failed = sql.text(failed).unwrap();
    println!("{rows} finished jobs on {database}; each time includes the start of the process");
    time(&bench, &["--version"]);
    for filter in [
        &[][..],
        &["--job", "invoice"],
        &["--job", "rare"],
        &["--job", "nobody"],
        &["--queue", "orders"],
        &["--queue", "imports"],
        &["--status", "SUCCESS"],
        &["--status", "FAILURE"],
        &["--status", "CANCELLED"],
        &["--status", "PENDING"],
        &["--error", "connection refused"],
        &["--error", "no such host"],
        &["--error", "never heard of"],
        &["--since", "2h"],
        &["--since", "16d", "--until", "15d"],
        &["--until", "29d"],
        &["--job", "rare", "--status", "FAILURE"],
        &["--job", "rare", "--queue", "orders"],
        &["--job", "report", "--status", "FAILURE"],
        &["--job", "nobody", "--status", "SUCCESS"],
        &["--queue", "mail", "--status", "CANCELLED"],
        &["--queue", "mail", "--since", "16d", "--until", "15d"],
        &["--status", "FAILURE", "--until", "29d"],
        &["--after", &middle],
        &["--after", &middle, "--job", "rare"],
        &["--after", &middle, "--status", "FAILURE"],
        &["--after", &middle, "--error", "no such host"],
        &["--limit", "1000"],
    ] {
        time(&bench, &[&["list"], filter].concat());
    }
    time(&bench, &["status", &middle]);
    time(&bench, &["status", &failed]);
}

fn time(bench: &Bench, arguments: &[&str]) {
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begun = Instant::now();
        bench.run(arguments);
        times.push(begun.elapsed());
    }
    let shown: Vec<&str> =
        arguments.iter().map(|word| if word.len() > 30 { "ID" } else { *word }).collect();
    tell_by_95(&shown.join(" "), times);
}

/// Jobs one at a time, from before `add` to their end, while a worker prunes `rows` finished jobs
/// and then removes their fences.
pub(crate) fn prune(host: &str, module: &str, rows: usize) {
    let bench = Bench::new(host, module);
    let mut sql = bench.sql();
    let queue = SqsQueue::unique();
    let mut before = bench.worker(&[&queue], &[]);
    let times = (0..JOBS_BEFORE).map(|_| one_job(&bench, &mut sql, &queue)).collect();
    before.terminate();
    tell("a job with nothing to prune", times);
    sql.run("DELETE FROM {p}attempts; DELETE FROM {p}jobs", 1);
    write_finished(&mut sql, rows);
    let mut worker = bench.worker(&[&queue], &["--keep", "0s"]);
    let begun = Instant::now();
    let left = "SELECT count(*) FROM (SELECT 1 FROM {p}jobs WHERE pruned = 0 \
                AND status <> 'PENDING' AND queue IN ('orders', 'mail', 'imports') LIMIT 1) AS found";
    let times = beside(&bench, &mut sql, &queue, left);
    told(rows, "pruned", begun.elapsed(), bench.database());
    tell("a job meanwhile", times);
    // What the queues can't hold any more goes too.
    sql.run(
        "UPDATE {p}jobs SET finished_at = finished_at - 2592000000, \
         sent_at = sent_at - 2592000000 WHERE pruned = 1",
        1,
    );
    let begun = Instant::now();
    let left = "SELECT count(*) FROM (SELECT 1 FROM {p}jobs WHERE pruned = 1 \
                AND finished_at < {now} - 2592000000 LIMIT 1) AS found";
    let times = beside(&bench, &mut sql, &queue, left);
    told(rows, "removed", begun.elapsed(), bench.database());
    tell("a job meanwhile", times);
    worker.terminate();
}

fn told(rows: usize, what: &str, took: Duration, database: &str) {
    println!("{rows} finished jobs {what} in {:.1} s on {database}", took.as_secs_f64());
}

/// Runs jobs one after the other until nothing is left.
fn beside(bench: &Bench, sql: &mut Sql, queue: &SqsQueue, left: &str) -> Vec<Duration> {
    let mut times = Vec::new();
    while sql.count(left) > 0 {
        times.push(one_job(bench, sql, queue));
    }
    times
}

/// From before `add` until the job's end is in the database.
fn one_job(bench: &Bench, sql: &mut Sql, queue: &SqsQueue) -> Duration {
    let begun = Instant::now();
    let id = bench.add(queue, &["counter"]);
    let done = format!("SELECT count(*) FROM {{p}}jobs WHERE id = '{id}' AND status = 'SUCCESS'");
    crate::bench::wait_for("the end of a job", || sql.count(&done) == 1);
    begun.elapsed()
}
