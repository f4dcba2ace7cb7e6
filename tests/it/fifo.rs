//! FIFO queues: order within a message group, whatever fails.

use support::servers;
use support::sqs::SqsQueue;
use support::{Json, Pair, Setup, wait};

/// A FIFO queue of a setup, with these receives before it dead-letters.
fn fifo(setup: &Setup, max_receive_count: Option<u32>) -> (String, Option<SqsQueue>) {
    let name = format!("{}.fifo", servers::unique("ordered"));
    if setup.pair == Pair::Embedded {
        // Made by whoever names it first; it has no redrive policy.
        return (name, None);
    }
    let dead = format!("{}.fifo", servers::unique("dead"));
    let dead = SqsQueue::create(&dead, &[("FifoQueue", "true")]);
    let arn = format!("arn:aws:sqs:us-east-1:000000000000:{}", dead.name);
    let count = max_receive_count.unwrap_or(1000);
    let policy = format!(r#"{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "{count}"}}"#);
    let _ = SqsQueue::create(&name, &[("FifoQueue", "true"), ("RedrivePolicy", &policy)]);
    (name, Some(dead))
}

fn add(setup: &Setup, queue: &str, group: &str, job: &[&str]) -> String {
    let args = [&["add", "--queue", queue, "--group", group], job].concat();
    setup.run(&args).ok().line().to_owned()
}

fn assert_in_order(rows: &[Json]) {
    for pair in rows.windows(2) {
        let [earlier, later] = pair else { unreachable!() };
        assert!(later.text("started_at") >= earlier.text("finished_at"), "{earlier}\n{later}");
    }
}

on_every_pair! {
    fn a_failing_job_keeps_its_place_in_its_group(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\ninitial-backoff = \"2s\"\n");
        let (queue, _dead) = fifo(&setup, None);
        let group: Vec<String> = [&["fail_until", "3"][..], &["counter"], &["counter"], &["counter"]]
            .into_iter()
            .map(|job| add(&setup, &queue, "g", job))
            .collect();
        let other = add(&setup, &queue, "h", &["counter"]);
        let _worker = setup.project.worker(&[&queue]);
        let done: Vec<Json> =
            group.iter().map(|id| setup.wait_for_status(id, "SUCCESS")).collect();
        assert_in_order(&done);
        let other = setup.wait_for_status(&other, "SUCCESS");
        assert!(other.text("started_at") < done[0].text("finished_at"), "groups run side by side");
    }

    fn at_its_last_attempt_a_job_is_dead_and_its_group_goes_on(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let settings = "[jobs.fail_transient]\nmax-attempts = 2\ninitial-backoff = \"1s\"\n";
        setup.project.write("sqjobs.toml", settings);
        let (queue, _dead) = fifo(&setup, None);
        let first = add(&setup, &queue, "g", &["fail_transient"]);
        let second = add(&setup, &queue, "g", &["counter"]);
        let _worker = setup.project.worker(&[&queue]);
        let first = setup.wait_for_status(&first, "FAILURE");
        assert_eq!(first.number("attempts"), 2);
        assert_in_order(&[first, setup.wait_for_status(&second, "SUCCESS")]);
    }

    /// The queue would move a message at its second receipt, and the first job needs four.
    fn a_job_that_the_queue_would_dead_letter_keeps_its_place_all_the_same(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\ninitial-backoff = \"500ms\"\n");
        let (queue, dead) = fifo(&setup, Some(2));
        let group: Vec<String> = [&["fail_until", "4"][..], &["counter"], &["fail_until", "3"], &["counter"]]
            .into_iter()
            .map(|job| add(&setup, &queue, "g", job))
            .collect();
        let _workers = [setup.project.worker(&[&queue]), setup.project.worker(&[&queue])];
        let done: Vec<Json> =
            group.iter().map(|id| setup.wait_for_status(id, "SUCCESS")).collect();
        assert_in_order(&done);
        assert!(dead.is_none_or(|dead| dead.depth() == [0, 0, 0]), "the queue itself moved nothing");
    }

    fn a_blocked_group_costs_the_others_nothing(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let (queue, _dead) = fifo(&setup, None);
        let blocked: Vec<String> =
            (0..3).map(|_| add(&setup, &queue, "slow", &["fail_retry_after", "3600"])).collect();
        let others: Vec<String> =
            (0..6).map(|n| add(&setup, &queue, &format!("g{n}"), &["counter"])).collect();
        let _worker = setup.project.worker(&[queue.as_str(), "--concurrency", "4"]);
        for id in &others {
            let _ = setup.wait_for_status(id, "SUCCESS");
        }
        let _ = setup.wait_for_status(&blocked[0], "RETRY");
        wait::until_true("the rest of the group back on the queue", || {
            blocked[1..].iter().all(|id| setup.status(id).unwrap().number("attempts") == 0)
        });
    }
}

/// A group of which the first job runs and the others were received with it.
fn a_group_in_hand(setup: &Setup, queue: &str) -> (String, Vec<String>) {
    let first = add(setup, queue, "g", &["sleep_ms", "600000"]);
    let others = (0..3).map(|_| add(setup, queue, "g", &["counter"])).collect();
    (first, others)
}

/// Pauses the queue while the group is in the worker's hands, then lets its first job end.
fn pause_in_hand(setup: &Setup, queue: &str, worker: &mut support::WorkerProcess, first: &str) {
    let _ = setup.wait_for_status(first, "RUNNING");
    let _ = setup.run(&["queues", "pause", queue]).ok();
    worker.wait_for_line(&[queue, "is paused"]);
    let _ = setup.run(&["cancel", first]).ok();
    let _ = setup.wait_for_status(first, "CANCELLED");
}

fn resume_and_see_the_order(setup: &Setup, queue: &str, others: &[String]) {
    for id in others {
        let row = setup.status(id).unwrap();
        assert_eq!((row.text("status").as_str(), row.number("attempts")), ("PENDING", 0), "{row}");
    }
    let _ = setup.run(&["queues", "resume", queue]).ok();
    let done: Vec<Json> = others.iter().map(|id| setup.wait_for_status(id, "SUCCESS")).collect();
    assert_in_order(&done);
    assert!(done.iter().all(|row| row.number("attempts") == 1));
    assert!(setup.dead().is_empty());
}

fn depth(queue: &str) -> [u64; 3] {
    SqsQueue::existing(queue).depth()
}

on_every_pair! {
    /// They go back as they came, for whichever worker there is after the pause.
    fn a_group_that_a_worker_holds_when_its_queue_is_paused_goes_back_in_its_order(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let (queue, dead) = fifo(&setup, None);
        let (first, others) = a_group_in_hand(&setup, &queue);
        let mut worker = setup.project.worker(&[&queue]);
        pause_in_hand(&setup, &queue, &mut worker, &first);
        let listed = ["queues", "list", &queue, "--output", "json"];
        wait::until_true("the group back on the queue", || {
            let row = setup.run(&listed).ok().json();
            (row.number("visible"), row.number("in_flight")) == (3, 0)
        });
        let _other = setup.project.worker(&[&queue]);
        resume_and_see_the_order(&setup, &queue, &others);
        assert!(dead.is_none_or(|dead| dead.depth() == [0, 0, 0]));
    }
}

/// The queue would move each of them at its second receipt: they wait in SQL and are sent again,
/// with no receipt spent, while the queue is paused.
#[test]
fn a_group_at_its_last_receipt_outlives_a_pause_in_its_order() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        let (queue, dead) = fifo(&setup, Some(1));
        let (first, others) = a_group_in_hand(&setup, &queue);
        let mut worker = setup.project.worker(&[&queue]);
        pause_in_hand(&setup, &queue, &mut worker, &first);
        wait::until_true("the group on the queue again", || depth(&queue) == [3, 0, 0]);
        resume_and_see_the_order(&setup, &queue, &others);
        assert!(dead.is_none_or(|dead| dead.depth() == [0, 0, 0]));
    }
}

/// A long poll is under way when the pause begins, and brings the group afterwards.
#[test]
fn a_group_that_a_receive_brings_into_a_pause_keeps_its_order() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        let (queue, dead) = fifo(&setup, Some(1));
        let mut worker = setup.project.worker(&[&queue]);
        worker.wait_until_ready();
        let _ = setup.run(&["queues", "pause", &queue]).ok();
        worker.wait_for_line(&[&queue, "is paused"]);
        let ids: Vec<String> = (0..8).map(|_| servers::unique("job")).collect();
        let bodies: Vec<String> =
            ids.iter().map(|id| format!(r#"{{"id": "{id}", "name": "counter"}}"#)).collect();
        SqsQueue::existing(&queue).send_group("g", &bodies);
        wait::until_true("jobs that were received and put back", || {
            setup.count("SELECT count(*) FROM {jobs} WHERE sends > 0") > 0
                && setup.count("SELECT count(*) FROM {outbox}") == 0
                && depth(&queue) == [8, 0, 0]
        });
        assert_eq!(setup.count("SELECT count(*) FROM {attempts}"), 0);
        let _ = setup.run(&["queues", "resume", &queue]).ok();
        let done: Vec<Json> = ids.iter().map(|id| setup.wait_for_status(id, "SUCCESS")).collect();
        assert_in_order(&done);
        assert!(dead.is_none_or(|dead| dead.depth() == [0, 0, 0]));
    }
}

/// Starts `add` and has it killed once its message is sent and not noted.
fn add_and_die(setup: &Setup, queue: &str, job: &[&str]) -> String {
    let id = servers::unique("job");
    let args = [&["add", "--queue", queue, "--group", "g", "--id", &id], job].concat();
    let mut command = setup.project.command(&args);
    command.env(sqjobs::failpoint::VARIABLE, "outbox-sent=kill");
    assert_eq!(support::Output::of(command).code, None, "killed by a signal");
    id
}

/// SQS drops a second send under one deduplication id for five minutes.
#[test]
fn a_job_that_is_parked_before_its_first_send_was_noted_is_sent_again_all_the_same() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\ninitial-backoff = \"200ms\"\n");
        let (queue, dead) = fifo(&setup, Some(1));
        let first = add_and_die(&setup, &queue, &["fail_until", "2"]);
        let second = add(&setup, &queue, "g", &["counter"]);
        let _worker = setup.project.worker(&[queue.as_str(), "--lease", "5s"]);
        let rows = [&first, &second].map(|id| setup.wait_for_status(id, "SUCCESS"));
        assert_in_order(&rows);
        assert!(dead.is_none_or(|dead| dead.depth() == [0, 0, 0]));
    }
}

/// Somebody takes the message of the first job, which was sent again from the outbox.
#[test]
fn a_job_whose_message_is_gone_does_not_hold_its_group_up() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[defaults]\ninitial-backoff = \"1s\"\n");
        let (name, _dead) = fifo(&setup, Some(1));
        let first = add(&setup, &name, "g", &["fail_until", "99"]);
        let mut worker = setup.project.worker(&[name.as_str(), "--grace", "25s"]);
        let _ = setup.wait_for_row(&first, "a failure", |row| row.number("attempts") > 0);
        assert_eq!(worker.terminate(), Some(0));
        // A worker of another queue sends what the outbox holds.
        let mut sender = setup.worker(&[]);
        let queue = SqsQueue::existing(&name);
        wait::until_true("the message that is sent again", || queue.depth()[0] == 1);
        queue.purge();
        assert_eq!(sender.terminate(), Some(0));
        let second = add(&setup, &name, "g", &["counter"]);
        let _worker = setup.project.worker(&[name.as_str(), "--lease", "5s"]);
        let _ = setup.wait_for_status(&second, "SUCCESS");
        assert_eq!(setup.status(&first).unwrap().text("error_kind"), "lost");
    }
}
