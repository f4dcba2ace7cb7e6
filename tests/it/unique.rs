//! Unique keys: one job of a key at a time, whoever adds.

use std::collections::BTreeSet;
use std::sync::Mutex;

use support::{Pair, Setup, side_by_side};

fn jobs(setup: &Setup) -> i64 {
    setup.count("SELECT count(*) FROM {jobs}")
}

/// Lets the window of every key pass.
fn end_windows(setup: &Setup) {
    setup.execute(&setup.named("UPDATE {unique_keys} SET held_until = 0"));
}

on_every_pair! {
    fn while_a_job_of_a_key_waits_a_second_add_returns_its_id_and_adds_nothing(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let first = setup.add(&["counter", "--unique-key", "k"]);
        let args = ["add", "--queue", &setup.queue, "sleep_ms", "1", "--unique-key", "k"];
        let second = setup.run(&args).ok();
        assert_eq!(second.line(), first, "whatever the job");
        second.says(&["nothing was added"]);
        let other = setup.add(&["counter", "--unique-key", "other"]);
        assert_ne!(other, first);
        assert_eq!((jobs(&setup), setup.depth()), (2, [2, 0, 0]));

        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&first, "SUCCESS");
        assert_ne!(setup.add(&["counter", "--unique-key", "k"]), first, "done, and no window");
    }

    fn within_its_window_a_key_is_held_also_when_its_job_is_done(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let add = || setup.add(&["counter", "--unique-key", "k", "--unique-for", "1h"]);
        let first = add();
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&first, "SUCCESS");
        assert_eq!(add(), first);
        end_windows(&setup);
        assert_ne!(add(), first);
    }

    /// The window's end alone frees no key either.
    fn a_key_is_held_while_its_job_runs_however_short_its_window(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let add = |ms: &str| setup.add(&["sleep_ms", ms, "--unique-key", "k", "--unique-for", "1ms"]);
        let first = add("3000");
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&first, "RUNNING");
        assert_eq!(add("1"), first);
        let _ = setup.wait_for_status(&first, "SUCCESS");
        assert_ne!(add("1"), first);
    }

    fn of_a_hundred_adds_of_one_key_at_once_one_adds_a_job(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids = Mutex::new(BTreeSet::new());
        let numbers: Vec<usize> = (0..100).collect();
        side_by_side(&numbers, 9, |_| {
            let id = setup.add(&["counter", "--unique-key", "k"]);
            ids.lock().unwrap().insert(id);
        });
        assert_eq!(ids.into_inner().unwrap().len(), 1);
        assert_eq!((jobs(&setup), setup.depth()), (1, [1, 0, 0]));
    }

    fn what_a_job_describes_as_unique_counts_for_whoever_adds_it(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let first = setup.add(&["single", "4000"]);
        assert_eq!(setup.add(&["single", "4000"]), first);
        assert_ne!(setup.add(&["single", "1"]), first, "other arguments");
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&first, "RUNNING");
        assert_eq!(setup.add(&["single", "4000"]), first, "by what the worker told the database");
        let parent = setup.add(&["add_children", "2", "--kwarg", "name=single"]);
        let parent = setup.wait_for_status(&parent, "SUCCESS");
        assert_eq!(parent.value("result").as_array().unwrap().len(), 2, "\"0\" and \"1\" differ");
    }

    /// Its id is what the second call of the same attempt, and the next parent, is told.
    fn children_of_one_key_are_one_job(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let kwargs = ["--kwarg", "unique_key=k", "--kwarg", "unique_for_ms=3600000"];
        let add = |more: &[&str]| {
            let id = setup.add(&[&["add_children", "3"], &kwargs[..], more].concat());
            let row = setup.wait_for_status(&id, "SUCCESS");
            let ids: Vec<String> = serde_json::from_str(row.raw("result")).unwrap();
            (ids, row.value("children").as_array().unwrap().len())
        };
        let _worker = setup.worker(&[]);
        let (first, children) = add(&[]);
        assert_eq!(children, 1);
        assert!(first.iter().all(|id| *id == first[0]), "{first:?}");
        let _ = setup.wait_for_status(&first[0], "SUCCESS");
        for more in [&[][..], &["--kwarg", "at_once=true"]] {
            let (again, children) = add(more);
            assert_eq!((&again, children), (&first, 0));
        }
    }

    /// A key must not wait for a window that no job was sent in.
    fn a_job_that_can_t_be_sent_frees_its_key(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let key = ["--unique-key", "k", "--unique-for", "1h"];
        let args = [&["add", "--queue", &setup.queue, "counter"], &key[..]].concat();
        let mut command = setup.project.command(&args);
        command.env(sqjobs::failpoint::VARIABLE, "outbox-added=kill");
        assert_eq!(support::Output::of(command).code, None);
        setup.execute(&setup.named("UPDATE {outbox} SET queue = 'no queue', taken_until = 0"));
        let _worker = setup.worker(&[]);
        let dead = setup.wait_for_dead(1);
        let added = setup.run(&args).ok();
        assert_ne!(added.line(), dead[0].text("id"));
        let _ = setup.wait_for_status(added.line(), "SUCCESS");
    }
}

#[test]
fn a_key_that_is_none_is_wrong_usage_and_adds_nothing() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let long = "k".repeat(10_000);
    for (wrong, words) in [
        (&["--unique-key", long.as_str()][..], &["--unique-key", "10000 bytes", "256"][..]),
        (&["--unique-key", ""], &["--unique-key", "empty"]),
        (&["--unique-key", "a\tb"], &["--unique-key", "control"]),
        (&["--unique-key", "k", "--unique-for", "-1s"], &["--unique-for", "3660 days"]),
        (&["--unique-key", "k", "--unique-for", "9999d"], &["--unique-for", "3660 days"]),
        (&["--unique-for", "1h"], &["--unique-key"]),
    ] {
        let args = [&["add", "--queue", setup.queue.as_str(), "counter"], wrong].concat();
        setup.run(&args).exits(2).is_a_sentence().says(words);
    }
    setup.run(&["list"]).ok().says(&["no job matches"]);
}
