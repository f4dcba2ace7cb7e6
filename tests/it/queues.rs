//! `queues`: how full they are, created as they suit us, paused on all hosts, emptied.

use support::proxy::{Faults, Proxy};
use support::{Pair, Setup, servers, wait};

on_every_pair! {
    fn a_paused_queue_is_received_from_on_no_host_until_it_is_resumed(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let mut workers = [setup.worker(&[]), setup.worker(&[])];
        for worker in &mut workers {
            worker.wait_until_ready();
        }
        let _ = setup.run(&["queues", "pause", &setup.queue]).ok();
        for worker in &mut workers {
            worker.wait_for_line(&[&setup.queue, "is paused"]);
        }
        let id = setup.add(&["counter"]);
        // A worker that starts meanwhile knows it from the first moment.
        let mut third = setup.worker(&[]);
        third.wait_for_line(&[&setup.queue, "is paused"]);
        wait::until_true("a message that waits", || setup.depth()[0] == 1);
        assert_eq!(setup.status(&id).unwrap().text("status"), "PENDING");
        let listed = setup.run(&["queues", "list", &setup.queue, "--output", "json"]).ok().json();
        assert_eq!(listed.value("paused"), true);
        assert_eq!(listed.number("visible"), 1);
        setup.run(&["queues", "pause", &setup.queue]).ok().says(&["already"]);

        let _ = setup.run(&["queues", "resume", &setup.queue]).ok();
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.number("attempts"), 1);
        setup.run(&["queues", "resume", &setup.queue]).ok().says(&["not paused"]);
    }

    fn a_queue_is_created_with_its_dead_letter_queue_and_found_again(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        for fifo in [false, true] {
            let name = servers::unique("made");
            let args = [&["queues", "create", &name][..], if fifo { &["--fifo"] } else { &[] }].concat();
            assert_eq!(setup.run(&args).ok().stdout.lines().count(), 2);
            let again = setup.run(&args).ok();
            again.says(&["exist as they would be created"]);
            assert_eq!(again.stdout, "");
            let suffix = if fifo { ".fifo" } else { "" };
            let full = format!("{name}{suffix}");
            let row = setup.run(&["queues", "list", &full, "--output", "json"]).ok().json();
            assert_eq!(row.value("fifo"), fifo);
            assert_eq!(row.text("dead_letter_queue"), format!("{name}-dead{suffix}"));
            assert_eq!(row.number("max_receive_count"), 10);
            assert_eq!(row.number("retention_secs"), 14 * 86_400);
            let all = setup.run(&["queues", "list"]).ok();
            assert!(all.stdout.contains(&full), "{all}");
        }
    }

    fn of_a_queue_that_exists_otherwise_the_difference_is_shown_and_nothing_is_changed(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        if pair == Pair::Embedded {
            // The embedded queue makes it with the defaults of SQS.
            let _ = setup.add(&["counter"]);
        }
        let create = setup.run(&["queues", "create", &setup.queue]).exits(1);
        create.says(&["maxReceiveCount is none, and would be 10", "nothing was changed"]);
        let row = setup.run(&["queues", "list", &setup.queue, "--output", "json"]).ok().json();
        assert_eq!(row.raw("max_receive_count"), "null");
        let dead = format!("{}-dead", setup.queue);
        setup.run(&["queues", "list", &dead]).exits(1).is_a_sentence().says(&[&dead, "does not exist"]);
    }

    fn a_purge_asks_and_cancels_the_jobs_that_wait(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids = [setup.add(&["counter"]), setup.add(&["counter"])];
        let purge = setup.run(&["queues", "purge", &setup.queue]).exits(2);
        purge.is_a_sentence().says(&["2 job", "--yes"]);
        assert_eq!(setup.depth()[0], 2);
        let _ = setup.run(&["queues", "purge", &setup.queue, "--yes"]).ok();
        for id in &ids {
            let _ = setup.wait_for_status(id, "CANCELLED");
        }
        setup.wait_until_drained();
        assert_eq!(setup.count("SELECT count(*) FROM {outbox}"), 0);
        let missing = servers::unique("missing");
        setup.run(&["queues", "purge", &missing, "--yes"]).exits(1).says(&[&missing, "does not exist"]);
    }
}

#[test]
fn the_embedded_queue_tells_how_old_its_oldest_message_is() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let _ = setup.add(&["counter"]);
    setup.execute("UPDATE sqjobs_messages SET sent_at = sent_at - 3600000");
    let row = setup.run(&["queues", "list", &setup.queue, "--output", "json"]).ok().json();
    let age = row.number("oldest_secs");
    assert!((3600..3700).contains(&age), "{age}");
}

#[test]
fn without_permission_to_list_queues_those_of_the_workers_are_shown() {
    let mut setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let proxy = Proxy::start(1, Faults::default());
    setup.project.set("AWS_ENDPOINT_URL", &proxy.url());
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    proxy.deny(&["ListQueues"]);
    let listed = setup.run(&["queues", "list"]).ok();
    listed.says(&["ListQueues", "workers poll"]);
    assert!(listed.stdout.contains(&setup.queue), "{listed}");
}

#[test]
fn a_worker_names_the_permission_that_it_lacks() {
    let mut setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let proxy = Proxy::start(2, Faults::default());
    setup.project.set("AWS_ENDPOINT_URL", &proxy.url());
    let id = setup.add(&["counter"]);
    for denied in [
        &["DeleteMessage"][..],
        &["ChangeMessageVisibility"],
        &["DeleteMessage", "ChangeMessageVisibility"],
    ] {
        proxy.deny(denied);
        let refused = setup.run(&["worker", &setup.queue]).exits(1);
        refused.says(denied).says(&[&setup.queue, "IAM policy"]);
    }
    assert_eq!(setup.status(&id).unwrap().text("status"), "PENDING", "it did not begin");
    proxy.deny(&[]);
    let _worker = setup.worker(&[]);
    let _ = setup.wait_for_status(&id, "SUCCESS");
}
