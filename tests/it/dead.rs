//! The dead list emptied: entries sent again, each once, or discarded.

use support::{Json, Pair, Setup, wait};

/// A job that fails in its first attempt, its only one, and would succeed in the second.
fn fail_once(setup: &Setup) -> String {
    setup.add(&["effect", "--kwarg", "fail_before=2"])
}

fn only_one_attempt(setup: &Setup) {
    setup.project.write("sqjobs.toml", "[defaults]\nmax-attempts = 1\n");
}

on_every_pair! {
    fn a_dead_job_is_sent_again_under_its_id_and_its_history_says_so(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        only_one_attempt(&setup);
        let id = fail_once(&setup);
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_dead(1);
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));

        let shown = setup.run(&["dead", "show", &id, "--output", "json"]).ok().json();
        assert_eq!(shown.value("attempts").as_array().unwrap().len(), 1, "{shown}");
        assert!(shown.value("attempts")[0]["error"].as_str().unwrap().contains("before attempt 2"));
        assert!(shown.value("attempts")[0]["logs"].as_str().unwrap().contains("begun"));

        let told = setup.run(&["dead", "retry", &id]).ok();
        assert_eq!(told.line(), "1 sent again");
        let row = setup.status(&id).unwrap();
        assert_eq!((row.text("status").as_str(), row.number("retries")), ("PENDING", 1));
        assert!(row.raw("error") == "null" && row.raw("finished_at") == "null", "{row}");
        assert!(setup.dead().is_empty());

        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.number("attempts"), 2, "earlier attempts stay");
        assert!(!row.text("retried_at").is_empty());
        let text = setup.run(&["status", &id]).ok().stdout;
        assert!(text.contains("sent again") && text.contains("before attempt 2"), "{text}");
        setup.wait_until_drained();
    }

    /// Those of the last attempt before the retry count no more: it has all of them again.
    fn a_job_that_is_sent_again_has_all_its_attempts_again(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let toml = "[defaults]\nmax-attempts = 2\ninitial-backoff = \"10ms\"\n";
        setup.project.write("sqjobs.toml", toml);
        let id = setup.add(&["fail_transient"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_dead(1);
        let _ = setup.run(&["dead", "retry", &id]).ok();
        let row = setup.wait_for_row(&id, "two attempts more", |row| {
            row.text("status") == "FAILURE" && row.number("retries") == 1
        });
        assert_eq!(row.number("attempts"), 4);
        let _ = setup.wait_for_dead(1);
    }

    fn a_malformed_message_is_sent_again_exactly_and_its_space_is_given_back(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let body = "  no job at all \u{e9} ";
        setup.send_body(body);
        let mut worker = setup.worker(&[]);
        let first = setup.wait_for_dead(1).remove(0);
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        let size = i64::try_from(body.len()).unwrap();
        let space = "SELECT bytes FROM {malformed_space}";
        assert_eq!(setup.count(space), size);
        let _ = setup.run(&["dead", "retry", &first.text("id")]).ok();
        assert_eq!(setup.count(space), 0);
        assert!(setup.dead().is_empty());

        let _worker = setup.worker(&[]);
        let again = setup.wait_for_dead(1).remove(0);
        assert_eq!(again.text("body"), body);
        assert_ne!(again.text("id"), first.text("id"), "it is another message");
        assert_eq!(setup.count(space), size);
        let told = setup.run(&["dead", "discard", "--kind", "malformed", "--yes"]).ok();
        assert_eq!(told.line(), "1 discarded");
        assert_eq!(setup.count(space), 0);
        setup.wait_until_drained();
    }

    fn an_unknown_job_runs_once_it_is_deployed_and_sent_again(pair) {
        let setup = Setup::new(pair, &[]);
        setup.send_body(r#"{"id": "foreign", "name": "counter"}"#);
        let known = setup.add(&["counter"]);
        let mut worker = setup.worker(&[]);
        setup.wait_out_patience(2);
        let dead = setup.wait_for_dead(2);
        assert!(dead.iter().all(|entry| entry.text("kind") == "unknown-job"), "{dead:?}");
        assert_eq!(worker.terminate(), Some(0));
        setup.project.deploy("outcomes");
        let told = setup.run(&["dead", "retry", "--kind", "unknown-job", "--yes"]).ok();
        assert_eq!(told.line(), "2 sent again");
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status("foreign", "SUCCESS");
        assert_eq!(setup.wait_for_status(&known, "SUCCESS").number("retries"), 1);
    }

    /// Each is sent once, whoever is killed before or after the commit of a batch.
    fn of_a_hundred_thousand_dead_jobs_each_is_sent_once_though_the_retry_is_killed_half_way(pair) {
        let setup = Setup::new(pair, &[]);
        let id = setup.add(&["counter"]);
        setup.execute(&setup.named("DELETE FROM {outbox}"));
        fill(&setup, 100_000);
        let args = ["dead", "retry", "--reason", "no way", "--yes"];
        for (point, batches) in [("retried=kill@20", 20), ("retry-written=kill@30", 49)] {
            let mut command = setup.project.command(&args);
            command.env(sqjobs::failpoint::VARIABLE, point);
            let output = support::Output::of(command);
            assert_eq!(output.code, None, "{output}");
            assert_eq!(setup.count("SELECT count(*) FROM {outbox}"), batches * 500, "{point}");
        }
        let _ = setup.run(&args).ok();
        let sent = "SELECT count(*) FROM {outbox} WHERE send_number = 4 AND message_group = 'g' \
                    AND attributes = '{\"tenant\": \"t\"}'";
        assert_eq!(setup.count(sent), 100_000);
        assert_eq!(setup.count("SELECT count(DISTINCT job_id) FROM {outbox}"), 100_000);
        let waiting = "SELECT count(*) FROM {jobs} WHERE status = 'PENDING' AND retries = 1";
        assert_eq!(setup.count(waiting), 100_000);
        assert_eq!(setup.count("SELECT count(*) FROM {dead}"), 1, "another reason");
        assert_eq!(setup.status(&id).unwrap().number("retries"), 0);
        setup.run(&args).ok().says(&["nothing matches"]);
    }
}

/// Puts so many failed jobs into the dead list, and one with another reason.
fn fill(setup: &Setup, count: usize) {
    let blob = if setup.pair == Pair::PostgresSqs { "bytea" } else { "BLOB" };
    let queue = &setup.queue;
    let numbers = format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    );
    setup.execute(&setup.named(&format!(
        "INSERT INTO {{jobs}} (id, name, queue, status, args, kwargs, fingerprint, message_group, \
         sends, error, created_at, enqueued_at, finished_at, updated_at) {numbers} \
         SELECT 'job-' || i, 'counter', '{queue}', 'FAILURE', '[]', '{{}}', 'f', 'g', 3, 'no way', \
         1000, 1000, 1000, 1000 FROM n"
    )));
    setup.execute(&setup.named(&format!(
        "INSERT INTO {{dead}} (id, kind, queue, job, job_id, reason, body, attributes, body_bytes, \
         message_group, received_at) {numbers} SELECT 'job-' || i, 'failed', '{queue}', 'counter', \
         'job-' || i, CASE WHEN i = 7 THEN 'other' ELSE 'there is no way out' END, \
         CAST('x' AS {blob}), '{{\"tenant\": \"t\"}}', 1, 'g', 1000 + i / 10 FROM n"
    )));
}

fn ids(entries: &[Json]) -> Vec<String> {
    entries.iter().map(|entry| entry.text("id")).collect()
}

#[test]
fn entries_are_chosen_by_kind_job_reason_error_and_time() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    only_one_attempt(&setup);
    let permanent = setup.add(&["fail_permanent", "a 100% sure end"]);
    let once = fail_once(&setup);
    setup.send_body("no job");
    let _worker = setup.worker(&[]);
    let dead = setup.wait_for_dead(3);
    let malformed = dead.iter().find(|entry| entry.text("kind") == "malformed").unwrap();
    let malformed = malformed.text("id");
    for (filter, mut expected) in [
        (&["--kind", "malformed"][..], vec![&malformed]),
        (&["--job", "effect"], vec![&once]),
        (&["--queue", &setup.queue], vec![&once, &permanent, &malformed]),
        (&["--queue", "other"], vec![]),
        (&["--reason", "100% sure"], vec![&permanent]),
        (&["--reason", "100_ sure"], vec![]),
        (&["--error", "before attempt"], vec![&once]),
        (&["--error", "effects.rs"], vec![&once]),
        (&["--since", "1h"], vec![&once, &permanent, &malformed]),
        (&["--until", "1h"], vec![]),
        (&["--until", "2001-01-01T00:00:00Z"], vec![]),
        (&["--since", "2001-01-01T00:00:00Z", "--kind", "failed"], vec![&once, &permanent]),
    ] {
        let args = [&["dead", "list", "--output", "json"], filter].concat();
        let mut found = ids(&setup.run(&args).ok().json_lines());
        found.sort();
        expected.sort();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

#[test]
fn what_a_bulk_command_is_about_must_be_said_and_confirmed() {
    let setup = Setup::new(Pair::Embedded, &[]);
    setup.send_body("no job");
    let _worker = setup.worker(&[]);
    let id = setup.wait_for_dead(1)[0].text("id");
    for command in ["retry", "discard"] {
        let run = |args: &[&str]| setup.run(&[&["dead", command], args].concat());
        run(&[]).exits(2).is_a_sentence().says(&["--all", "filter"]);
        run(&["--all"]).exits(2).is_a_sentence().says(&["1 entry", "--yes"]);
        run(&["--kind", "malformed"]).exits(2).is_a_sentence().says(&["--yes"]);
        run(&[&id, "--all"]).exits(2).is_a_sentence();
        run(&["--all", "--since", "soon"]).exits(2).is_a_sentence();
        run(&["--since", "soon"]).exits(2).is_a_sentence().says(&["--since", "soon", "2h"]);
        let _ = run(&["--reason", ""]).exits(2);
        let _ = run(&["--kind", "bogus", "--yes"]).exits(2);
        run(&["--job", "nobody"]).exits(0).says(&["nothing matches"]);
        run(&["nobody"]).exits(1).is_a_sentence().says(&["nobody", "dead list"]);
        assert_eq!(setup.dead().len(), 1, "nothing was done");
    }
    setup.run(&["dead", "discard", &id, "nobody"]).exits(1).says(&["`nobody`"]);
    assert!(setup.dead().is_empty(), "the one that is there is discarded all the same");
    setup.run(&["dead", "discard", "--all"]).exits(0).says(&["nothing matches"]);
    wait::until_true("an empty queue", || setup.depth() == [0, 0, 0]);
}

/// Its message came back by way of the dead-letter queue meanwhile, say.
#[test]
fn an_entry_whose_job_has_succeeded_meanwhile_leaves_the_list_and_is_not_sent() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    only_one_attempt(&setup);
    let id = fail_once(&setup);
    let _worker = setup.worker(&[]);
    let _ = setup.wait_for_dead(1);
    setup.execute(&setup.named("UPDATE {jobs} SET status = 'SUCCESS'"));
    let told = setup.run(&["dead", "retry", &id, "--output", "json"]).ok().json();
    assert_eq!((told.number("sent"), told.number("not_needed")), (0, 1));
    assert!(setup.dead().is_empty());
    assert_eq!(setup.status(&id).unwrap().number("retries"), 0);
}
