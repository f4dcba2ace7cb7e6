//! The database away for a while: jobs wait, no message goes without its row, and work goes on
//! when it is back.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use sqlx::Connection as _;
use support::gate::Gate;
use support::servers::{self, RUNTIME};
use support::{Pair, Setup, WorkerProcess, wait};

/// A project whose host reaches PostgreSQL through a gate.
fn behind_gate() -> (Setup, Gate) {
    let mut setup = Setup::new(Pair::PostgresSqs, &["outcomes"]);
    let gate = Gate::to_postgres();
    setup.project.set("SQJOBS_DATABASE", &gate.database_url());
    (setup, gate)
}

fn send_effects(setup: &Setup, count: usize, kwargs: &str) {
    let body = |n| format!(r#"{{"id": "job-{n}", "name": "effect", "kwargs": {kwargs}}}"#);
    let _ids = setup.send_bodies(&(0..count).map(body).collect::<Vec<_>>());
}

fn lines(worker: &WorkerProcess, word: &str) -> usize {
    worker.log().iter().filter(|line| line.contains(word)).count()
}

/// Waits until all jobs have succeeded, and asserts that each did so once, in one attempt.
fn wait_until_all_succeeded(setup: &Setup, count: i64) {
    let succeeded = "SELECT count(*) FROM {jobs} WHERE status = 'SUCCESS'";
    wait::until_true("the success of all jobs", || setup.count(succeeded) == count);
    setup.wait_until_drained();
    assert_eq!(setup.count("SELECT count(*) FROM {attempts}"), count, "one attempt for each job");
    assert!(setup.dead().is_empty());
}

#[test]
fn a_postgres_that_goes_down_in_mid_run_delays_outcomes_and_loses_none() {
    let (setup, gate) = behind_gate();
    send_effects(&setup, 10, r#"{"ms": 1500}"#);
    let mut worker = setup.worker(&[]);
    wait::until_true("ten begun jobs", || lines(&worker, ": begun ") == 10);
    gate.close();
    wait::until_true("ten ended jobs", || lines(&worker, ": ended ") == 10);
    worker.wait_for_line(&["cannot", "database"]);
    let left: u64 = setup.sqs().depth().iter().sum();
    assert_eq!(left, 10, "no message goes before its job's outcome is stored");

    gate.open();
    wait_until_all_succeeded(&setup, 10);
    assert_eq!(lines(&worker, ": ended "), 10, "none ran twice for it");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn connections_that_postgres_ends_are_made_again() {
    let setup = Setup::new(Pair::PostgresSqs, &["outcomes"]);
    let mut worker = setup.worker(&["--concurrency", "8"]);
    worker.wait_until_ready();
    send_effects(&setup, 100, r#"{"ms": 20}"#);
    let succeeded = "SELECT count(*) FROM {jobs} WHERE status = 'SUCCESS'";
    for round in 0..8 {
        wait::until_true("some more successes", || setup.count(succeeded) >= round * 10);
        // Whatever is connected and speaks of this test's schema.
        let _ended: i64 = setup.query(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE query LIKE '%{}%' AND pid <> pg_backend_pid()",
            setup.schema()
        ));
    }
    wait::until_true("the success of all jobs", || setup.count(succeeded) == 100);
    setup.wait_until_drained();
    let stored = "SELECT count(*) FROM {attempts} WHERE outcome = 'success'";
    assert_eq!(setup.count(stored), 100);
    assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
}

/// Somebody waits for a job on the command line while the database is restarted.
#[test]
fn a_wait_for_a_job_goes_on_while_postgres_is_away() {
    let (setup, gate) = behind_gate();
    let id = setup.add(&["counter"]);
    let mut command = setup.project.command(&["status", &id, "--wait", "--output", "json"]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let looked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{}%jobs j WHERE id = %' \
         AND pid <> pg_backend_pid()",
        setup.schema()
    );
    wait::until_true("a first look", || setup.query::<i64>(&looked) > 0);
    gate.close();
    let mut stderr = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let told = stderr.next().unwrap().unwrap();
    assert!(told.contains("waiting for the database"), "{told}");
    gate.open();
    let _worker = setup.worker(&[]);
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success());
    let row = support::Json::parse(std::str::from_utf8(&output.stdout).unwrap().trim());
    assert_eq!(row.text("status"), "SUCCESS");
}

/// The server has committed, and nobody was told: to repeat the call must find that it is done.
#[test]
fn commits_whose_answers_are_lost_lose_no_job_and_run_none_twice() {
    let (setup, gate) = behind_gate();
    let mut worker = setup.worker(&["--concurrency", "4"]);
    worker.wait_until_ready();
    gate.lose_answers(20);
    send_effects(&setup, 40, r#"{"ms": 20}"#);
    wait::until_true("twenty lost answers", || gate.answers_to_lose() == 0);
    wait_until_all_succeeded(&setup, 40);
    assert_eq!(lines(&worker, ": ended "), 40, "none ran twice for it");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_write_that_stalls_is_given_up_and_tried_again() {
    let setup = Setup::new(Pair::PostgresSqs, &["outcomes"]);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    let lock = setup.named("BEGIN; LOCK TABLE {jobs} IN ACCESS EXCLUSIVE MODE");
    let mut holder =
        RUNTIME.block_on(sqlx::PgConnection::connect(&servers::database_url())).unwrap();
    RUNTIME.block_on(sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut holder)).unwrap();
    send_effects(&setup, 3, "{}");
    worker.wait_for_line(&["cannot use the database"]);
    assert_eq!(lines(&worker, ": begun "), 0, "nothing runs before it is claimed");

    RUNTIME.block_on(sqlx::raw_sql("ROLLBACK").execute(&mut holder)).unwrap();
    wait_until_all_succeeded(&setup, 3);
    worker.wait_for_line(&["can use the database again"]);
    assert_eq!(worker.terminate(), Some(0));
}

/// Another process holds SQLite's write lock for longer than the busy timeout of ten seconds.
#[test]
fn a_locked_sqlite_file_delays_outcomes_and_loses_none() {
    support::side_by_side(&[Pair::Embedded, Pair::SqliteSqs], 2, |pair| {
        let setup = Setup::new(*pair, &["outcomes"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        send_effects(&setup, 5, r#"{"ms": 1000}"#);
        wait::until_true("five begun jobs", || lines(&worker, ": begun ") == 5);
        let file = setup.project.folder().join(".sqjobs/sqjobs.db");
        let url = format!("sqlite:{}", file.display());
        let mut holder = RUNTIME.block_on(sqlx::SqliteConnection::connect(&url)).unwrap();
        RUNTIME.block_on(sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut holder)).unwrap();
        worker.wait_for_line(&["cannot use the database"]);
        let left: u64 = setup.depth().iter().sum();
        assert_eq!(left, 5, "no message goes before its job's outcome is stored");

        RUNTIME.block_on(sqlx::raw_sql("ROLLBACK").execute(&mut holder)).unwrap();
        wait_until_all_succeeded(&setup, 5);
        assert_eq!(lines(&worker, ": ended "), 5, "none ran twice for it");
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// What has not begun needs no database to go back.
#[test]
fn a_worker_that_stops_while_the_database_is_away_gives_its_messages_back_at_once() {
    let (setup, gate) = behind_gate();
    let mut worker = setup.worker(&["--lease", "10m"]);
    worker.wait_until_ready();
    gate.close();
    send_effects(&setup, 5, "{}");
    wait::until_true("five received messages", || setup.depth() == [0, 5, 0]);
    worker.wait_for_line(&["cannot use the database"]);
    assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
    assert_eq!(setup.depth(), [5, 0, 0], "no lease of ten minutes holds them");

    gate.open();
    let mut next = setup.worker(&[]);
    wait_until_all_succeeded(&setup, 5);
    assert_eq!(next.terminate(), Some(0));
}

/// Another session holds a job's row: it waits, and the others do not wait with it.
#[test]
fn a_row_that_is_locked_holds_up_its_own_job_only() {
    let setup = Setup::new(Pair::PostgresSqs, &["outcomes"]);
    let _ = setup.run(&["add", "--queue", &setup.queue, "--id", "held", "counter"]).ok();
    let mut holder =
        RUNTIME.block_on(sqlx::PgConnection::connect(&servers::database_url())).unwrap();
    let lock = setup.named("BEGIN; SELECT id FROM {jobs} WHERE id = 'held' FOR UPDATE");
    RUNTIME.block_on(sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut holder)).unwrap();
    send_effects(&setup, 20, "{}");
    let mut worker = setup.worker(&[]);
    let succeeded = "SELECT count(*) FROM {jobs} WHERE status = 'SUCCESS'";
    wait::until_true("the others", || setup.count(succeeded) == 20);
    assert_eq!(setup.status("held").unwrap().number("attempts"), 0);
    RUNTIME.block_on(sqlx::raw_sql("ROLLBACK").execute(&mut holder)).unwrap();
    wait_until_all_succeeded(&setup, 21);
    assert_eq!(worker.terminate(), Some(0));
}

on_every_pair! {
    /// It is somebody's to mend, and no job's fault.
    fn a_table_that_is_missing_delays_jobs_and_loses_none(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        let (there, away) = (setup.table("attempts"), setup.table("attempts_away"));
        let bare = |table: &str| table.rsplit('.').next().unwrap().to_owned();
        setup.execute(&format!("ALTER TABLE {there} RENAME TO {}", bare(&away)));
        send_effects(&setup, 5, "{}");
        worker.wait_for_line(&["cannot use the database"]);
        assert!(setup.dead().is_empty());
        setup.execute(&format!("ALTER TABLE {away} RENAME TO {}", bare(&there)));
        wait_until_all_succeeded(&setup, 5);
        assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
    }

    /// A job whose row, and one whose outcome, the database will never take, among others.
    fn what_the_database_refuses_harms_its_own_job_only(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let refuse = match pair {
            Pair::PostgresSqs => {
                "ALTER TABLE {jobs} ADD CONSTRAINT no_args CHECK (args <> '[13]'), \
                 ADD CONSTRAINT no_result CHECK (result IS NULL OR result <> '42')"
            }
            _ => {
                "CREATE TRIGGER no_args BEFORE INSERT ON {jobs} WHEN NEW.args = '[13]' \
                 BEGIN SELECT RAISE(ABORT, 'no_args'); END; \
                 CREATE TRIGGER no_result BEFORE UPDATE ON {jobs} WHEN NEW.result = '42' \
                 BEGIN SELECT RAISE(ABORT, 'no_result'); END"
            }
        };
        let _ = setup.run(&["migrate"]).ok();
        setup.execute(&setup.named(refuse));
        let body = |n| format!(r#"{{"id": "job-{n}", "name": "adder_job", "args": [{n}]}}"#);
        let _ids = setup.send_bodies(&[1, 13, 2, 42, 3, 4, 5].map(body));
        let mut worker = setup.worker(&[]);

        for n in 1..=5 {
            let _ = setup.wait_for_status(&format!("job-{n}"), "SUCCESS");
        }
        let row = setup.wait_for_status("job-42", "FAILURE");
        assert!(row.text("error").contains("refuses this attempt's outcome"), "{row}");
        assert!(row.text("error").contains("no_result"), "the reason is told: {row}");
        let dead = setup.wait_for_dead(2);
        let aside = dead.iter().find(|entry| entry.text("kind") == "malformed").unwrap();
        assert!(aside.text("reason").contains("no_args"), "{aside}");
        assert!(aside.text("body").contains("job-13"), "{aside}");
        setup.wait_until_drained();
        assert!(setup.status("job-13").is_none());
        assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
    }
}
