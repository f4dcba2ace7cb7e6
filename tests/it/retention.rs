//! What is kept of jobs that are done, and for how long.

use support::{Pair, Setup};

/// How many finished jobs a table has when a worker begins to prune it. A million by
/// `SQJOBS_TEST_PRUNE_ROWS=1000000`: some minutes for each pair.
fn rows() -> i64 {
    std::env::var("SQJOBS_TEST_PRUNE_ROWS").map_or(20_000, |rows| rows.parse().unwrap())
}

/// Writes jobs that were done long ago, with an attempt each.
fn write_finished(setup: &Setup, count: i64) {
    let numbers = match setup.pair {
        Pair::PostgresSqs => format!("SELECT n FROM generate_series(1, {count}) AS g (n)"),
        _ => format!(
            "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {count}) \
             SELECT n FROM g"
        ),
    };
    setup.execute(&setup.named(&format!(
        "INSERT INTO {{jobs}} (id, name, queue, status, args, kwargs, fingerprint, result, attempts, \
         sent_at, created_at, enqueued_at, started_at, finished_at, updated_at) \
         SELECT 'old-' || n, 'counter', 'old', 'SUCCESS', '[]', '{{}}', 'f', '\"result\"', 1, \
         1700000000000 + n, 1700000000000 + n, 1700000000000 + n, 1700000000000 + n, 1700000000000 + n, \
         1700000000000 + n FROM ({numbers}) AS numbers"
    )));
    setup.execute(&setup.named(
        "INSERT INTO {attempts} (job_id, number, token, worker_id, outcome, module, \
         module_digest, started_at) SELECT id, 1, id, 'w', 'success', 'm', 'd', 1700000000000 \
         FROM {jobs} WHERE queue = 'old'",
    ));
}

on_every_pair! {
    fn a_finished_job_is_pruned_to_its_fence_and_does_not_run_again(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let body = r#"{"id": "pruned-job", "name": "counter", "args": ["secret"]}"#;
        setup.send_body(body);
        let mut first = setup.worker(&[]);
        let _ = setup.wait_for_status("pruned-job", "SUCCESS");
        setup.wait_until_drained();
        assert_eq!(first.terminate(), Some(0));
        let mut worker = setup.worker(&["--keep", "0s"]);
        worker.wait_for_line(&["pruned 1 job(s)"]);
        let row = setup.status("pruned-job").unwrap();
        assert_eq!(row.text("status"), "SUCCESS");
        assert_eq!((row.raw("args"), row.raw("result")), ("null", "null"));
        assert_eq!(setup.count("SELECT count(*) FROM {attempts}"), 0);
        // The queue delivers it once more.
        setup.send_body(body);
        worker.wait_for_line(&["pruned-job", "SUCCESS already"]);
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        assert!(!worker.shown().contains("counted"), "{}", worker.shown());
    }

    fn a_pruned_job_goes_when_no_queue_can_hold_its_message(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["counter"]);
        let mut first = setup.worker(&[]);
        let _ = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(first.terminate(), Some(0));
        // Of a queue that the worker does not know, so kept for 14 days after it was sent.
        let aged = |column: &str, days: i64| {
            setup.execute(&setup.named(&format!(
                "UPDATE {{jobs}} SET queue = 'other', {column} = finished_at - {days} * 86400000"
            )));
        };
        setup.execute(&setup.named("UPDATE {jobs} SET finished_at = finished_at - 15 * CAST(86400000 AS bigint)"));
        aged("sent_at", -2);
        let mut second = setup.worker(&["--keep", "0s"]);
        second.wait_for_line(&["pruned 1 job(s)", "removed 0"]);
        assert_eq!(second.terminate(), Some(0));
        aged("sent_at", 0);
        let mut third = setup.worker(&["--keep", "0s"]);
        third.wait_for_line(&["removed 1"]);
        assert!(setup.status(&id).is_none());
    }

    /// Their queue's messages may still come, and they are not passed over for each batch.
    fn fences_of_one_queue_go_while_those_of_another_must_stay(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _ = setup.run(&["list"]).ok();
        write_finished(&setup, 2000);
        // Every second one is of the worker's own queue, which keeps messages for four days.
        setup.execute(&setup.named(&format!(
            "UPDATE {{jobs}} SET pruned = 1, finished_at = created_at + {week}, sent_at = created_at + {week}, \
             queue = CASE WHEN CAST(substr(id, 5) AS bigint) % 2 = 0 THEN '{}' ELSE 'old' END",
            setup.queue,
            week = sqjobs::clock::Clock::system().now().0 - 1_700_000_000_000 - 7 * 86_400_000,
        )));
        setup.execute(&setup.named("DELETE FROM {attempts}"));
        let mut worker = setup.worker(&[]);
        worker.wait_for_line(&["pruned 0 job(s)", "removed 1000"]);
        assert_eq!(setup.count("SELECT count(*) FROM {jobs} WHERE queue = 'old'"), 1000);
        assert_eq!(setup.count("SELECT count(*) FROM {jobs}"), 1000);
    }

    fn of_many_the_last_are_kept_whole(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _ = setup.run(&["list"]).ok();
        write_finished(&setup, 30);
        let mut worker = setup.worker(&["--keep-count", "10"]);
        // Their queue's retention has passed long ago.
        worker.wait_for_line(&["pruned 20 job(s)", "removed 20"]);
        assert_eq!(setup.count("SELECT count(*) FROM {jobs} WHERE pruned = 0"), 10);
        assert_eq!(setup.count("SELECT count(*) FROM {attempts}"), 10);
        assert!(setup.status("old-21").is_some() && setup.status("old-20").is_none());
    }

    fn what_the_dead_list_holds_is_not_pruned(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let (bad, good) = (setup.add(&["fail_permanent"]), setup.add(&["counter"]));
        let mut first = setup.worker(&[]);
        let _ = setup.wait_for_status(&bad, "FAILURE");
        let _ = setup.wait_for_status(&good, "SUCCESS");
        assert_eq!(first.terminate(), Some(0));
        let mut worker = setup.worker(&["--keep", "0s"]);
        worker.wait_for_line(&["pruned 1 job(s)"]);
        assert!(setup.status(&bad).unwrap().text("error").contains("no such number"));
        assert_eq!(setup.count("SELECT count(*) FROM {attempts}"), 1);
    }

    fn a_worker_goes_on_while_a_large_table_is_pruned(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _ = setup.run(&["list"]).ok();
        write_finished(&setup, rows());
        let _worker = setup.worker(&["--keep", "1d"]);
        let old = "SELECT count(*) FROM {jobs} WHERE queue = 'old'";
        let begun = std::time::Instant::now();
        let mut done = 0;
        let mut slowest = std::time::Duration::ZERO;
        while setup.count(old) > 0 {
            let added = std::time::Instant::now();
            let id = setup.add(&["counter"]);
            let _ = setup.wait_for_status(&id, "SUCCESS");
            slowest = slowest.max(added.elapsed());
            done += 1;
        }
        eprintln!(
            "{pair:?}: {} rows in {:.1} s, {done} jobs meanwhile, the slowest from before its `add` to its end seen by `status` in {slowest:?}",
            rows(), begun.elapsed().as_secs_f64()
        );
        assert!(done > 0);
        assert_eq!(setup.count("SELECT count(*) FROM {attempts}"), done);
    }
}
