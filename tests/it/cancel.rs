//! Cancelling: a job that waits never runs, one that runs is stopped wherever it runs, and what is
//! done stays done.

use std::collections::BTreeSet;

use support::{Setup, wait};

/// How often the guest says that it ran.
fn counted(log: &[String], id: &str) -> usize {
    log.iter().filter(|line| line.contains(&format!("counted {id}"))).count()
}

on_every_pair! {
    fn a_waiting_job_that_was_cancelled_never_runs(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["counter"]);
        let other = setup.add(&["counter"]);
        assert_eq!(setup.run(&["cancel", &id]).ok().line(), format!("{id} cancelled"));
        let row = setup.wait_for_status(&id, "CANCELLED");
        assert_eq!(row.number("attempts"), 0);
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&other, "SUCCESS");
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        assert_eq!(counted(&worker.log(), &id), 0, "{}", worker.shown());
        assert_eq!(counted(&worker.log(), &other), 1, "{}", worker.shown());
        assert_eq!(setup.dead().len(), 0);
        // Once more changes nothing.
        let _ = setup.run(&["cancel", &id]).ok();
    }

    fn a_job_that_waits_for_its_retry_never_comes_again(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        // Longer than a message can stay invisible: it waits in SQL.
        let id = setup.add(&["fail_retry_after", "50000"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&id, "RETRY");
        let _ = setup.run(&["cancel", &id]).ok();
        let _ = setup.wait_for_status(&id, "CANCELLED");
        assert_eq!(setup.count("SELECT count(*) FROM {outbox}"), 0);
        setup.wait_until_drained();
    }

    /// The command is run beside two workers and does not know on which of them the job runs.
    fn a_running_job_is_stopped_in_a_busy_loop_and_in_a_host_call(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let jobs = [setup.add(&["spin"]), setup.add(&["sleep_ms", "600000"])];
        let mut workers = [setup.worker(&["--concurrency", "1"]), setup.worker(&["--concurrency", "1"])];
        for id in &jobs {
            let _ = setup.wait_for_status(id, "RUNNING");
        }
        for id in &jobs {
            assert_eq!(setup.run(&["cancel", id]).ok().line(), format!("{id} cancelled"));
            let row = setup.wait_for_status(id, "CANCELLED");
            assert_eq!(row.number("attempts"), 1);
            let outcome = format!("SELECT outcome FROM {{attempts}} WHERE job_id = '{id}'");
            assert_eq!(setup.query::<String>(&setup.named(&outcome)), "cancelled");
        }
        setup.wait_until_drained();
        // Their slots are free again.
        let id = setup.add(&["counter"]);
        let _ = setup.wait_for_status(&id, "SUCCESS");
        assert!(workers.iter_mut().all(|worker| worker.terminate() == Some(0)));
    }

    fn a_job_that_is_done_stays_so(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let (good, bad) = (setup.add(&["counter"]), setup.add(&["fail_permanent"]));
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&good, "SUCCESS");
        let _ = setup.wait_for_status(&bad, "FAILURE");
        setup.run(&["cancel", &good]).exits(1).is_a_sentence().says(&[&good, "SUCCESS already"]);
        setup.run(&["cancel", &bad]).exits(1).is_a_sentence().says(&[&bad, "FAILURE already"]);
        setup.run(&["cancel", "no-such-job"]).exits(1).says(&["no job", "records nothing"]);
        let _ = setup.wait_for_status(&good, "SUCCESS");
        assert_eq!(setup.dead().len(), 1);
    }

    /// A job of which a worker that died was the owner waits for nobody to stop it.
    fn a_job_whose_worker_died_is_cancelled_at_once(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["sleep_ms", "600000"]);
        let mut worker = setup.worker(&["--lease", "5s"]);
        let _ = setup.wait_for_status(&id, "RUNNING");
        worker.kill();
        setup.execute(&setup.named("UPDATE {workers} SET renewed_at = 0"));
        let _ = setup.run(&["cancel", &id]).ok();
        let _ = setup.wait_for_status(&id, "CANCELLED");
        let mut next = setup.worker(&["--lease", "5s"]);
        next.wait_for_line(&[&id, "CANCELLED already"]);
        setup.wait_until_drained();
    }

    fn a_filter_cancels_what_it_matches_and_wants_yes(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let counters: Vec<String> = (0..5).map(|_| setup.add(&["counter"])).collect();
        let other = setup.add(&["stages"]);
        setup.run(&["cancel", "--job", "counter"]).exits(2).is_a_sentence().says(&["5 job", "--yes"]);
        setup.run(&["cancel", "--all"]).exits(2).says(&["6 job", "--yes"]);
        let none = setup.run(&["cancel", "--job", "nobody", "--yes"]).ok();
        none.says(&["no job"]);
        assert_eq!(none.stdout, "");
        let args = ["cancel", "--job", "counter", "--status", "pending", "--queue", &setup.queue, "--yes"];
        let args = [&args[..], &["--output", "json"]].concat();
        let mut cancelled: Vec<String> =
            setup.run(&args).ok().json_lines().iter().map(|line| line.text("id")).collect();
        cancelled.sort();
        let mut expected = counters.clone();
        expected.sort();
        assert_eq!(cancelled, expected);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&other, "SUCCESS");
        setup.wait_until_drained();
        let cancelled = "SELECT count(*) FROM {jobs} WHERE status = 'CANCELLED' AND attempts = 0";
        assert_eq!(setup.count(cancelled), 5);
    }

    /// Batch by batch, what is added meanwhile left alone.
    fn thousands_of_jobs_are_cancelled_each_once(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _ = setup.add(&["counter"]);
        let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)";
        let row = |id: &str, created_at: &str| format!(
            "INSERT INTO {{jobs}} (id, name, queue, args, kwargs, fingerprint, created_at, \
             enqueued_at, updated_at) {numbers} SELECT '{id}' || i, 'many', 'q', '[]', '{{}}', 'f', \
             {created_at}, 1, 1 FROM n"
        );
        setup.execute(&setup.named(&row("old-", "1")));
        setup.execute(&setup.named(&row("new-", "9000000000000")));
        let cancel = ["cancel", "--job", "many", "--status", "pending", "--yes"];
        let done = setup.run(&cancel).ok();
        let ids: BTreeSet<&str> = done.stdout.lines().collect();
        assert_eq!((ids.len(), done.stdout.lines().count()), (5000, 5000));
        assert!(ids.iter().all(|line| line.starts_with("old-")));
        let left = "SELECT count(*) FROM {jobs} WHERE name = 'many' AND status = 'PENDING'";
        assert_eq!(setup.count(left), 5000);
    }

    /// Cancels race with ends: whoever commits first wins, and no job is both.
    fn a_race_with_the_end_leaves_one_final_status(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids: Vec<String> = (0..20).map(|_| setup.add(&["sleep_ms", "300"])).collect();
        let _worker = setup.worker(&["--concurrency", "4"]);
        let _ = setup.wait_for_status(&ids[0], "RUNNING");
        let args = ["cancel", "--job", "sleep_ms", "--yes"];
        let _ = setup.run(&args).ok();
        let finished = "SELECT count(*) FROM {jobs} WHERE status IN ('SUCCESS', 'CANCELLED')";
        wait::until_true("an end of all", || setup.count(finished) == 20);
        setup.wait_until_drained();
        let both = "SELECT count(*) FROM {jobs} j WHERE status = 'CANCELLED' AND EXISTS \
                    (SELECT 1 FROM {attempts} a WHERE a.job_id = j.id AND a.outcome = 'success')";
        assert_eq!(setup.count(both), 0);
        assert!(setup.count("SELECT count(*) FROM {jobs} WHERE status = 'CANCELLED'") > 0);
    }
}
