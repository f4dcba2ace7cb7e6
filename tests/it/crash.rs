//! Kills the real process by SIGKILL between every two steps, and counts effects: no job without
//! a final row, no second stored success; a job ran to its end twice only where the kill fell
//! between that end and the commit.
//!
//! Effects are counted past the host: the guest tells its end as the last thing it does, and
//! the lines that all workers have passed on are counted, of the killed one as of the next.

use std::collections::BTreeSet;

use sqjobs::failpoint::POINTS;
use support::{Pair, Setup, WorkerProcess, side_by_side, wait};

/// The shortest lease that may be set: what a killed worker held is back after it.
const SHORT: [&str; 4] = ["--lease", "5s", "--grace", "200ms"];
/// The id of the job that is watched.
const VICTIM: &str = "victim";
/// Scenarios of one pair at a time: most of each is waiting for a lease to end.
const WIDTH: usize = 16;

/// How the process gets to the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    /// A job succeeds.
    Success,
    /// A job that records nothing succeeds.
    Unrecorded,
    /// A job fails in its first attempt and comes again.
    Return,
    /// A job asks to run again later than a message can stay invisible.
    Park,
    /// A body is no job.
    Malformed,
    /// A job outlasts half of its lease.
    Extend,
    /// The worker is told to stop while a job runs that outlasts the grace time.
    Drain,
    /// A job adds the watched one.
    Child,
    /// A job adds the watched one with a delay that is left to the queue.
    DelayedChild,
    /// `add` dies on its way.
    Add,
    /// A job was added with a delay that only the database can wait for.
    Delayed,
    /// `add` dies on its way with a unique key, and another add of the key comes.
    Unique,
    /// A dead job is sent again by a command that dies, then by another.
    Again,
    /// The outbox holds a row for a queue that there can't be.
    Undeliverable,
    /// `cancel` of a job that waits dies on its way.
    CancelWaiting,
    /// The worker dies as it stops a job that was cancelled.
    CancelRunning,
    /// The worker dies as it prunes a job that is done.
    Prune,
}

/// A kill, and how often the watched job has then run to its end, once all is over.
struct Kill {
    point: &'static str,
    story: Story,
    ends: usize,
}

const fn kill(point: &'static str, story: Story, ends: usize) -> Kill {
    Kill { point, story, ends }
}

const KILLS: &[Kill] = &[
    kill("received", Story::Success, 1),
    kill("held", Story::Success, 1),
    kill("decoded", Story::Success, 1),
    kill("claiming", Story::Success, 1),
    kill("claim-written", Story::Success, 1),
    kill("claimed", Story::Success, 1),
    kill("instantiated", Story::Success, 1),
    kill("running", Story::Success, 1),
    kill("logging", Story::Success, 1),
    // Between the guest's end and the commit, and only there, the job runs to its end again.
    kill("ran", Story::Success, 2),
    kill("storing", Story::Success, 2),
    kill("outcome-written", Story::Success, 2),
    kill("stored", Story::Success, 1),
    kill("deleting", Story::Success, 1),
    kill("deleted", Story::Success, 1),
    // Without a row there is no commit: up to the delete, the job runs to its end again.
    kill("running", Story::Unrecorded, 1),
    kill("ran", Story::Unrecorded, 2),
    kill("deleting", Story::Unrecorded, 2),
    kill("deleted", Story::Unrecorded, 1),
    kill("ran", Story::Return, 1),
    kill("outcome-written", Story::Return, 1),
    kill("stored", Story::Return, 1),
    kill("giving-back", Story::Return, 1),
    kill("given-back", Story::Return, 1),
    kill("parked", Story::Park, 1),
    kill("outbox-taken", Story::Park, 1),
    kill("outbox-sent", Story::Park, 1),
    kill("putting-aside", Story::Malformed, 0),
    kill("put-aside", Story::Malformed, 0),
    kill("extending", Story::Extend, 1),
    kill("extended", Story::Extend, 1),
    kill("draining", Story::Drain, 1),
    kill("interrupting", Story::Drain, 1),
    kill("drained", Story::Drain, 1),
    kill("outbox-taken", Story::Child, 1),
    kill("outbox-sending", Story::Child, 1),
    kill("outbox-sent", Story::Child, 1),
    kill("outbox-noted", Story::Child, 1),
    kill("outbox-taken", Story::DelayedChild, 1),
    kill("outbox-sending", Story::DelayedChild, 1),
    kill("outbox-sent", Story::DelayedChild, 1),
    kill("outbox-noted", Story::DelayedChild, 1),
    kill("outbox-added", Story::Add, 1),
    kill("outbox-sending", Story::Add, 1),
    kill("outbox-sent", Story::Add, 1),
    kill("outbox-noted", Story::Add, 1),
    kill("outbox-added", Story::Delayed, 1),
    kill("outbox-taken", Story::Delayed, 1),
    kill("outbox-sending", Story::Delayed, 1),
    kill("outbox-sent", Story::Delayed, 1),
    kill("outbox-noted", Story::Delayed, 1),
    kill("add-written", Story::Unique, 1),
    kill("outbox-added", Story::Unique, 1),
    kill("outbox-sending", Story::Unique, 1),
    kill("outbox-sent", Story::Unique, 1),
    kill("outbox-noted", Story::Unique, 1),
    kill("retry-written", Story::Again, 1),
    kill("retried", Story::Again, 1),
    kill("outbox-sent", Story::Again, 1),
    kill("outbox-noted", Story::Again, 1),
    kill("outbox-refused", Story::Undeliverable, 0),
    // Before the commit nothing was cancelled.
    kill("cancel-written", Story::CancelWaiting, 1),
    kill("cancelled", Story::CancelWaiting, 0),
    kill("stopping", Story::CancelRunning, 0),
    kill("prune-written", Story::Prune, 1),
];

#[test]
fn every_fail_point_is_killed_at() {
    let killed: BTreeSet<&str> = KILLS.iter().map(|kill| kill.point).collect();
    assert_eq!(killed, POINTS.iter().copied().collect());
}

on_every_pair! {
    fn a_kill_at_any_point_loses_no_job_and_doubles_no_success(pair) {
        side_by_side(KILLS, WIDTH, |kill| kill.check(pair));
    }

    /// Frozen, as by a machine that swaps: it wakes after another worker has taken its job over.
    fn what_a_frozen_worker_brings_too_late_is_dropped(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        send(&setup, VICTIM, "effect", r#"{"ms": 2000}"#);
        let mut frozen = setup.worker(&SHORT);
        wait::until_true("a running job", || {
            frozen.log().iter().any(|line| line.contains(": begun "))
        });
        frozen.signal("STOP");
        let mut other = setup.worker(&SHORT);
        wait_until_settled(&setup, 1);
        frozen.signal("CONT");
        frozen.wait_for_line(&["lost"]);
        assert_eq!((frozen.terminate(), other.terminate()), (Some(0), Some(0)));
        let outcomes = setup.rows("SELECT outcome, job_id FROM {attempts} ORDER BY number");
        let outcomes: Vec<&str> = outcomes.iter().map(|(outcome, _)| outcome.as_str()).collect();
        assert_eq!(outcomes, ["crashed", "success"]);
        assert_eq!(ends(&other), [(VICTIM.to_owned(), 2)]);
    }

    /// Beside the killed one stand jobs at every step of their way.
    fn jobs_beside_a_kill_end_twice_only_where_their_outcome_was_not_stored(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        for number in 0..60 {
            send(&setup, &format!("job-{number}"), "effect", r#"{"ms": 20}"#);
        }
        let crowd = [&SHORT[..], &["--concurrency", "8"]].concat();
        let mut first = setup.worker_killed_at("ran[effect]", &crowd);
        first.wait_until_killed_at("ran");
        let mut second = setup.worker_killed_at("outcome-written[effect]", &crowd);
        second.wait_until_killed_at("outcome-written");
        let mut third = setup.worker(&crowd);
        wait_until_settled(&setup, 60);
        assert_eq!(third.terminate(), Some(0), "{}", third.shown());

        let ended: Vec<(String, i64)> = [&first, &second, &third].iter().flat_map(|w| ends(w)).collect();
        let stored = "SELECT count(*) FROM {attempts} WHERE outcome = 'success'";
        assert_eq!(setup.count(stored), 60, "one stored success for each job");
        let mut not_stored = 0;
        for (id, attempt) in &ended {
            let outcome: String = setup.query(&setup.named(&format!(
                "SELECT outcome FROM {{attempts}} WHERE job_id = '{id}' AND number = {attempt}"
            )));
            match outcome.as_str() {
                "success" => {}
                "crashed" => not_stored += 1,
                other => panic!("attempt {attempt} of {id} ended and is {other}"),
            }
        }
        assert!(not_stored >= 2, "each kill fell between a job's end and its commit");
        assert_eq!(ended.len(), 60 + not_stored, "{ended:?}");
        assert_eq!(ended.len(), ended.iter().collect::<BTreeSet<_>>().len(), "{ended:?}");
    }
}

impl Kill {
    fn check(&self, pair: Pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\ninitial-backoff = \"100ms\"\n");
        let mut ended = self.die(&setup);
        make_due(&setup);
        let mut next = setup.worker(&SHORT);
        next.wait_until_ready();
        self.wait_until_over(&setup);
        assert_eq!(next.terminate(), Some(0), "{self}: {}", next.shown());
        ended.extend(ends(&next));

        let of_victim = ended.iter().filter(|(id, _)| *id == self.watched(&setup)).count();
        let more = if self.is_after_sending() { self.ends_not_stored(&setup, &ended) } else { 0 };
        assert_eq!(of_victim, self.ends + more, "{self}: {ended:?}\n{}", next.shown());
        let stored = "SELECT count(*) FROM {attempts} WHERE outcome = 'success' GROUP BY job_id \
                      UNION ALL SELECT 0 ORDER BY 1 DESC LIMIT 1";
        assert!(setup.count(stored) <= 1, "{self}: no success is stored twice");
        let open = "SELECT count(*) FROM {attempts} WHERE outcome = 'running'";
        assert_eq!(setup.count(open), 0, "{self}: every attempt's end is known");
        let dead: Vec<String> = setup.dead().iter().map(|entry| entry.text("kind")).collect();
        let expected: &[&str] = match self.story {
            Story::Malformed => &["malformed"],
            Story::Undeliverable => &["undeliverable"],
            _ => &[],
        };
        assert_eq!(dead, expected, "{self}");
    }

    /// Has the process die at the point, and tells what has ended by then.
    fn die(&self, setup: &Setup) -> Vec<(String, i64)> {
        match self.story {
            Story::Success => send(setup, VICTIM, "effect", "{}"),
            Story::Unrecorded => send(setup, VICTIM, "unrecorded_effect", "{}"),
            Story::Return => send(setup, VICTIM, "effect", r#"{"fail_before": 2}"#),
            Story::Park => {
                send(setup, VICTIM, "effect", r#"{"fail_before": 2, "retry_after": 50000}"#);
            }
            Story::Malformed => drop(setup.send_body("no job at all")),
            Story::Extend => send(setup, VICTIM, "effect", r#"{"ms": 4000}"#),
            Story::Drain => send(setup, VICTIM, "effect", r#"{"ms": 3000}"#),
            Story::CancelWaiting => {
                let _ = setup.add(&["effect", "--id", VICTIM]);
                command_killed_at(setup, self.point, &["cancel", VICTIM]);
                return Vec::new();
            }
            Story::CancelRunning => send(setup, VICTIM, "effect", r#"{"ms": 60000}"#),
            Story::Prune => return prune_killed_at(setup, self.point),
            Story::Child => drop(setup.add(&["add_children", "1", "--kwarg", "name=effect"])),
            Story::DelayedChild => {
                let delay = ["--kwarg", "name=effect", "--kwarg", "delay_ms=1500"];
                drop(setup.add(&[&["add_children", "1"], &delay[..]].concat()));
            }
            Story::Add => {
                killed_at(setup, self.point, &add(setup, &[]));
                return Vec::new();
            }
            Story::Unique => {
                let key = ["--unique-key", "k", "--unique-for", "1h"];
                killed_at(setup, self.point, &add(setup, &key));
                // Of the first one it returns the id, or it adds the first one that there is.
                assert_eq!(setup.run(&add(setup, &key)).ok().line(), VICTIM);
                let other = [&["add", "--queue", &setup.queue, "effect"], &key[..]].concat();
                assert_eq!(setup.run(&other).ok().line(), VICTIM);
                return Vec::new();
            }
            Story::Delayed if self.point == "outbox-added" => {
                killed_at(setup, self.point, &add(setup, &["--delay", "90d"]));
                return Vec::new();
            }
            Story::Delayed => {
                let _ = setup.run(&add(setup, &["--delay", "90d"])).ok();
                make_due(setup);
            }
            Story::Again => {
                give_up(setup);
                let retry = ["dead", "retry", VICTIM].map(str::to_owned);
                if ["retry-written", "retried"].contains(&self.point) {
                    killed_at(setup, self.point, &retry);
                    let again = setup.run(&retry);
                    assert_eq!(again.code, Some(i32::from(self.point == "retried")), "{again}");
                    return Vec::new();
                }
                let _ = setup.run(&retry).ok();
            }
            Story::Undeliverable => {
                killed_at(setup, "outbox-added", &add(setup, &[]));
                setup.execute(
                    &setup.named("UPDATE {outbox} SET queue = 'no queue', taken_until = 0"),
                );
            }
        }
        // A parent passes some of the points too.
        let of_child = format!("{}[effect]", self.point);
        let point = if self.is_of_child() { &of_child } else { self.point };
        let mut worker = setup.worker_killed_at(point, &SHORT);
        if self.story == Story::Drain {
            wait::until_true("a running job", || {
                worker.log().iter().any(|line| line.contains("begun"))
            });
            worker.signal("TERM");
        }
        if self.story == Story::CancelRunning {
            wait::until_true("a running job", || {
                worker.log().iter().any(|line| line.contains("begun"))
            });
            let _ = setup.run(&["cancel", VICTIM]).ok();
        }
        if self.story == Story::Park {
            worker.wait_until_ready();
            wait::until_true("the end of the worker", || {
                make_due(setup);
                !worker.is_running()
            });
        }
        worker.wait_until_killed_at(self.point);
        ends(&worker)
    }

    fn is_of_child(&self) -> bool {
        matches!(self.story, Story::Child | Story::DelayedChild)
    }

    /// Whether the job is on the queue when the process dies, which may have received it by then.
    fn is_after_sending(&self) -> bool {
        ["outbox-sent", "outbox-noted"].contains(&self.point)
    }

    /// How many of the watched job's attempts ended without an outcome that was stored.
    fn ends_not_stored(&self, setup: &Setup, ended: &[(String, i64)]) -> usize {
        let watched = self.watched(setup);
        let is_crashed = |number: i64| {
            setup.count(&format!(
                "SELECT count(*) FROM {{attempts}} WHERE job_id = '{watched}' \
                 AND number = {number} AND outcome = 'crashed'"
            )) == 1
        };
        ended.iter().filter(|(id, number)| *id == watched && is_crashed(*number)).count()
    }

    fn wait_until_over(&self, setup: &Setup) {
        match self.story {
            Story::Malformed => drop(setup.wait_for_dead(1)),
            // Deleted before the kill, it leaves no row.
            Story::Unrecorded if self.point == "deleted" => {}
            Story::Child | Story::DelayedChild => return wait_until_settled(setup, 2),
            _ => return wait_until_settled(setup, 1),
        }
        setup.wait_until_drained();
    }

    /// The id of the watched job.
    fn watched(&self, setup: &Setup) -> String {
        match self.story {
            Story::Child | Story::DelayedChild => {
                setup.query(&setup.named("SELECT id FROM {jobs} WHERE name = 'effect'"))
            }
            _ => VICTIM.to_owned(),
        }
    }
}

impl std::fmt::Display for Kill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "killed at {} ({:?})", self.point, self.story)
    }
}

/// Sends a job as a producer of any kind would.
fn send(setup: &Setup, id: &str, name: &str, kwargs: &str) {
    setup.send_body(&format!(r#"{{"id": "{id}", "name": "{name}", "kwargs": {kwargs}}}"#));
}

/// Has a job be done, and then pruned by a worker that dies at the point.
fn prune_killed_at(setup: &Setup, point: &str) -> Vec<(String, i64)> {
    send(setup, VICTIM, "effect", "{}");
    let mut first = setup.worker(&SHORT);
    first.wait_until_ready();
    wait_until_settled(setup, 1);
    assert_eq!(first.terminate(), Some(0), "{}", first.shown());
    let mut second = setup.worker_killed_at(point, &[&SHORT[..], &["--keep", "0s"]].concat());
    second.wait_until_killed_at(point);
    [ends(&first), ends(&second)].concat()
}

/// The command that adds the watched job, with these arguments besides.
fn add(setup: &Setup, more: &[&str]) -> Vec<String> {
    let args = ["add", "--queue", &setup.queue, "--id", VICTIM, "effect"];
    args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
}

/// Has the watched job fail for good, with no worker left.
fn give_up(setup: &Setup) {
    let settings = "[defaults]\nmax-attempts = 1\ninitial-backoff = \"100ms\"\n";
    setup.project.write("sqjobs.toml", settings);
    send(setup, VICTIM, "effect", r#"{"fail_before": 2}"#);
    let mut worker = setup.worker(&SHORT);
    let _ = setup.wait_for_dead(1);
    setup.wait_until_drained();
    assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
}

/// Runs a command that dies at the point.
fn killed_at(setup: &Setup, point: &str, args: &[String]) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    command_killed_at(setup, point, &args);
}

/// Runs a command that dies at the point.
fn command_killed_at(setup: &Setup, point: &str, args: &[&str]) {
    let mut command = setup.project.command(args);
    command.env(sqjobs::failpoint::VARIABLE, format!("{point}=kill"));
    let output = support::Output::of(command);
    assert_eq!(output.code, None, "{output}");
    output.says(&[&format!("killed at fail point {point}")]);
}

/// Lets the time pass for which jobs are parked, and for which a sender may hold its rows.
fn make_due(setup: &Setup) {
    // The jobs first: a sender that takes an outbox row looks at its job.
    setup.execute(
        &setup.named("UPDATE {jobs} SET not_before = 0 WHERE not_before > created_at + 3600000"),
    );
    setup.execute(&setup.named("UPDATE {outbox} SET not_before = 0, taken_until = 0"));
    setup.execute(&setup.named("UPDATE {jobs} SET retry_at = 0 WHERE status = 'RETRY'"));
}

/// Waits until so many jobs have their final row, nothing is to be sent and the queue is empty.
fn wait_until_settled(setup: &Setup, jobs: i64) {
    wait::until_true("a final row of every job, and no message left", || {
        setup.count("SELECT count(*) FROM {jobs} WHERE finished_at IS NOT NULL") == jobs
            && setup.count("SELECT count(*) FROM {outbox}") == 0
            && setup.depth() == [0, 0, 0]
    });
}

/// The jobs, each with the number of its attempt, that have run to their end on a worker.
fn ends(worker: &WorkerProcess) -> Vec<(String, i64)> {
    let mut found = Vec::new();
    for line in worker.log() {
        let Some((_, rest)) = line.split_once("ended ") else { continue };
        let words: Vec<&str> = rest.split_whitespace().collect();
        if let [id, "in", "attempt", number, ..] = words[..] {
            found.push((id.to_owned(), number.parse().unwrap()));
        }
    }
    found
}

on_every_pair! {
    /// The worker is started again as often as it dies, as a supervisor would.
    fn of_a_hundred_jobs_the_one_that_takes_the_worker_down_is_put_aside(pair) {
        let mut setup = Setup::new(pair, &["outcomes"]);
        for n in 0..100 {
            setup.send_body(&format!(r#"{{"id": "good-{n}", "name": "sleep_ms", "args": [20]}}"#));
        }
        setup.send_body(r#"{"id": "bad", "name": "counter", "args": []}"#);
        setup.project.set(sqjobs::failpoint::VARIABLE, "running[counter]=kill");
        let args = ["--lease", "5s", "--concurrency", "32"];
        let mut worker = setup.worker(&args);
        let mut deaths = 0;
        wait::until_true("the job that kills to be put aside", || {
            if !worker.is_running() {
                deaths += 1;
                worker = setup.worker(&args);
            }
            !setup.dead().is_empty()
        });
        for n in 0..100 {
            let _ = setup.wait_for_status(&format!("good-{n}"), "SUCCESS");
        }
        let dead = setup.dead();
        assert_eq!(dead.len(), 1, "{dead:?}");
        assert_eq!((dead[0].text("kind"), dead[0].text("id")), ("crashed".into(), "bad".into()));
        let row = setup.status("bad").unwrap();
        assert_eq!((row.text("status"), row.text("error_kind")), ("FAILURE".into(), "crashed".into()));
        assert!(deaths >= 3, "{deaths} deaths");
        setup.wait_until_drained();
    }
}
