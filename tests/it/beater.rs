//! Beaters as processes: each tick once, whoever is alive, whatever becomes of them.

use std::collections::BTreeSet;
use std::time::Duration;

use sqjobs::failpoint::{self, BEATER_POINTS};
use support::{Json, Pair, Setup, WorkerProcess, wait};

fn beater(setup: &Setup) -> WorkerProcess {
    WorkerProcess::spawn(setup.project.command(&["beater"]))
}

/// Adds an entry of the adder on the setup's queue.
fn add_entry(setup: &Setup, name: &str, args: &[&str]) {
    let fixed = ["periodic", "add", name, "--job", "adder_job", "--args-json", "[1, 2]", "--queue"];
    let _ = setup.run(&[&fixed[..], &[setup.queue.as_str()], args].concat()).ok();
}

fn show(setup: &Setup, name: &str) -> Json {
    let args = ["periodic", "show", name, "--history", "10000", "--output", "json"];
    setup.run(&args).ok().json()
}

/// The history of an entry, oldest first.
fn history(setup: &Setup, name: &str) -> Vec<serde_json::Value> {
    let mut ticks = show(setup, name).value("history").as_array().unwrap().clone();
    ticks.reverse();
    ticks
}

/// The seconds since 1970 of its fire times.
fn fire_times(setup: &Setup, name: &str) -> Vec<i64> {
    let seconds = |tick: &serde_json::Value| {
        let text = tick["fire_time"].as_str().unwrap();
        sqjobs::clock::Timestamp::parse(text).unwrap().0 / 1000
    };
    history(setup, name).iter().map(seconds).collect()
}

/// Moves the next tick of an entry back, as if all beaters had been away.
fn move_back(setup: &Setup, name: &str, ms: i64) {
    let table = setup.table("periodic");
    setup.execute(&format!(
        "UPDATE {table} SET next_fire_at = next_fire_at - {ms}, due_at = due_at - {ms} \
         WHERE name = '{name}'"
    ));
}

fn count(setup: &Setup, sql: &str) -> i64 {
    setup.query(&format!("SELECT CAST(count(*) AS bigint) FROM {sql}"))
}

/// Every second from the first tick to the last has one, each with a job of its own that ran.
fn each_second_has_one_tick_and_one_job(setup: &Setup, names: &[&str], least: usize) {
    for name in names {
        let times = fire_times(setup, name);
        let first = times[0];
        let all: Vec<i64> = (first..first + i64::try_from(times.len()).unwrap()).collect();
        assert_eq!(times, all, "the ticks of {name}");
        assert!(times.len() >= least, "{} ticks of {name}", times.len());
        let ticks = history(setup, name);
        let jobs: BTreeSet<&str> =
            ticks.iter().map(|tick| tick["job_id"].as_str().unwrap()).collect();
        assert_eq!(jobs.len(), ticks.len(), "jobs of {name}");
    }
    let jobs = setup.table("jobs");
    wait::until_true("all jobs that were queued to have run", || {
        count(setup, &format!("{jobs} WHERE status <> 'SUCCESS'")) == 0
    });
    let queued =
        count(setup, &format!("{} WHERE outcome = 'queued'", setup.table("periodic_ticks")));
    assert_eq!(count(setup, &format!("{jobs} WHERE schedule IS NOT NULL")), queued);
    // None ran twice: a job that succeeded is not run again.
    assert_eq!(
        count(setup, &format!("{} WHERE outcome = 'success'", setup.table("attempts"))),
        queued
    );
    setup.wait_until_drained();
}

on_every_pair! {
    /// The rows of `list` and `status` tell the entry and the instant that it meant.
    fn a_due_tick_is_queued_sent_and_run(pair) {
        let setup = Setup::new(pair, &["adder"]);
        add_entry(&setup, "every-second", &["--every", "1s"]);
        let (mut beater, mut worker) = (beater(&setup), setup.worker(&[]));
        beater.wait_until_ready();
        worker.wait_until_ready();
        let job = wait::until("a tick whose job ran", || {
            let done = setup.run(&["list", "--status", "SUCCESS", "--output", "json"]).ok();
            done.json_lines().into_iter().next()
        });
        assert_eq!((job.text("schedule"), job.number("result")), ("every-second".to_owned(), 3));
        assert!(job.text("fire_time").ends_with(".000Z"), "{job}");
        assert_eq!(beater.terminate(), Some(0));
        assert_eq!(worker.terminate(), Some(0));
    }

    fn after_an_hour_without_beaters_each_catch_up_rule_does_what_it_says(pair) {
        let setup = Setup::new(pair, &[]);
        for rule in ["none", "last", "all"] {
            add_entry(&setup, rule, &["--schedule", "*/2 * * * *", "--timezone", "UTC", "--catch-up", rule]);
            move_back(&setup, rule, 3_600_000);
        }
        let mut beater = beater(&setup);
        beater.wait_until_ready();
        for rule in ["none", "last", "all"] {
            wait::until_true("the outage to be dealt with", || !history(&setup, rule).is_empty());
        }
        beater.kill();
        let outcomes = |rule: &str| {
            let ticks = history(&setup, rule);
            let of = |word: &str| ticks.iter().filter(|t| t["outcome"] == word).map(|t| t["ticks"].as_i64().unwrap()).sum::<i64>();
            (of("queued"), of("skipped"))
        };
        // 30 ticks or, on a border of two minutes, 29; at most one of them was in time.
        let (queued, skipped) = outcomes("none");
        assert!(queued <= 1 && (28..=30).contains(&skipped), "{queued} {skipped}");
        let (queued, skipped) = outcomes("last");
        assert!((1..=2).contains(&queued) && (28..=30).contains(&skipped), "{queued} {skipped}");
        let (queued, skipped) = outcomes("all");
        assert!((29..=31).contains(&queued) && skipped == 0, "{queued} {skipped}");
        let times = fire_times(&setup, "all");
        assert!(times.is_sorted(), "{times:?}");
    }

    fn a_tick_is_skipped_or_replaces_while_the_job_before_waits(pair) {
        let setup = Setup::new(pair, &[]);
        add_entry(&setup, "skips", &["--every", "1s", "--overlap", "skip"]);
        add_entry(&setup, "replaces", &["--every", "1s", "--overlap", "replace"]);
        add_entry(&setup, "allows", &["--every", "1s", "--overlap", "allow"]);
        let mut beater = beater(&setup);
        wait::until_true("some ticks", || {
            ["skips", "replaces", "allows"].iter().all(|name| history(&setup, name).len() >= 3)
        });
        beater.kill();
        let queued = |name: &str| {
            history(&setup, name).iter().filter(|tick| tick["outcome"] == "queued").count()
        };
        assert_eq!(queued("skips"), 1);
        assert!(history(&setup, "skips")[1]["reason"].as_str().unwrap().contains("overlap"));
        assert!(queued("allows") >= 3 && queued("replaces") >= 3);
        let of = |status: &str| {
            let table = setup.table("jobs");
            count(&setup, &format!("{table} WHERE schedule = 'replaces' AND status = '{status}'"))
        };
        assert_eq!(of("PENDING"), 1, "only the last one waits");
        assert_eq!(of("CANCELLED"), i64::try_from(queued("replaces")).unwrap() - 1);
    }

    /// On whichever worker it runs, as if an operator had cancelled it.
    fn a_later_tick_stops_the_job_that_runs_where_the_rule_is_replace(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let mut workers = [setup.worker(&[]), setup.worker(&[])];
        for worker in &mut workers {
            worker.wait_until_ready();
        }
        let long = ["periodic", "add", "long", "--job", "sleep_ms", "--args-json", "[600000]"];
        let rule = ["--every", "4s", "--overlap", "replace", "--queue", setup.queue.as_str()];
        let _ = setup.run(&[&long[..], &rule].concat()).ok();
        let mut beater = beater(&setup);
        let jobs = setup.table("jobs");
        let of = |condition: &str| count(&setup, &format!("{jobs} WHERE schedule = 'long' AND {condition}"));
        wait::until_true("two jobs that ran to be stopped", || {
            of("status = 'CANCELLED' AND attempts = 1") >= 2
        });
        assert_eq!(beater.terminate(), Some(0));
        // The last one is left, and runs.
        wait::until_true("the last one to run alone", || {
            of("status = 'RUNNING'") == 1 && of("status NOT IN ('RUNNING', 'CANCELLED')") == 0
        });
        assert_eq!(show(&setup, "long").text("last_status"), "RUNNING");
        let attempts = setup.table("attempts");
        let stopped = count(&setup, &format!("{attempts} WHERE outcome = 'cancelled'"));
        assert_eq!(stopped, of("status = 'CANCELLED' AND attempts = 1"));
        assert_eq!(setup.dead().len(), 0);
    }

    fn a_row_that_somebody_edited_to_nonsense_is_set_aside_and_the_others_go_on(pair) {
        let setup = Setup::new(pair, &[]);
        let mut nonsense = vec![
            ("schedule = '61 * * * *'", "minute"),
            ("timezone = 'Europe/Madird'", "Europe/Madrid"),
            ("args = 'x'", "array"),
            ("queue = 'no queue'", "queue"),
            ("grace_ms = -1", "grace"),
            ("next_fire_at = -5", "2000"),
            ("next_fire_at = 4102444800000", "before its next fire time"),
            ("next_fire_at = 9223372036854775807", "before its next fire time"),
        ];
        if pair != Pair::PostgresSqs {
            // SQLite keeps what is given, whatever its column's type.
            nonsense.extend([
                ("next_fire_at = 'tomorrow'", "`next_fire_at` in the database is not a whole number"),
                ("due_at = 'tomorrow'", "`due_at` in the database is not a whole number"),
                ("grace_ms = 1.5", "`grace_ms` in the database is not a whole number"),
                ("schedule = x'ff'", "`schedule` in the database is not text"),
            ]);
        }
        let name = |number: usize| format!("bad-{number}");
        let table = setup.table("periodic");
        add_entry(&setup, "good", &["--schedule", "* * * * *", "--timezone", "UTC"]);
        move_back(&setup, "good", 60_000);
        for (number, (change, _)) in nonsense.iter().enumerate() {
            let name = name(number);
            add_entry(&setup, &name, &["--schedule", "* * * * *", "--timezone", "UTC"]);
            move_back(&setup, &name, 60_000);
            setup.execute(&format!("UPDATE {table} SET {change} WHERE name = '{name}'"));
        }
        let mut beater = beater(&setup);
        beater.wait_until_ready();
        wait::until_true("the good one to be queued", || !history(&setup, "good").is_empty());
        for (number, (change, reason)) in nonsense.iter().enumerate() {
            let name = name(number);
            let aside = wait::until("a bad one to be set aside", || {
                let entry = show(&setup, &name);
                (entry.raw("aside") != "null").then(|| entry.text("aside"))
            });
            assert!(aside.contains(reason), "{change}: {aside}");
            assert!(history(&setup, &name).is_empty(), "{change}");
        }
        let _ = setup.run(&["periodic", "list"]).ok();
        // It can be disabled as it is, and does not seem to fire by being enabled.
        setup.run(&["periodic", "enable", "bad-0"]).exits(2).is_a_sentence().says(&["minute"]);
        for number in 0..nonsense.len() {
            let _ = setup.run(&["periodic", "disable", &name(number)]).ok();
        }
        // An edit that mends it brings it back.
        let fixed = ["periodic", "edit"];
        let mend = ["--schedule", "0 0 * * *", "--timezone", "UTC", "--args-json", "[]", "--queue", "q", "--grace", "60s"];
        for number in 0..nonsense.len() {
            let _ = setup.run(&[&fixed[..], &[&name(number)], &mend].concat()).ok();
            let entry = show(&setup, &name(number));
            assert_eq!(entry.raw("aside"), "null", "{entry}");
            assert!(entry.text("next_fire_at").contains("T00:00:00"), "{entry}");
            let _ = setup.run(&["periodic", "enable", &name(number)]).ok();
            assert_eq!(show(&setup, &name(number)).raw("enabled"), "true");
        }
        assert_eq!(beater.terminate(), Some(0));
    }
}

on_every_pair! {
    fn a_kill_between_any_two_steps_of_a_claim_loses_no_tick_and_doubles_none(pair) {
        let setup = Setup::new(pair, &["adder"]);
        add_entry(&setup, "every-second", &["--every", "1s", "--grace", "10m"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        for point in BEATER_POINTS {
            let mut command = setup.project.command(&["beater"]);
            command.env(failpoint::VARIABLE, format!("{point}=kill@2"));
            let mut killed = WorkerProcess::spawn(command);
            assert_eq!(killed.wait_for_exit().code(), None, "{point} is not reached");
            let before = history(&setup, "every-second").len();
            let mut beater = beater(&setup);
            wait::until_true("another beater to go on", || {
                history(&setup, "every-second").len() > before + 1
            });
            assert_eq!(beater.terminate(), Some(0));
        }
        each_second_has_one_tick_and_one_job(&setup, &["every-second"], 8);
    }
}

on_every_pair! {
    /// What is due by the schedule before is claimed before a change takes effect, and what leaves
    /// the schedule alone takes nothing and doubles nothing.
    fn an_entry_that_is_edited_while_it_fires_loses_no_tick_and_doubles_none(pair) {
        let setup = Setup::new(pair, &["adder"]);
        add_entry(&setup, "edited", &["--every", "1s", "--grace", "10m"]);
        let mut beaters = [beater(&setup), beater(&setup), beater(&setup)];
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        wait::until_true("a first tick", || !fire_times(&setup, "edited").is_empty());
        let edit = |args: &[&str]| {
            let _ = setup.run(&[&["periodic", "edit", "edited"], args].concat()).ok();
        };
        for turn in 0..12 {
            let grace = format!("{}m", 10 + turn);
            edit(&["--grace", &grace]);
        }
        let times = fire_times(&setup, "edited");
        assert!(times.windows(2).all(|pair| pair[1] == pair[0] + 1), "{times:?}");
        // Every even second is a tick of both.
        for turn in 0..12 {
            edit(&["--every", if turn % 2 == 0 { "2s" } else { "1s" }]);
        }
        let end = fire_times(&setup, "edited").len() + 3;
        wait::until_true("some more ticks", || fire_times(&setup, "edited").len() >= end);
        for beater in &mut beaters {
            assert_eq!(beater.terminate(), Some(0));
        }
        let times = fire_times(&setup, "edited");
        let even = |from: i64, to: i64| (from..=to).filter(|time| time % 2 == 0).count();
        let found = times.iter().filter(|time| **time % 2 == 0).count();
        assert_eq!(found, even(times[0], times[times.len() - 1]), "{times:?}");
        let jobs = setup.table("jobs");
        wait::until_true("all to have run", || {
            count(&setup, &format!("{jobs} WHERE status = 'SUCCESS'")) == i64::try_from(times.len()).unwrap()
        });
        assert_eq!(count(&setup, &jobs), i64::try_from(times.len()).unwrap());
        assert_eq!(worker.terminate(), Some(0));
    }

    /// As a machine that sleeps: it has taken rows of the outbox, which others send once its time
    /// for that is over; when it wakes up it sends them again, and each job runs once.
    fn a_beater_that_is_stopped_for_longer_than_any_lease_loses_no_tick_and_doubles_none(pair) {
        let setup = Setup::new(pair, &["adder"]);
        add_entry(&setup, "every-second", &["--every", "1s", "--grace", "10m"]);
        let (mut beater, mut worker) = (beater(&setup), setup.worker(&["--lease", "5s"]));
        beater.wait_until_ready();
        worker.wait_until_ready();
        let ticks = || fire_times(&setup, "every-second").len();
        let mut stopped = wait::until("a beater to stop while it holds no file", || {
            let mut command = setup.project.command(&["beater"]);
            command.env(failpoint::VARIABLE, "outbox-taken=stop");
            let mut stopped = WorkerProcess::spawn(command);
            stopped.wait_for_line(&["stopped at fail point outbox-taken"]);
            let before = ticks();
            // Its other half may be within a transaction, which on SQLite holds the file.
            let goes_on = wait::within(Duration::from_secs(15), || (ticks() > before + 1).then_some(()));
            goes_on.map(|()| stopped)
        });
        let held = ticks();
        let open = format!("{} WHERE status <> 'SUCCESS'", setup.table("jobs"));
        wait::until_true("time to pass", || ticks() > held + 35);
        // A row is left to its taker for 30 s, a worker's claim for its lease.
        wait::until_true("the others to do what it holds", || count(&setup, &open) < 5);
        stopped.signal("CONT");
        let before = ticks();
        wait::until_true("both to go on", || ticks() > before + 3);
        assert_eq!(stopped.terminate(), Some(0));
        assert_eq!(beater.terminate(), Some(0));
        each_second_has_one_tick_and_one_job(&setup, &["every-second"], 36);
        assert_eq!(worker.terminate(), Some(0));
    }
}

/// Five beaters are killed, stopped for longer than any lease, cut from the database and run with
/// wrong clocks, while five entries fire each second.
fn five_beaters_in_trouble(pair: Pair) {
    let mut setup = Setup::new(pair, &["adder"]);
    let application = support::servers::unique("beaters");
    if pair == Pair::PostgresSqs {
        let url = format!("{}?application_name={application}", support::servers::database_url());
        setup.project.set("SQJOBS_DATABASE", &url);
    }
    let names = ["a", "b", "c", "d", "e"];
    // The pauses of this test are no outage of an entry.
    for name in names {
        add_entry(&setup, name, &["--every", "1s", "--grace", "10m"]);
    }
    let start = |clock_off: i64| {
        let mut command = setup.project.command(&["beater"]);
        command.env("SQJOBS_TEST_CLOCK_OFFSET_MS", clock_off.to_string());
        WorkerProcess::spawn(command)
    };
    let mut beaters: Vec<WorkerProcess> = [0, 0, 5000, -5000, 0].map(start).into();
    let mut worker = setup.worker(&[]);
    for beater in &mut beaters {
        beater.wait_until_ready();
    }
    worker.wait_until_ready();
    beaters[2].wait_for_line(&["clock", "ahead of the database's"]);
    beaters[3].wait_for_line(&["clock", "behind the database's"]);
    let mut random = fastrand::Rng::with_seed(5);
    let ticks = |setup: &Setup| count(setup, &setup.table("periodic_ticks"));
    for round in 0..12 {
        let before = ticks(&setup);
        let victim = random.usize(..beaters.len());
        match round % 3 {
            0 => {
                beaters[victim].kill();
                beaters[victim] = start(0);
            }
            1 => beaters[victim].signal("STOP"),
            _ if pair == Pair::PostgresSqs => setup.execute(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = '{application}'"
            )),
            _ => beaters[victim].signal("STOP"),
        }
        if pair == Pair::Embedded {
            // One that is stopped within a transaction holds the file, as any program would.
            for beater in &beaters {
                beater.signal("CONT");
            }
        }
        wait::until_true("the others to go on", || ticks(&setup) >= before + 10);
        if random.bool() {
            for beater in &beaters {
                beater.signal("CONT");
            }
        }
    }
    for beater in &beaters {
        beater.signal("CONT");
    }
    let before = ticks(&setup);
    wait::until_true("all to go on", || ticks(&setup) >= before + 10);
    for beater in &mut beaters {
        assert_eq!(beater.terminate(), Some(0));
    }
    each_second_has_one_tick_and_one_job(&setup, &names, 10);
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn five_beaters_in_trouble_on_postgres_queue_each_tick_once() {
    five_beaters_in_trouble(Pair::PostgresSqs);
}

#[test]
fn five_beaters_in_trouble_on_sqlite_queue_each_tick_once() {
    five_beaters_in_trouble(Pair::Embedded);
}

#[test]
fn a_worker_with_a_beater_needs_no_other_process() {
    let setup = Setup::new(Pair::Embedded, &["adder"]);
    add_entry(&setup, "every-second", &["--every", "1s"]);
    let mut worker = setup.worker(&["--beater"]);
    worker.wait_for_line(&["job adder_job: success"]);
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_beater_of_some_queues_leaves_the_entries_of_others_alone() {
    let setup = Setup::new(Pair::Embedded, &[]);
    add_entry(&setup, "ours", &["--every", "1s"]);
    let other = ["periodic", "add", "other", "--job", "adder_job", "--every", "1s", "--queue", "x"];
    let _ = setup.run(&other).ok();
    let mut beater = WorkerProcess::spawn(setup.project.command(&["beater", &setup.queue]));
    wait::until_true("ticks of ours", || history(&setup, "ours").len() >= 2);
    beater.kill();
    assert!(history(&setup, "other").is_empty());
}
