//! First starts: many hosts on one empty database, and databases of another version.

use support::{Output, Pair, Project, Setup, WorkerProcess};

/// Hosts that start at once.
const HOSTS: usize = 10;

fn stop_all(workers: Vec<WorkerProcess>) {
    for worker in &workers {
        worker.signal("TERM");
    }
    for mut worker in workers {
        assert_eq!(worker.wait_for_exit().code(), Some(0), "{}", worker.shown());
    }
}

/// Starts ten workers and returns how many of them say that they migrated.
fn migrations_of_ten_workers(setup: &Setup, args: &[&str]) -> usize {
    let mut workers: Vec<WorkerProcess> = (0..HOSTS).map(|_| setup.worker(args)).collect();
    for worker in &mut workers {
        worker.wait_until_ready();
    }
    let migrated = workers.iter().filter(|worker| worker.shown().contains("migrated")).count();
    stop_all(workers);
    migrated
}

fn of_ten_migrate_commands_one_migrates(setup: &Setup) {
    let commands: Vec<_> = (0..HOSTS)
        .map(|_| {
            let command = setup.project.command(&["migrate", "--output", "json"]);
            std::thread::spawn(move || Output::of(command))
        })
        .collect();
    let from: Vec<u64> = commands
        .into_iter()
        .map(|command| command.join().unwrap().ok().json().number("from"))
        .collect();
    assert_eq!(from.iter().filter(|&&from| from == 0).count(), 1, "{from:?}");
}

/// The table of applied migrations has the same name in both dialects.
fn versions_table(setup: &Setup) -> String {
    match setup.pair {
        Pair::PostgresSqs => setup.table("sqjobs_migrations"),
        _ => "sqjobs_migrations".to_owned(),
    }
}

#[test]
fn of_ten_workers_started_at_once_on_an_empty_sqlite_one_migrates_and_none_fails() {
    let setup = Setup::not_migrated(Pair::Embedded, &["adder"]);
    assert_eq!(migrations_of_ten_workers(&setup, &[]), 1);
}

#[test]
fn of_ten_workers_started_at_once_on_an_empty_postgres_one_migrates_and_none_fails() {
    let setup = Setup::not_migrated(Pair::PostgresSqs, &["adder"]);
    assert_eq!(migrations_of_ten_workers(&setup, &["--migrate"]), 1);
}

#[test]
fn of_ten_migrations_of_sqlite_at_once_one_migrates_and_none_fails() {
    of_ten_migrate_commands_one_migrates(&Setup::not_migrated(Pair::Embedded, &[]));
}

#[test]
fn of_ten_migrations_of_postgres_at_once_one_migrates_and_none_fails() {
    of_ten_migrate_commands_one_migrates(&Setup::not_migrated(Pair::PostgresSqs, &[]));
}

#[test]
fn on_postgres_a_worker_says_that_a_migration_is_due() {
    let setup = Setup::not_migrated(Pair::PostgresSqs, &["adder"]);
    let worker = setup.run(&["worker", &setup.queue]).exits(1);
    worker.is_a_sentence().says(&["sqjobs-host migrate", "--migrate"]);
    setup.run(&["list"]).exits(1).is_a_sentence().says(&["migrate"]);
    let _ = setup.run(&["migrate"]).ok();
    let _ = setup.run(&["list"]).ok();
}

#[test]
fn a_second_migration_changes_nothing() {
    for pair in [Pair::Embedded, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["adder"]);
        let id = setup.add(&["adder_job", "1"]);
        let _ = setup.run(&["migrate"]).ok();
        assert_eq!(setup.status(&id).unwrap().text("status"), "PENDING");
    }
}

#[test]
fn a_database_of_a_much_newer_release_is_refused_with_both_versions() {
    for pair in [Pair::Embedded, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["adder"]);
        let _ = setup.run(&["migrate"]).ok();
        let table = versions_table(&setup);
        let newest = format!("(SELECT max(version) FROM {table})");
        setup.execute(&format!("UPDATE {table} SET version = 987 WHERE version = {newest}"));
        for args in [&["worker", setup.queue.as_str()][..], &["list"], &["migrate"]] {
            setup.run(args).exits(1).is_a_sentence().says(&["987", "newer"]);
        }
    }
}

/// Commands that need no database leave none behind.
#[test]
fn looking_at_a_module_makes_no_database() {
    let project = Project::with_guests(&["adder"]);
    let _ = project.run(&["inspect", "jobs/adder.wasm"]).ok();
    let _ = project.run(&["run", "jobs/adder.wasm", "1"]).ok();
    let _ = project.run(&["completions", "bash"]).ok();
    let database = project.folder().join(".sqjobs/sqjobs.db");
    assert!(!database.exists());
}
