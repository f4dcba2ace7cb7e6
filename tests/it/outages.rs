//! An SQS that refuses, loses and repeats calls: nothing is lost, nothing runs twice for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::proxy::{Faults, Proxy};
use support::sqs::SqsQueue;
use support::{Pair, Setup, wait};

/// A project whose host reaches SQS through a proxy.
fn behind_proxy(pair: Pair, seed: u64) -> (Setup, Proxy) {
    let mut setup = Setup::new(pair, &["outcomes"]);
    let proxy = Proxy::start(seed, Faults::default());
    setup.project.set("AWS_ENDPOINT_URL", &proxy.url());
    (setup, proxy)
}

fn send_counters(setup: &Setup, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|number| format!("job-{number}")).collect();
    for id in &ids {
        let json = format!(r#"{{"id": "{id}", "name": "counter", "args": ["."]}}"#);
        setup.send_body(&STANDARD.encode(json));
    }
    ids
}

#[test]
fn an_outage_is_logged_once_and_work_goes_on_after_it() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 1);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    let is_noise = |line: &String| !line.contains("WARN") && !line.contains("ERROR");

    proxy.set_faults(Faults { unavailable: 1.0, ..Faults::default() });
    let before = proxy.calls("ReceiveMessage");
    // The receive under way ends by itself; then some are refused.
    wait::until_true("refused receives", || proxy.calls("ReceiveMessage") > before + 6);
    worker.wait_for_line(&["receive", &setup.queue]);
    let told = worker.log().into_iter().filter(|line| !is_noise(line)).count();
    assert_eq!(told, 1, "{}", worker.shown());

    proxy.set_faults(Faults::default());
    let ids = send_counters(&setup, 1);
    let _ = setup.wait_for_status(&ids[0], "SUCCESS");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn lost_calls_lose_no_job_and_double_no_success() {
    for (pair, seed) in [(Pair::SqliteSqs, 7), (Pair::PostgresSqs, 8)] {
        let (setup, proxy) = behind_proxy(pair, seed);
        let ids = send_counters(&setup, 60);
        let mut worker = setup.worker(&["--lease", "5s", "--concurrency", "10"]);
        worker.wait_until_ready();
        proxy.set_faults(Faults {
            lost_request: 0.1,
            lost_reply: 0.1,
            unavailable: 0.05,
            throttled: 0.05,
            failed_entry: 0.1,
            duplicate_delivery: 0.2,
            ..Faults::default()
        });
        for id in &ids {
            assert_eq!(setup.wait_for_status(id, "SUCCESS").number("attempts"), 1, "{id}");
        }
        proxy.set_faults(Faults::default());
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        assert_eq!(setup.dead().len(), 0);
    }
}

#[test]
fn throttling_delays_work_and_loses_none() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 21);
    let ids = send_counters(&setup, 30);
    let mut worker = setup.worker(&["--concurrency", "10"]);
    worker.wait_until_ready();
    proxy.set_faults(Faults { throttled: 1.0, ..Faults::default() });
    let before = proxy.calls("ReceiveMessage");
    wait::until_true("throttled receives", || proxy.calls("ReceiveMessage") > before + 3);
    proxy.set_faults(Faults { throttled: 0.3, ..Faults::default() });
    for id in &ids {
        assert_eq!(setup.wait_for_status(id, "SUCCESS").number("attempts"), 1, "{id}");
    }
    setup.wait_until_drained();
    assert_eq!(worker.terminate(), Some(0));
}

/// SQS tells of them with HTTP 200, beside those that were done.
#[test]
fn entries_that_fail_within_a_batch_are_tried_again() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 22);
    let ids = send_counters(&setup, 30);
    proxy.set_faults(Faults { failed_entry: 0.5, ..Faults::default() });
    // Long, so that a message which comes again within the test was not given up to its lease.
    let mut worker = setup.worker(&["--lease", "10m"]);
    for id in &ids {
        assert_eq!(setup.wait_for_status(id, "SUCCESS").number("attempts"), 1, "{id}");
    }
    setup.wait_until_drained();
    assert!(proxy.calls("DeleteMessageBatch") > 3, "some entries were sent again");
    assert_eq!(worker.terminate(), Some(0));
}

/// One message that the queue will never take must not take others with it.
#[test]
fn a_batch_that_is_refused_as_a_whole_is_sent_one_by_one() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 25);
    proxy.set_faults(Faults { refused_batch: 1.0, ..Faults::default() });
    let parent = setup.add(&["add_children", "5"]);
    let mut worker = setup.worker(&[]);
    let _ = setup.wait_for_status(&parent, "SUCCESS");
    let children = "SELECT count(*) FROM {jobs} WHERE parent_id IS NOT NULL AND status = 'SUCCESS'";
    wait::until_true("five children", || setup.count(children) == 5);
    assert!(proxy.calls("SendMessageBatch") >= 6, "one refused, and one for each");
    assert!(setup.dead().is_empty());
    assert_eq!(worker.terminate(), Some(0));
}

/// However many rows wait for a queue that can't be sent to: it is tried now and then, and what
/// waits for other queues is sent.
#[test]
fn rows_of_a_queue_that_can_t_be_sent_to_do_not_hold_up_those_of_others() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 26);
    let bad = setup.another_queue();
    let mut worker = setup.worker(&[&bad]);
    worker.wait_until_ready();
    proxy.deny_queue(&bad);
    let columns = "INSERT INTO {outbox} (job_id, job_name, queue, args, enqueued_at) VALUES";
    let rows: Vec<String> =
        (0..300).map(|n| format!("('bad-{n}', 'counter', '{bad}', '[]', 0)")).collect();
    setup.execute(&setup.named(&format!("{columns} {}", rows.join(", "))));
    let good = format!("{columns} ('good', 'counter', '{}', '[]', 1)", setup.queue);
    setup.execute(&setup.named(&good));
    let _ = setup.wait_for_status("good", "SUCCESS");
    assert_eq!(setup.count("SELECT count(*) FROM {outbox}"), 300, "none is given up for it");
    let tried = setup.count("SELECT count(*) FROM {outbox} WHERE tries > 0 AND error IS NOT NULL");
    assert!(tried <= 100, "{tried} rows were tried: each call costs the others time");
    assert_eq!(worker.terminate(), Some(0));
}

/// A queue that can't be read is asked again after growing waits; the others go on meanwhile.
#[test]
fn a_queue_that_is_gone_costs_the_others_nothing() {
    let setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let gone = SqsQueue::unique();
    let mut worker = setup.worker(&[&gone.name]);
    worker.wait_until_ready();
    gone.delete();
    worker.wait_for_line(&["receive from queue", &gone.name]);
    let ids = send_counters(&setup, 50);
    for id in &ids {
        let _ = setup.wait_for_status(id, "SUCCESS");
    }
    let told = worker.log().iter().filter(|line| line.contains("receive from queue")).count();
    assert_eq!(told, 1, "an outage is told once: {}", worker.shown());
    assert_eq!(worker.terminate(), Some(0));
}

/// SQS takes a delete under an expired receipt, says that all is well, and deletes nothing.
#[test]
fn a_delete_that_did_nothing_is_made_up_for_at_the_next_delivery() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 23);
    proxy.set_faults(Faults { expired_receipt: 1.0, ..Faults::default() });
    let ids = send_counters(&setup, 1);
    let mut worker = setup.worker(&["--lease", "5s"]);
    wait::until_true("a delete", || proxy.calls("DeleteMessageBatch") > 0);
    proxy.set_faults(Faults::default());
    worker.wait_for_line(&[&ids[0], "is SUCCESS already"]);
    setup.wait_until_drained();
    assert_eq!(worker.terminate(), Some(0));
    let runs = worker.log().iter().filter(|line| line.contains("counted")).count();
    assert_eq!(runs, 1, "{}", worker.shown());
}

/// Its worker lives on, and with it the claims that it holds: the lost attempt's must not be one.
#[test]
fn an_attempt_whose_receipt_expired_is_stopped_and_its_job_runs_again() {
    for pair in [Pair::SqliteSqs, Pair::PostgresSqs] {
        let (setup, proxy) = behind_proxy(pair, 24);
        proxy.set_faults(Faults { expired_receipt: 1.0, ..Faults::default() });
        let body = r#"{"id": "slow", "name": "effect", "kwargs": {"ms": 4500}}"#;
        setup.send_body(body);
        let mut worker = setup.worker(&["--lease", "5s"]);
        worker.wait_for_line(&["lost a lease"]);
        proxy.set_faults(Faults::default());
        let row = setup.wait_for_status("slow", "SUCCESS");
        assert_eq!(row.number("attempts"), 2, "{row}");
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        let ends = worker.log().iter().filter(|line| line.contains("ended slow")).count();
        assert_eq!(ends, 1, "the first attempt was stopped before its end: {}", worker.shown());
        let told = |word: &str| worker.log().iter().filter(|line| line.contains(word)).count();
        assert_eq!(told("torn down slow"), 1, "it ran no later stage: {}", worker.shown());
        assert_eq!(told("failed slow"), 0, "it is no failure: {}", worker.shown());
    }
}
