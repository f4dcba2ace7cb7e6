//! Delayed jobs: held back by the queue for minutes, by the database for as long as it takes, and
//! sent once.

use support::sqs::SqsQueue;
use support::{Pair, Setup, servers, wait};

fn parked(setup: &Setup) -> i64 {
    setup.count("SELECT count(*) FROM {outbox}")
}

/// Lets the time pass for which jobs are delayed.
fn make_due(setup: &Setup) {
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

#[test]
fn a_delay_that_is_no_time_is_wrong_usage_that_names_the_limit_and_adds_nothing() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let queue = setup.queue.as_str();
    for wrong in [
        &["--delay", "-5m"][..],
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
