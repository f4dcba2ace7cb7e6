//! Leases, claims and what follows when a worker dies, is slow, or meets the queue's own limits.

use std::fmt::Write as _;

use support::servers;
use support::sqs::SqsQueue;
use support::{Pair, Setup};

/// The shortest lease that may be set, so that what depends on its end need not be waited for long.
const SHORT: [&str; 2] = ["--lease", "5s"];

on_every_pair! {
    /// Its message is extended again and again, so the other worker never gets it.
    fn a_job_that_outlasts_its_lease_runs_once(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _workers = [setup.worker(&SHORT), setup.worker(&SHORT)];
        let id = setup.add(&["sleep_ms", "9000"]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.number("attempts"), 1);
        setup.wait_until_drained();
        assert_eq!(setup.status(&id).unwrap().number("attempts"), 1);
    }

    fn the_jobs_of_a_killed_worker_run_again_on_another(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids: Vec<_> = (0..5).map(|_| setup.add(&["sleep_ms", "3000"])).collect();
        let mut first = setup.worker(&SHORT);
        for id in &ids {
            let _ = setup.wait_for_status(id, "RUNNING");
        }
        first.kill();
        let _second = setup.worker(&SHORT);
        for id in &ids {
            let row = setup.wait_for_status(id, "SUCCESS");
            assert_eq!(row.number("attempts"), 2, "{row}");
        }
        setup.wait_until_drained();
        assert!(setup.dead().is_empty());
    }

    /// Its one attempt is not spent by the stop.
    fn what_outlasts_the_grace_time_is_given_back_and_not_counted(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\nmax-attempts = 1\n");
        let id = setup.add(&["effect", "--kwarg", "ms=4000"]);
        let mut first = setup.worker(&["--grace", "200ms"]);
        let _ = setup.wait_for_status(&id, "RUNNING");
        assert_eq!(first.terminate(), Some(0), "{}", first.shown());
        let is_told = |line: &String| line.contains("torn down") || line.contains("failed ");
        assert!(!first.log().iter().any(is_told), "it ran no later stage: {}", first.shown());
        assert_eq!(setup.status(&id).unwrap().text("status"), "PENDING");
        let _second = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.number("attempts"), 2);
    }

    /// What was written before the clock was set back is of the future: by it a dead worker would
    /// hold its jobs, and a dead sender its rows, until the clock is there again.
    fn a_clock_that_is_set_back_holds_nothing_up(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let running = setup.add(&["sleep_ms", "1000"]);
        let mut first = setup.worker(&SHORT);
        let _ = setup.wait_for_status(&running, "RUNNING");
        first.kill();
        let parked = setup.add(&["counter", "--delay", "20m"]);
        let hour = 3_600_000;
        let statement = format!("UPDATE {{workers}} SET renewed_at = renewed_at + {hour}");
        setup.execute(&setup.named(&statement));
        let statement =
            format!("UPDATE {{outbox}} SET taken_until = not_before + {hour}, not_before = 0");
        setup.execute(&setup.named(&statement));
        setup.execute(&setup.named("UPDATE {jobs} SET not_before = 0"));

        let _second = setup.worker(&SHORT);
        let _ = setup.wait_for_status(&parked, "SUCCESS");
        let row = setup.wait_for_status(&running, "SUCCESS");
        assert_eq!(row.number("attempts"), 2, "{row}");
    }

    fn a_hundred_jobs_over_three_workers_with_kills_all_succeed_once(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        for n in 0..100 {
            let mut body = String::new();
            write!(body, r#"{{"id": "job-{n}", "name": "sleep_ms", "args": [200]}}"#).unwrap();
            setup.send_body(&body);
        }
        let mut first = setup.worker(&[&SHORT[..], &["--concurrency", "8"]].concat());
        let mut second = setup.worker(&[&SHORT[..], &["--concurrency", "8"]].concat());
        let _ = setup.wait_for_status("job-0", "SUCCESS");
        first.kill();
        second.kill();
        let _third = setup.worker(&SHORT);
        for n in 0..100 {
            let _ = setup.wait_for_status(&format!("job-{n}"), "SUCCESS");
        }
        setup.wait_until_drained();
        let count = |sql: &str| setup.query::<i64>(&sql.replace("{attempts}", &setup.table("attempts")));
        assert_eq!(count("SELECT count(*) FROM {attempts} WHERE outcome = 'success'"), 100);
        assert_eq!(count("SELECT count(*) FROM {attempts} WHERE outcome = 'running'"), 0);
    }
}

/// The queue would move the message at its third receipt; the job needs four attempts.
#[test]
fn a_retry_that_the_queue_would_dead_letter_is_parked_and_sent_again() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\ninitial-backoff = \"500ms\"\n");
        let dead = SqsQueue::unique();
        let arn = format!("arn:aws:sqs:us-east-1:000000000000:{}", dead.name);
        let policy = format!(r#"{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "2"}}"#);
        let queue = SqsQueue::create(&servers::unique("redrive"), &[("RedrivePolicy", &policy)]);
        let added = setup.run(&["add", "--queue", &queue.name, "fail_until", "4"]).ok();
        let _worker = setup.project.worker(&[&queue.name]);
        let row = setup.wait_for_status(added.line(), "SUCCESS");
        assert_eq!(row.number("attempts"), 4);
        assert_eq!(dead.depth(), [0, 0, 0], "the queue itself moved nothing");
    }
}

#[test]
fn a_job_that_failed_for_good_is_copied_to_the_dead_letter_queue() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        let dead = SqsQueue::unique();
        let arn = format!("arn:aws:sqs:us-east-1:000000000000:{}", dead.name);
        let policy = format!(r#"{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "5"}}"#);
        let queue = SqsQueue::create(&servers::unique("redrive"), &[("RedrivePolicy", &policy)]);
        let body = r#"{"id": "a",  "name": "fail_permanent", "args": ["no way"]}"#;
        queue.send(body);
        let _worker = setup.project.worker(&[&queue.name]);
        let _ = setup.wait_for_status("a", "FAILURE");
        support::wait::until_true("a copy", || dead.depth() == [1, 0, 0]);
        assert_eq!(dead.receive(30)[0].body.as_deref(), Some(body));
        assert_eq!(setup.wait_for_dead(1)[0].text("body"), body);
    }
}
