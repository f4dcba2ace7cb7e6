//! Versions of a module: history, rollback, pins and canaries, on all hosts of a database.

use std::path::PathBuf;

use support::versions::{FILE, digest, marker_of, move_into_place, padded, version};
use support::{Json, Pair, Setup, WorkerProcess, wait};

/// A second host on the same database and queue: a worker with a jobs folder of its own.
fn second_host(setup: &Setup, marker: &str) -> (PathBuf, WorkerProcess) {
    let jobs = setup.project.folder().join("second/jobs");
    std::fs::create_dir_all(&jobs).unwrap();
    move_into_place(&jobs.join(FILE), &version(marker));
    let worker = setup.worker(&["--jobs-dir", &jobs.display().to_string()]);
    (jobs.join(FILE), worker)
}

fn start(setup: &Setup, marker: &str) -> WorkerProcess {
    setup.deploy_version(marker);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    assert_eq!(setup.serving_marker(), padded(marker));
    worker
}

/// Waits until the database says that this version serves.
fn wait_until_noted(setup: &Setup, marker: &str) {
    wait::until_true("the version in the database", || {
        let row = modules(setup).into_iter().find(|row| row.text("module") == "versioned");
        row.is_some_and(|row| row.value("digest") == digest(&version(marker)).as_str())
    });
}

fn deploy(setup: &Setup, marker: &str) {
    setup.deploy_version(marker);
    setup.wait_for_version(marker);
    wait_until_noted(setup, marker);
}

fn modules(setup: &Setup) -> Vec<Json> {
    setup.run(&["modules", "list", "--output", "json"]).ok().json_lines()
}

fn events(setup: &Setup) -> Vec<(String, String)> {
    let rows = setup.run(&["modules", "history", "versioned", "--output", "json"]).ok();
    let rows = rows.json_lines().into_iter().rev();
    rows.map(|row| {
        let digest = row.value("digest");
        (row.text("event"), digest.as_str().unwrap_or("").to_owned())
    })
    .collect()
}

fn event(name: &str, marker: &str) -> (String, String) {
    (name.to_owned(), digest(&version(marker)))
}

on_every_pair! {
    fn a_rollback_serves_the_version_before_and_refuses_the_present_one(pair) {
        let setup = Setup::new(pair, &[]);
        let mut worker = start(&setup, "a");
        deploy(&setup, "b");
        let said = setup.run(&["modules", "rollback", "versioned", "--reason", "it leaks"]).ok();
        assert!(said.line().contains(&digest(&version("a"))[..12]), "{said}");
        setup.wait_for_version("a");
        worker.wait_for_line(&["was refused"]);

        // Neither a restart nor the same file put there again revives it.
        assert_eq!(worker.terminate(), Some(0));
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        assert_eq!(setup.serving_marker(), padded("a"));
        setup.deploy_version("b");
        worker.wait_for_line(&["refused a module"]);
        assert_eq!(setup.serving_marker(), padded("a"));

        // Another version is followed, and so is the next.
        deploy(&setup, "c");
        deploy(&setup, "d");
        setup.deploy_version("b");
        assert_eq!(worker.terminate(), Some(0));
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        assert_eq!(setup.serving_marker(), padded("d"), "what served last, not what was refused");
        let events = events(&setup);
        assert_eq!(events[0], event("serves", "a"));
        assert_eq!(events[1], event("serves", "b"));
        assert_eq!(events[2], event("rolled-back", "a"));
        assert_eq!(events.last().unwrap(), &event("serves", "d"));
        assert_eq!(worker.terminate(), Some(0));
    }

    fn a_pinned_version_serves_whatever_the_folder_holds(pair) {
        let setup = Setup::new(pair, &[]);
        let mut worker = start(&setup, "a");
        deploy(&setup, "b");
        let first = &digest(&version("a"))[..10];
        let _ = setup.run(&["modules", "pin", "versioned", first]).ok();
        setup.wait_for_version("a");
        setup.deploy_version("c");
        worker.wait_for_line(&["is pinned"]);
        assert_eq!(setup.serving_marker(), padded("a"));
        assert_eq!(modules(&setup)[0].text("mode"), "pinned");
        wait::until_true("`jobs` to tell both versions", || {
            let row = setup.run(&["jobs", "--output", "json"]).ok().json_lines().remove(0);
            row.text("module_digest") == digest(&version("c"))
                && row.value("served_digest") == digest(&version("a")).as_str()
        });
        let _ = setup.run(&["modules", "unpin", "versioned"]).ok();
        setup.wait_for_version("c");
        setup.run(&["modules", "unpin", "versioned"]).exits(1).is_a_sentence();
        assert_eq!(worker.terminate(), Some(0));
    }

    fn every_attempt_tells_module_version_and_digest(pair) {
        let setup = Setup::new(pair, &[]);
        let mut worker = start(&setup, "a");
        let id = setup.add(&["which"]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.text("module"), "versioned");
        assert_eq!(row.text("module_digest"), digest(&version("a")));
        assert_eq!(worker.terminate(), Some(0));
    }
}

/// Two hosts with folders of their own: what is decided holds on both.
#[test]
fn hosts_that_share_a_database_follow_one_decision() {
    let setup = Setup::new(Pair::PostgresSqs, &[]);
    let mut first = start(&setup, "a");
    deploy(&setup, "b");
    let (file, mut second) = second_host(&setup, "b");
    second.wait_until_ready();
    let _ = setup.run(&["modules", "rollback", "versioned"]).ok();
    let serves_a = format!("instead of {:.12}", digest(&version("b")));
    for worker in [&mut first, &mut second] {
        worker.wait_for_line(&[&serves_a]);
    }
    // The second host has the refused file in its folder when it comes back.
    assert_eq!(second.terminate(), Some(0));
    let mut second = setup.worker(&["--jobs-dir", &file.parent().unwrap().display().to_string()]);
    second.wait_until_ready();
    assert_eq!(first.terminate(), Some(0));
    assert_eq!(setup.serving_marker(), padded("a"));
    // A new file on it is followed by it.
    move_into_place(&file, &version("c"));
    setup.wait_for_version("c");
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn a_bad_file_at_a_restart_leaves_what_served_last() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = start(&setup, "a");
    wait_until_noted(&setup, "a");
    move_into_place(&setup.versioned_file(), b"not wasm at all");
    worker.wait_for_line(&["refused a module"]);
    assert_eq!(worker.terminate(), Some(0));
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    assert_eq!(setup.serving_marker(), padded("a"));
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn restart_order_does_not_decide_who_holds_a_job_name() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = start(&setup, "holder");
    wait_until_noted(&setup, "holder");
    move_into_place(&setup.project.jobs_dir().join("aaa.wasm"), &version("other"));
    worker.wait_for_line(&["aaa.wasm", "the job `which` is served by"]);
    assert_eq!(worker.terminate(), Some(0));
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    assert_eq!(setup.serving_marker(), padded("holder"), "by file name it would be the other");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn only_so_many_versions_are_kept() {
    let setup = Setup::new(Pair::Embedded, &[]);
    setup.project.write("sqjobs.toml", "[deploy]\nkeep-versions = 2\n");
    let mut worker = start(&setup, "a");
    for marker in ["b", "c", "d"] {
        deploy(&setup, marker);
    }
    let table = setup.table("module_versions");
    let kept = format!("SELECT count(*) FROM {table} WHERE bytes IS NOT NULL");
    assert_eq!(setup.query::<i64>(&kept), 2);
    let lost = digest(&version("a"));
    let refused = setup.run(&["modules", "rollback", "versioned", &lost]).exits(1);
    refused.is_a_sentence().says(&["not kept"]);
    let _ = setup.run(&["modules", "rollback", "versioned"]).ok();
    setup.wait_for_version("c");
    assert_eq!(worker.terminate(), Some(0));
}

/// A host that starts sends a component to the database only when it is not there.
#[test]
fn a_version_that_serves_is_kept_even_when_it_was_not() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = start(&setup, "a");
    wait_until_noted(&setup, "a");
    assert_eq!(worker.terminate(), Some(0));
    let table = setup.table("module_versions");
    setup.execute(&format!("UPDATE {table} SET bytes = NULL"));
    let mut worker = setup.worker(&[]);
    let kept = format!("SELECT count(*) FROM {table} WHERE length(bytes) > 1000");
    wait::until_true("the bytes in the database", || setup.query::<i64>(&kept) == 1);
    assert_eq!(worker.terminate(), Some(0));

    // What is there stays as it is: the mark is not overwritten.
    setup.execute(&format!("UPDATE {table} SET bytes = CAST('mark' AS blob), served_at = 0"));
    let mut worker = setup.worker(&[]);
    let served = format!("SELECT count(*) FROM {table} WHERE served_at > 0");
    wait::until_true("the version to be noted", || setup.query::<i64>(&served) == 1);
    assert_eq!(setup.query::<i64>(&format!("SELECT length(bytes) FROM {table}")), 4);
    assert_eq!(worker.terminate(), Some(0));
}

fn begin_canary(setup: &Setup, marker: &str, share: &str) {
    let file = setup.project.write("canary.wasm", version(marker)).display().to_string();
    let _ = setup.run(&["modules", "canary", "versioned", &file, "--share", share]).ok();
}

#[test]
fn a_canary_takes_its_share_and_a_promotion_ends_it() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = start(&setup, "old");
    wait_until_noted(&setup, "old");
    begin_canary(&setup, "new", "50%");
    worker.wait_for_line(&["is tried on 50 % of its jobs"]);
    let ids: Vec<String> = (0..40).map(|_| setup.add(&["which"])).collect();
    let markers: Vec<String> =
        ids.iter().map(|id| marker_of(&setup.wait_for_status(id, "SUCCESS"))).collect();
    for marker in ["old", "new"] {
        let count = markers.iter().filter(|seen| **seen == padded(marker)).count();
        assert!(count >= 5, "{marker}: {count} of 40");
    }
    assert!(modules(&setup)[0].value("canary").is_object());
    let _ = setup.run(&["modules", "promote", "versioned"]).ok();
    setup.wait_for_version("new");
    worker.wait_for_line(&["module `versioned` serves which instead of"]);
    assert!(modules(&setup)[0].value("canary").is_null());
    // The file still holds the old version, and is followed once it changes.
    deploy(&setup, "newer");
    assert_eq!(worker.terminate(), Some(0));
}

/// On both hosts, though only one of them sees a part of the failures.
#[test]
fn a_canary_that_fails_is_rolled_back_by_itself_on_all_hosts() {
    let setup = Setup::new(Pair::PostgresSqs, &[]);
    let mut first = start(&setup, "old");
    wait_until_noted(&setup, "old");
    let (_, mut second) = second_host(&setup, "old");
    second.wait_until_ready();
    begin_canary(&setup, "bad", "50%");
    for worker in [&mut first, &mut second] {
        worker.wait_for_line(&["is tried on 50 % of its jobs"]);
    }
    let ids: Vec<String> = (0..80).map(|_| setup.add(&["which"])).collect();
    for id in &ids {
        let is_over = |row: &Json| ["SUCCESS", "FAILURE"].contains(&row.text("status").as_str());
        let _ = setup.wait_for_row(id, "an end", is_over);
    }
    wait::until_true("the canary to be rolled back", || {
        modules(&setup)[0].value("canary").is_null()
    });
    let rows = setup.run(&["modules", "history", "versioned", "--output", "json"]).ok();
    let failed = rows.json_lines().into_iter().find(|row| row.text("event") == "canary-failed");
    let reason = failed.unwrap().text("reason");
    assert!(reason.contains("of the canary failed, and 0 of"), "{reason}");
    // From now on every job takes the old version, and the bad one is refused as a file too.
    setup.deploy_version("bad");
    first.wait_for_line(&["refused a module", "was refused"]);
    for _ in 0..10 {
        assert_eq!(setup.serving_marker(), padded("old"));
    }
    assert_eq!(first.terminate(), Some(0));
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn a_canary_of_a_file_that_can_t_serve_is_refused_at_once() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = start(&setup, "old");
    wait_until_noted(&setup, "old");
    let file = setup.project.write("canary.wasm", b"not wasm").display().to_string();
    let run = |args: &[&str]| setup.run(&[&["modules", "canary"], args].concat());
    run(&["versioned", &file]).exits(1).is_a_sentence().says(&["canary.wasm"]);
    run(&["versioned", &file, "--share", "lots"]).exits(2).is_a_sentence().says(&["lots"]);
    run(&["nobody", &file]).exits(1).is_a_sentence().says(&["nobody", "versioned"]);
    run(&["versioned", "--end"]).exits(1).is_a_sentence().says(&["no canary"]);
    setup.run(&["modules", "promote", "versioned"]).exits(1).says(&["no canary"]);
    assert_eq!(worker.terminate(), Some(0));
}
