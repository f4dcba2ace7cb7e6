//! Limits: the queue's own, and ours. What would pass one is told, and nothing is lost for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::servers;
use support::sqs::SqsQueue;
use support::{Pair, Setup, wait};

/// A standard queue with a dead-letter queue behind it.
fn redriven(max_receive_count: u32, attributes: &[(&str, &str)]) -> (SqsQueue, SqsQueue) {
    let dead = SqsQueue::unique();
    let arn = format!("arn:aws:sqs:us-east-1:000000000000:{}", dead.name);
    let policy =
        format!(r#"{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "{max_receive_count}"}}"#);
    let attributes = [&[("RedrivePolicy", policy.as_str())], attributes].concat();
    (SqsQueue::create(&servers::unique("redrive"), &attributes), dead)
}

#[test]
fn limits_of_a_queue_that_do_not_suit_are_told_at_the_start() {
    let setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let (queue, _dead) = redriven(2, &[("MessageRetentionPeriod", "600")]);
    let mut worker = setup.project.worker(&[&queue.name]);
    worker.wait_until_ready();
    worker.wait_for_line(&["WARN", &queue.name, "maxReceiveCount is 2"]);
    worker.wait_for_line(&["WARN", &queue.name, "MessageRetentionPeriod"]);
}

/// Every return counts as a receipt, those of a stop too.
#[test]
fn a_job_that_was_interrupted_at_its_last_receipt_is_not_dead_lettered_by_the_queue() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        let (queue, dead) = redriven(2, &[]);
        let add = ["add", "--queue", &queue.name, "sleep_ms", "3000"];
        let id = setup.run(&add).ok().line().to_owned();
        assert_eq!(queue.receive(0).len(), 1, "its first receipt; the next is its last");
        let args = [queue.name.as_str(), "--grace", "100ms", "--lease", "5s"];
        let mut first = setup.project.worker(&args);
        let _ = setup.wait_for_status(&id, "RUNNING");
        assert_eq!(first.terminate(), Some(0), "{}", first.shown());
        let _second = setup.project.worker(&[&queue.name]);
        assert_eq!(setup.wait_for_status(&id, "SUCCESS").number("attempts"), 2);
        assert_eq!(dead.depth(), [0, 0, 0]);
    }
}

/// The retry would come after the queue has dropped its message.
#[test]
fn a_retry_that_would_outlive_its_message_is_parked() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        let queue =
            SqsQueue::create(&servers::unique("short"), &[("MessageRetentionPeriod", "120")]);
        let add = ["add", "--queue", &queue.name, "fail_retry_after", "100"];
        let id = setup.run(&add).ok().line().to_owned();
        let _worker = setup.project.worker(&[&queue.name]);
        let _ = setup.wait_for_status(&id, "RETRY");
        wait::until_true("an empty queue", || queue.depth() == [0, 0, 0]);
        let outbox = setup.table("outbox");
        let parked = format!("SELECT count(*) FROM {outbox} WHERE job_id = '{id}'");
        assert_eq!(setup.query::<i64>(&parked), 1);
    }
}

/// A deploy may come later than the queue keeps the message.
#[test]
fn a_job_that_nobody_holds_yet_outlives_its_message() {
    let setup = Setup::new(Pair::SqliteSqs, &[]);
    let queue = SqsQueue::create(&servers::unique("short"), &[("MessageRetentionPeriod", "60")]);
    queue.send(r#"{"id": "early", "name": "counter"}"#);
    let mut first = setup.project.worker(&[&queue.name]);
    first.wait_for_line(&["no module holds the job `counter`"]);
    wait::until_true("an empty queue", || queue.depth() == [0, 0, 0]);
    assert_eq!(setup.status("early").unwrap().text("status"), "PENDING");
    assert_eq!(first.terminate(), Some(0));
    setup.project.deploy("outcomes");
    let _second = setup.project.worker(&[&queue.name]);
    let _ = setup.wait_for_status("early", "SUCCESS");
}

/// What a service hands to a caller that has hung up comes back late, and counted.
#[test]
fn an_idle_worker_leaves_no_receive_behind() {
    let setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let (queue, dead) = redriven(1, &[]);
    let mut first = setup.project.worker(&[queue.name.as_str(), "--grace", "25s"]);
    first.wait_until_ready();
    assert_eq!(first.terminate(), Some(0));
    let added = setup.run(&["add", "--queue", &queue.name, "counter"]).ok();
    let _second = setup.project.worker(&[&queue.name]);
    let row = setup.wait_for_status(added.line(), "SUCCESS");
    assert_eq!(row.number("attempts"), 1);
    assert_eq!(dead.depth(), [0, 0, 0]);
}

/// Types and all: what a sender put beside the body is there again after the parking.
#[test]
fn what_is_sent_again_carries_the_attributes_and_the_group_of_its_message() {
    let setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let (queue, dead) = redriven(1, &[]);
    let json = r#"{"id": "a", "name": "fail_permanent", "args": ["no way"]}"#;
    let again = r#"{"id": "b", "name": "fail_retry_after", "args": [4]}"#;
    for body in [json, again] {
        queue.send_with(
            &STANDARD.encode(body),
            &[("trace", "String", "00-ab"), ("n", "Number", "1.50")],
        );
    }
    let _worker = setup.project.worker(&[&queue.name]);
    let _ = setup.wait_for_status("a", "FAILURE");
    // Its second attempt came from the outbox, and so will its third.
    let _ = setup.wait_for_row("b", "a second retry", |row| {
        row.number("attempts") == 2 && row.text("status") == "RETRY"
    });
    let attributes = format!("SELECT attributes FROM {} WHERE job_id = 'b'", setup.table("outbox"));
    let parked = setup.query::<String>(&attributes);
    assert!(parked.contains(r#""n":{"type":"Number","text":"1.50"}"#), "{parked}");
    assert!(parked.contains(r#""trace":"00-ab""#), "{parked}");
    wait::until_true("the copy", || dead.depth()[0] == 1);
    let copy = dead.receive(30).remove(0).message_attributes.unwrap();
    assert_eq!(copy["n"].data_type, "Number");
    assert_eq!(copy["n"].string_value.as_deref(), Some("1.50"));
    assert_eq!(copy["trace"].string_value.as_deref(), Some("00-ab"));
}

on_every_pair! {
    fn malformed_messages_beyond_their_space_stay_on_the_queue_and_the_worker_says_so(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let toml = format!("[queues.{}]\nmalformed-limit = \"100B\"\n", setup.queue);
        setup.project.write("sqjobs.toml", toml);
        for _ in 0..5 {
            setup.send_body(&"!".repeat(40));
        }
        let id = setup.add(&["counter"]);
        let mut worker = setup.worker(&[]);
        worker.wait_for_line(&["WARN", &setup.queue, "malformed-limit"]);
        let _ = setup.wait_for_status(&id, "SUCCESS");
        let _ = setup.wait_for_dead(2);
        let kept: u64 = setup.depth().iter().sum();
        assert_eq!(kept, 3);
    }

    fn a_wait_beyond_all_dates_is_a_permanent_failure_and_its_row_can_be_read(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids = [
            setup.add(&["fail_retry_after", "18446744073709551615"]),
            setup.add(&["add_children", "1", "--kwarg", "delay_ms=18446744073709551615"]),
        ];
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&ids[0], "FAILURE");
        assert!(row.text("error").contains("limit of 3660 days"), "{row}");
        let row = setup.wait_for_row(&ids[1], "a failure", |row| !row.value("error").is_null());
        assert!(row.text("error").contains("limit of 3660 days"), "{row}");
        let view = format!("SELECT count(*) FROM {}", setup.table("job_status"));
        assert_eq!(setup.query::<i64>(&view), 2);
    }

    /// Its row waits for the worker that has it deployed, and fails with the message.
    fn a_job_that_nobody_holds_fails_when_its_message_is_put_aside(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["nobody_holds_this"]);
        let _worker = setup.worker(&[]);
        setup.wait_out_patience(1);
        let row = setup.wait_for_status(&id, "FAILURE");
        assert_eq!(row.text("error_kind"), "unknown-job");
        assert_eq!(setup.wait_for_dead(1)[0].text("kind"), "unknown-job");
    }

    /// What waited long for something else is given as much time for its deploy as any other.
    fn an_old_job_that_nobody_holds_waits_for_its_module_from_its_first_receipt_on(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["nobody_holds_this"]);
        let hours = "UPDATE {jobs} SET created_at = created_at - 10800000, \
                     enqueued_at = enqueued_at - 10800000";
        setup.execute(&setup.named(hours));
        for _ in 0..30 {
            setup.receive_in_vain();
        }
        let mut worker = setup.worker(&[]);
        worker.wait_for_line(&["no module holds the job `nobody_holds_this`", "returns in 5 s"]);
        assert_eq!(worker.terminate(), Some(0));
        assert_eq!(setup.status(&id).unwrap().text("status"), "PENDING");
        assert!(setup.dead().is_empty());
    }

    fn a_job_that_nobody_held_and_whose_message_is_gone_is_listed_as_lost(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.send_body(r#"{"id": "nobody", "name": "nobody_holds_this"}"#);
        let mut worker = setup.worker(&["--lease", "5s"]);
        worker.wait_for_line(&["no module holds the job", "returns in"]);
        setup.purge();
        let row = setup.wait_for_status("nobody", "FAILURE");
        assert_eq!(row.text("error_kind"), "lost");
        assert_eq!(worker.terminate(), Some(0));
    }

    /// The worker dies with the job; then somebody empties the queue.
    fn a_job_whose_message_is_gone_is_listed_as_lost(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["sleep_ms", "60000"]);
        let mut first = setup.worker(&["--lease", "5s"]);
        let _ = setup.wait_for_status(&id, "RUNNING");
        first.kill();
        setup.purge();
        let _second = setup.worker(&["--lease", "5s"]);
        let row = setup.wait_for_status(&id, "FAILURE");
        assert_eq!(row.text("error_kind"), "lost");
        let dead = setup.wait_for_dead(1).remove(0);
        assert_eq!((dead.text("kind"), dead.text("id")), ("lost".to_owned(), id));
        assert!(!dead.text("body").is_empty(), "so that it can be sent again");
    }

    /// A parent sleeps after the adding; its child is done before it is.
    fn a_child_added_at_once_does_not_wait_for_its_parent(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["add_children", "1", "--kwarg", "at_once=true", "--kwarg", "sleep_ms=6000"]);
        let _worker = setup.worker(&[]);
        let parent = setup.wait_for_status(&id, "SUCCESS");
        let child = parent.value("result")[0].as_str().unwrap().to_owned();
        let child = setup.wait_for_status(&child, "SUCCESS");
        assert!(child.text("finished_at") < parent.text("finished_at"), "{child}\n{parent}");
    }
}
