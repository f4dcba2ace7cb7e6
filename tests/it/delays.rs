//! Delayed jobs: held back by the queue for minutes, by the database for as long as it takes, and
//! sent once.

use support::sqs::SqsQueue;
use support::{Pair, Setup, servers, wait};

fn parked(setup: &Setup) -> i64 {
    setup.count("SELECT count(*) FROM {outbox}")
}

/// Lets the time pass for which jobs are delayed.
fn make_due(setup: &Setup) {
    // The jobs first: a sender that takes an outbox row looks at its job.
    setup.execute(&setup.named("UPDATE {jobs} SET not_before = 0 WHERE not_before IS NOT NULL"));
    setup.execute(&setup.named("UPDATE {outbox} SET not_before = 0"));
}

on_every_pair! {
    fn a_delay_of_minutes_is_left_to_the_queue(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["counter", "--delay", "15m"]);
        assert_eq!(setup.depth(), [0, 0, 1], "the queue holds it back");
        assert_eq!(parked(&setup), 0);
        let soon = setup.add(&["counter", "--delay", "2s"]);
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&soon, "SUCCESS");
        assert!(row.text("started_at") >= row.text("not_before"), "{row}");
        let row = setup.status(&id).unwrap();
        assert_eq!(row.text("status"), "PENDING");
        assert!(row.text("not_before") > row.text("created_at"));
    }

    fn a_longer_delay_waits_in_the_database_and_is_sent_once_when_it_is_due(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["effect", "--delay", "90d"]);
        let _workers = [setup.worker(&[]), setup.worker(&[])];
        let other = setup.add(&["counter"]);
        let _ = setup.wait_for_status(&other, "SUCCESS");
        assert_eq!((setup.depth(), parked(&setup)), ([0, 0, 0], 1), "never held in flight");
        assert_eq!(setup.status(&id).unwrap().text("status"), "PENDING");
        make_due(&setup);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.number("attempts"), 1);
        assert_eq!(setup.count("SELECT sends FROM {jobs} WHERE name = 'effect'"), 1);
        assert_eq!(parked(&setup), 0);
    }

    /// SQS takes no delay for a single message of a FIFO queue. Those added later do not wait
    /// for it.
    fn on_a_fifo_queue_every_delay_waits_in_the_database(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let queue = format!("{}.fifo", servers::unique("delayed"));
        if pair != Pair::Embedded {
            let _ = SqsQueue::create(&queue, &[("FifoQueue", "true")]);
        }
        let add = |args: &[&str]| {
            let args = [&["add", "--queue", &queue, "--group", "g"], args].concat();
            setup.run(&args).ok().line().to_owned()
        };
        let delayed = add(&["counter", "--delay", "10m"]);
        let soon = add(&["counter", "--delay", "2s"]);
        let later = add(&["counter"]);
        let _worker = setup.project.worker(&[&queue]);
        let later = setup.wait_for_status(&later, "SUCCESS");
        let soon = setup.wait_for_status(&soon, "SUCCESS");
        assert!(soon.text("started_at") >= soon.text("not_before"), "{soon}");
        assert!(soon.text("started_at") >= later.text("finished_at"), "{later}");
        assert_eq!((setup.status(&delayed).unwrap().text("status").as_str(), parked(&setup)), ("PENDING", 1));
        make_due(&setup);
        let _ = setup.wait_for_status(&delayed, "SUCCESS");
    }

    fn a_child_is_delayed_as_its_parent_asks(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let parent = setup.add(&["add_children", "1", "--kwarg", "delay_ms=3600000"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&parent, "SUCCESS");
        assert_eq!(parked(&setup), 1);
        let child = setup.status(&parent).unwrap().value("children")[0].as_str().unwrap().to_owned();
        assert_eq!(setup.status(&child).unwrap().text("status"), "PENDING");
        make_due(&setup);
        let _ = setup.wait_for_status(&child, "SUCCESS");
    }

    /// A parent may run for long after the adding: what it adds waits from its outcome on.
    fn a_child_s_delay_of_minutes_is_left_to_the_queue_and_counts_from_its_parent_s_outcome(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let slow = ["--kwarg", "delay_ms=600000", "--kwarg", "sleep_ms=1500"];
        let parent = setup.add(&[&["add_children", "1"], &slow[..]].concat());
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&parent, "SUCCESS");
        wait::until_true("the child on the queue", || setup.depth() == [0, 0, 1]);
        wait::until_true("an empty outbox", || parked(&setup) == 0);
        let waits = "SELECT c.not_before - p.finished_at FROM {jobs} c, {jobs} p \
                     WHERE c.parent_id = p.id AND c.status = 'PENDING' AND c.sends = 1";
        assert_eq!(setup.count(waits), 600_000);
    }

    fn a_child_that_is_sent_at_once_is_held_back_by_the_queue(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let at_once = ["--kwarg", "at_once=true", "--kwarg", "delay_ms=600000", "--kwarg", "sleep_ms=60000"];
        let parent = setup.add(&[&["add_children", "1"], &at_once[..]].concat());
        let _worker = setup.worker(&["--grace", "0s"]);
        wait::until_true("the child on the queue", || setup.depth()[2] == 1);
        assert_eq!(setup.status(&parent).unwrap().text("status"), "RUNNING");
        wait::until_true("an empty outbox", || parked(&setup) == 0);
    }

    /// Another worker sends it, and the delay still ends when it would have.
    fn a_child_that_could_not_be_sent_for_a_while_runs_when_it_is_due(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let parent = setup.add(&["add_children", "1", "--kwarg", "delay_ms=4000"]);
        let mut first = setup.worker_killed_at("outbox-sending[counter]", &["--lease", "5s"]);
        first.wait_until_killed_at("outbox-sending");
        // The next sender takes what the killed one held.
        setup.execute(&setup.named("UPDATE {outbox} SET taken_until = 0"));
        let _worker = setup.worker(&["--lease", "5s"]);
        let parent = setup.wait_for_status(&parent, "SUCCESS");
        let child = parent.value("children")[0].as_str().unwrap().to_owned();
        let child = setup.wait_for_status(&child, "SUCCESS");
        assert!(child.text("started_at") >= child.text("not_before"), "{child}");
        let delay = "SELECT c.not_before - p.finished_at FROM {jobs} c, {jobs} p \
                     WHERE c.parent_id = p.id";
        assert_eq!((setup.count(delay), child.number("attempts")), (4000, 1));
    }

    fn a_child_on_a_fifo_queue_waits_in_the_database(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let queue = format!("{}.fifo", servers::unique("delayed"));
        if pair != Pair::Embedded {
            let _ = SqsQueue::create(&queue, &[("FifoQueue", "true")]);
        }
        let add = ["add", "--queue", &queue, "add_children", "1", "--kwarg", "delay_ms=600000"];
        let parent = setup.run(&add).ok().line().to_owned();
        let _worker = setup.project.worker(&[&queue]);
        let parent = setup.wait_for_status(&parent, "SUCCESS");
        assert_eq!(parked(&setup), 1);
        make_due(&setup);
        let child = parent.value("children")[0].as_str().unwrap().to_owned();
        let _ = setup.wait_for_status(&child, "SUCCESS");
    }

    fn a_time_in_the_past_is_now(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["counter", "--at", "2001-02-03T04:05:06+01:00"]);
        assert_eq!((setup.depth(), parked(&setup)), ([1, 0, 0], 0));
        assert_eq!(setup.status(&id).unwrap().raw("not_before"), "null");
        let far = setup.add(&["counter", "--at", "2027-01-01T00:00:00Z"]);
        assert_eq!(setup.status(&far).unwrap().text("not_before"), "2027-01-01T00:00:00.000Z");
    }
}

/// The queue would drop the message just when it may be received.
#[test]
fn a_delay_that_leaves_no_time_on_the_queue_waits_in_the_database() {
    let setup = Setup::new(Pair::SqliteSqs, &[]);
    let queue = SqsQueue::create(&servers::unique("short"), &[("MessageRetentionPeriod", "900")]);
    let _ = setup.run(&["add", "--queue", &queue.name, "counter", "--delay", "14m"]).ok();
    assert_eq!((queue.depth(), parked(&setup)), ([0, 0, 0], 1));
}

/// Only the sender can know that of a child's queue.
#[test]
fn a_child_s_delay_that_leaves_no_time_on_the_queue_waits_in_the_database() {
    let setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let queue = SqsQueue::create(&servers::unique("short"), &[("MessageRetentionPeriod", "900")]);
    let add = ["add", "--queue", &queue.name, "add_children", "1", "--kwarg", "delay_ms=840000"];
    let _ = setup.run(&add).ok();
    let _worker = setup.project.worker(&[&queue.name]);
    let waits = "SELECT count(*) FROM {outbox} o, {jobs} j WHERE j.id = o.job_id \
                 AND o.not_before = j.not_before AND o.taken_until = 0 AND o.tries = 0";
    wait::until_true("the child in the database", || setup.count(waits) == 1);
    assert_eq!((queue.depth(), parked(&setup)), ([0, 0, 0], 1));
    make_due(&setup);
    let run = "SELECT count(*) FROM {jobs} WHERE status = 'SUCCESS'";
    wait::until_true("the child's end", || setup.count(run) == 2);
}

#[test]
fn a_delay_that_is_no_time_is_wrong_usage_that_names_the_limit_and_adds_nothing() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let queue = setup.queue.as_str();
    for wrong in [
        &["--delay", "-5m"][..],
        &["--delay", "-5"],
        &["--delay", "99999d"],
        &["--delay", "10"],
        &["--delay", "4000d"],
        &["--delay", "99999999999999999999999y"],
        &["--at", "9999-01-01T00:00:00Z"],
        &["--at", "tomorrow"],
        &["--at", "-1"],
    ] {
        let args = [&["add", "--queue", queue, "counter"], wrong].concat();
        setup.run(&args).exits(2).is_a_sentence().says(&["3660 days", wrong[0]]);
    }
    let both =
        ["add", "--queue", queue, "counter", "--delay", "1s", "--at", "2030-01-01T00:00:00Z"];
    let _ = setup.run(&both).exits(2);
    setup.run(&["list"]).ok().says(&["no job matches"]);
    wait::until_true("an empty queue", || setup.depth() == [0, 0, 0]);
}
