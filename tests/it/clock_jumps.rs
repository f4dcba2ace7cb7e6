//! A database whose clock jumps, as that of a suspended machine does, with real beaters.
//!
//! PostgreSQL looks a function up along `search_path`: a schema before `pg_catalog` holds a
//! `clock_timestamp` of the test's. SQLite's clock is the machine's, which a test can't move; both
//! ask by one statement, and all that follows from the answer is the same code.

use support::{Pair, Setup, WorkerProcess, servers, wait};

const HOUR_MS: i64 = 3_600_000;

/// A schema with a clock that can be moved, which the host's connections go by.
fn with_movable_clock() -> (Setup, String) {
    let mut setup = Setup::new(Pair::PostgresSqs, &[]);
    let clock = servers::unique("clock");
    setup.execute(&format!(
        "CREATE SCHEMA {clock}; CREATE TABLE {clock}.moved (ms bigint); \
         INSERT INTO {clock}.moved VALUES (0); \
         CREATE FUNCTION {clock}.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS \
         $$ SELECT pg_catalog.clock_timestamp() \
         + (SELECT ms FROM {clock}.moved) * interval '0.001 s' $$"
    ));
    let url = servers::database_url();
    let options = format!("options=-csearch_path%3D{clock},pg_catalog");
    setup.project.set("SQJOBS_DATABASE", &format!("{url}?{options}"));
    (setup, clock)
}

fn move_clock(setup: &Setup, clock: &str, ms: i64) {
    setup.execute(&format!("UPDATE {clock}.moved SET ms = {ms}"));
}

fn add(setup: &Setup, name: &str, args: &[&str]) {
    let fixed = ["periodic", "add", name, "--job", "adder_job", "--queue", setup.queue.as_str()];
    let _ = setup.run(&[&fixed[..], args].concat()).ok();
}

/// What became of an entry's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    queued: i64,
    skipped: i64,
    first: i64,
    last: i64,
}

fn ticks(setup: &Setup, name: &str) -> Ticks {
    let table = setup.table("periodic_ticks");
    let of = |what: &str| -> i64 {
        setup.query(&format!(
            "SELECT CAST(coalesce({what}, 0) AS bigint) FROM {table} WHERE schedule = '{name}'"
        ))
    };
    Ticks {
        queued: of("sum(CASE outcome WHEN 'queued' THEN ticks END)"),
        skipped: of("sum(CASE outcome WHEN 'skipped' THEN ticks END)"),
        first: of("min(fire_time)"),
        last: of("max(last_time)"),
    }
}

/// Each second from the first tick to the last is told of by one row, queued or skipped.
fn no_second_is_missing_or_told_twice(setup: &Setup, name: &str) {
    let ticks = ticks(setup, name);
    assert_eq!(ticks.queued + ticks.skipped, (ticks.last - ticks.first) / 1000 + 1, "{ticks:?}");
}

#[test]
fn a_clock_that_jumps_neither_floods_nor_skips_beyond_the_catch_up_rule() {
    let (setup, clock) = with_movable_clock();
    let begun: i64 = setup.query("SELECT CAST(extract(epoch FROM now()) * 1000 AS bigint)");
    let minutely = ["--schedule", "* * * * *", "--timezone", "UTC", "--catch-up"];
    for rule in ["none", "all"] {
        add(&setup, rule, &[&minutely[..], &[rule]].concat());
    }
    add(&setup, "second", &["--every", "1s"]);
    let mut beater = WorkerProcess::spawn(setup.project.command(&["beater"]));
    wait::until_true("some ticks", || ticks(&setup, "second").queued >= 3);

    move_clock(&setup, &clock, HOUR_MS);
    for name in ["none", "all", "second"] {
        wait::until_true("the hour to be dealt with", || {
            ticks(&setup, name).last > begun + HOUR_MS - 60_000
        });
    }
    let of_none = ticks(&setup, "none");
    assert!(of_none.queued <= 4 && (57..=60).contains(&of_none.skipped), "{of_none:?}");
    let of_all = ticks(&setup, "all");
    assert!((59..=64).contains(&of_all.queued) && of_all.skipped == 0, "{of_all:?}");
    // Within the grace of a minute each second is queued, and of the missed ones the last at most.
    let of_second = ticks(&setup, "second");
    assert!(of_second.skipped > 3400 && of_second.queued < 250, "{of_second:?}");
    no_second_is_missing_or_told_twice(&setup, "second");

    move_clock(&setup, &clock, -HOUR_MS);
    // What was being claimed at that moment is done once a new entry has its ticks.
    add(&setup, "later", &["--every", "1s"]);
    wait::until_true("an entry of the new time to fire", || ticks(&setup, "later").queued >= 2);
    let before = ["none", "all", "second"].map(|name| ticks(&setup, name));
    let of_later = ticks(&setup, "later").queued;
    wait::until_true("it to go on", || ticks(&setup, "later").queued >= of_later + 3);
    let after = ["none", "all", "second"].map(|name| ticks(&setup, name));
    assert_eq!(before, after, "nothing comes twice");

    move_clock(&setup, &clock, 2 * HOUR_MS);
    wait::until_true("the time to be caught up", || {
        ticks(&setup, "second").last > after[2].last + HOUR_MS / 2
    });
    no_second_is_missing_or_told_twice(&setup, "second");
    assert_eq!(beater.terminate(), Some(0));
    setup.execute(&format!("DROP SCHEMA {clock} CASCADE"));
}
