//! Configuration: file < environment < flags, and where files lie.

use support::proxy::{Faults, Proxy};
use support::{Pair, Project, Setup, WorkerProcess, servers, wait};

/// The queue under which a job is added, which tells where it went.
fn add_and_find(project: &Project, args: &[&str]) -> Option<i32> {
    let id = project.run(&["add", "adder_job", "1"]).ok().line().to_owned();
    project.run(&[&["status", &id][..], args].concat()).code
}

#[test]
fn the_file_is_weaker_than_the_environment_and_that_than_a_flag() {
    let mut project = Project::with_guests(&["adder"]);
    let exists = |project: &Project, folder: &str| project.folder().join(folder).is_dir();
    project.write("sqjobs.toml", "data-dir = \"by-file\"\n");
    let _ = project.run(&["add", "adder_job", "1"]).ok();
    assert!(exists(&project, "by-file"));

    project.set("SQJOBS_DATA_DIR", "by-environment");
    let _ = project.run(&["add", "adder_job", "1"]).ok();
    assert!(exists(&project, "by-environment"));

    let _ = project.run(&["add", "adder_job", "1", "--data-dir", "by-flag"]).ok();
    assert!(exists(&project, "by-flag"));
}

#[test]
fn the_file_is_found_in_the_folders_above_and_its_paths_are_relative_to_it() {
    let project = Project::with_guests(&["adder"]);
    project.write("sqjobs.toml", "jobs-dir = \"jobs\"\n");
    let below = project.folder().join("deep/below");
    std::fs::create_dir_all(&below).unwrap();
    let mut command = project.command(&["add", "adder_job", "1"]);
    command.current_dir(&below);
    let id = support::Output::of(command).ok().line().to_owned();
    assert!(!below.join(".sqjobs").exists());
    let _ = project.run(&["status", &id]).ok();
}

#[test]
fn two_data_folders_are_two_databases() {
    let project = Project::with_guests(&["adder"]);
    assert_eq!(add_and_find(&project, &[]), Some(0));
    assert_eq!(add_and_find(&project, &["--data-dir", "elsewhere"]), Some(1));
}

#[test]
fn all_faults_of_the_file_are_told_at_once() {
    let project = Project::with_guests(&["adder"]);
    project.write(
        "sqjobs.toml",
        "concurency = 4\nbroker = \"rabbit\"\njobs-dir = 7\n[jobs.adder_job]\nrecord = \"yes\"\ntimeout = \"soon\"\nretires = 3\n",
    );
    let output = project.run(&["list"]).exits(2);
    output.is_a_sentence().says(&[
        "sqjobs.toml",
        "concurency",
        "concurrency",
        "rabbit",
        "jobs-dir",
        "record",
        "soon",
        "retires",
    ]);
}

#[test]
fn faults_of_queues_and_of_the_file_are_told_together() {
    let project = Project::with_guests(&["adder"]);
    project.write("sqjobs.toml", "concurency = 4\n");
    for command in [&["worker", "a b", "c/d"][..], &["beater", "a b", "c/d"]] {
        let output = project.run(command).exits(2);
        output.is_a_sentence().says(&["`a b`", "`c/d`", "concurency"]);
    }
    project.run(&["queues", "list", "a b"]).exits(2).says(&["`a b`", "concurency"]);
}

#[test]
fn a_file_that_is_no_toml_is_named_with_the_line() {
    let project = Project::with_guests(&["adder"]);
    project.write("sqjobs.toml", "broker = \"local\"\nthis is nonsense\n");
    project.run(&["list"]).exits(2).is_a_sentence().says(&["sqjobs.toml", "2"]);
}

#[test]
fn every_flag_has_a_variable_that_is_checked_like_it() {
    for (name, value) in [
        ("SQJOBS_BROKER", "rabbit"),
        ("SQJOBS_CONCURRENCY", "many"),
        ("SQJOBS_DATABASE", "mysql://x"),
        ("SQJOBS_LOG_LEVEL", "loud"),
        ("SQJOBS_LOG_FORMAT", "xml"),
        ("SQJOBS_OUTPUT", "xml"),
    ] {
        let mut project = Project::with_guests(&["adder"]);
        project.set(name, value);
        let output = project.run(&["worker", "q"]).exits(2);
        output.is_a_sentence().says(&[value.split(':').next().unwrap()]);
    }
    let mut project = Project::with_guests(&["adder"]);
    project.set("SQJOBS_CONFIG", "missing.toml");
    project.run(&["list"]).exits(2).is_a_sentence().says(&["missing.toml"]);
}

#[test]
fn an_sqs_endpoint_without_a_chosen_broker_asks_for_it() {
    let mut project = Project::with_guests(&["adder"]);
    let url = "https://sqs.us-east-1.amazonaws.com/123456789012/my_queue";
    project.run(&["worker", url]).exits(2).is_a_sentence().says(&["--broker"]);
    project.set("AWS_ENDPOINT_URL", &servers::sqs_url());
    project
        .run(&["worker", "my_queue"])
        .exits(2)
        .is_a_sentence()
        .says(&["--broker", "AWS_ENDPOINT_URL"]);
    let _ = project.run(&["add", "adder_job", "1", "--broker", "local"]).ok();
}

#[test]
fn a_queue_can_be_given_by_url() {
    let setup = Setup::new(Pair::SqliteSqs, &["adder"]);
    let mut worker = setup.project.worker(&[setup.sqs().url.as_str()]);
    let id = setup
        .run(&["add", "adder_job", "1", "2", "--queue", &setup.sqs().url])
        .ok()
        .line()
        .to_owned();
    let row = setup.wait_for_status(&id, "SUCCESS");
    assert_eq!(row.text("queue"), setup.queue);
    assert_eq!(worker.terminate(), Some(0));
}

/// The name alone may be another account's queue, or none: what is sent goes to the URL.
#[test]
fn what_a_worker_of_a_url_sends_goes_to_that_url() {
    let mut setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let settings = "[jobs.fail_until]\ninitial-backoff = \"80000h\"\nmax-backoff = \"80000h\"\n";
    setup.project.write("sqjobs.toml", settings);
    let proxy = Proxy::start(0, Faults::default());
    setup.project.set("AWS_ENDPOINT_URL", &proxy.url());
    proxy.deny(&["GetQueueUrl"]);
    let parent = r#"{"id": "parent", "name": "add_children", "args": [2]}"#;
    let retried = r#"{"id": "retried", "name": "fail_until", "args": [2]}"#;
    let _ids = setup.send_bodies(&[parent.to_owned(), retried.to_owned()]);
    let mut worker = setup.project.worker(&[setup.sqs().url.as_str()]);
    let _ = setup.wait_for_status("parent", "SUCCESS");
    let children = "SELECT count(*) FROM {jobs} WHERE parent_id = 'parent' AND status = 'SUCCESS'";
    wait::until_true("two children", || setup.count(children) == 2);
    // A backoff beyond 12 hours is waited for in the database.
    let parked = "SELECT count(*) FROM {outbox} WHERE job_id = 'retried'";
    wait::until_true("a parked retry", || setup.count(parked) == 1);
    setup.execute(&setup.named("UPDATE {outbox} SET not_before = 0"));
    setup.execute(&setup.named("UPDATE {jobs} SET retry_at = 0 WHERE id = 'retried'"));
    let _ = setup.wait_for_status("retried", "SUCCESS");
    assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
}

#[test]
fn the_worker_s_first_line_names_config_database_and_broker() {
    let project = Project::with_guests(&["adder"]);
    let file = project.write("sqjobs.toml", "");
    let mut worker: WorkerProcess = project.worker(&["q"]);
    worker.wait_until_ready();
    let first = worker.log().remove(0);
    assert!(first.contains(&file.display().to_string()), "{first}");
    assert!(first.contains(".sqjobs") && first.contains("sqlite"), "{first}");
    assert!(first.contains("local"), "{first}");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn several_jobs_folders_serve_together() {
    let project = Project::with_guests(&["adder"]);
    let other = project.folder().join("more");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(servers::guest("samples"), other.join("samples.wasm")).unwrap();
    let jobs =
        project.run(&["jobs", "--output", "json", "--jobs-dir", "jobs", "--jobs-dir", "more"]).ok();
    assert!(jobs.stdout.contains("adder_job") && jobs.stdout.contains("echo_job"), "{jobs}");
    project.write("sqjobs.toml", "jobs-dir = [\"jobs\", \"more\"]\n");
    let by_file = project.run(&["jobs", "--output", "json"]).ok();
    assert_eq!(jobs.stdout, by_file.stdout);
}

/// One sentence of ours with a remedy: no line of the driver's, no wait for a connection that
/// can't come.
#[test]
fn a_database_that_cannot_be_opened_is_told_in_one_line_with_a_remedy() {
    let project = Project::with_guests(&["adder"]);
    project.write("text.db", "no database ".repeat(1000));
    project.write(".sqjobs/sqjobs.db", "no database ".repeat(1000));
    let postgres = servers::database_url();
    let server = postgres.rsplit_once('@').unwrap().1.split('/').next().unwrap();
    let sqs = servers::sqs_url();
    for (database, words) in [
        ("sqlite:text.db".to_owned(), &["text.db", "no SQLite database", "--database"][..]),
        ("sqlite:jobs".to_owned(), &["jobs", "file", "--database"]),
        ("sqlite:text.db/x.db".to_owned(), &["text.db", "--data-dir"]),
        ("postgres://nobody@127.0.0.1:1/none".to_owned(), &["127.0.0.1:1", "host and port"]),
        (sqs.replace("http://", "postgres://nobody@"), &["host and port"]),
        (format!("postgres://postgres@{server}/nowhere"), &["nowhere", "create it"]),
        (format!("postgres://nobody@{server}/postgres"), &["nobody", "PGPASSWORD"]),
    ] {
        for command in [&["list"][..], &["migrate"], &["worker", "q", "--log-level", "warn"]] {
            let output = project.run(&[command, &["--database", &database]].concat()).exits(1);
            output.is_a_sentence().says(words);
            assert_eq!(output.stderr.lines().count(), 1, "{output}");
            assert!(!output.stderr.contains("timed out"), "{output}");
        }
    }
    // The embedded queue beside an SQLite file that is good.
    let args = ["worker", "q", "--database", "sqlite:good.db", "--log-level", "warn"];
    let output = project.run(&args).exits(1);
    output.is_a_sentence().says(&["sqjobs.db", "no SQLite database", "--data-dir"]);
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
}

#[test]
fn a_database_password_may_come_from_a_file() {
    let setup = Setup::new(Pair::PostgresSqs, &["adder"]);
    let file = setup.project.write("password", "hunter2secret\n").display().to_string();
    let _ = setup.run(&["list", "--database-password-file", &file]).ok();

    let unreachable = "postgres://nobody@127.0.0.1:1/none";
    let output =
        setup.run(&["list", "--database", unreachable, "--database-password-file", &file]).exits(1);
    assert!(!output.is_a_sentence().stderr.contains("hunter2secret"), "{output}");

    let missing = setup.run(&["list", "--database-password-file", "missing"]).exits(2);
    missing.is_a_sentence().says(&["missing"]);
}

/// The worker's own file, so that the commands of the tests are not bothered by its faults.
const WORKER_FILE: &str = "worker.toml";

fn worker_with(setup: &Setup, file: &str) -> WorkerProcess {
    setup.project.write(WORKER_FILE, file);
    let mut worker = setup.worker(&["--config", WORKER_FILE]);
    worker.wait_until_ready();
    worker
}

fn end_of_a_slow_job(setup: &Setup) -> String {
    let id = setup.add(&["sleep_ms", "2000"]);
    let row = setup.wait_for_row(&id, "an end", |row| {
        ["SUCCESS", "FAILURE"].contains(&row.text("status").as_str())
    });
    row.text("status")
}

#[test]
fn limits_are_read_again_when_the_file_changes_and_on_sighup() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let mut worker = worker_with(&setup, "");
    assert_eq!(end_of_a_slow_job(&setup), "SUCCESS");
    let short = "[jobs.sleep_ms]\ntimeout = \"50ms\"\nmax-attempts = 1\n";
    setup.project.write(WORKER_FILE, short);
    worker.wait_for_line(&["read the configuration again"]);
    assert_eq!(end_of_a_slow_job(&setup), "FAILURE");
    setup.project.write(WORKER_FILE, "");
    worker.signal("HUP");
    support::wait::until_true("the old limit", || end_of_a_slow_job(&setup) == "SUCCESS");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_faulty_file_leaves_the_old_settings_and_says_why() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let short = "[jobs.sleep_ms]\ntimeout = \"50ms\"\nmax-attempts = 1\n";
    let mut worker = worker_with(&setup, short);
    for (file, words) in [
        ("[jobs.sleep_ms]\ntimeout = \"soon\"\n", ["timeout", "soon"]),
        ("[jobs.sleep_ms\n", ["TOML", "the old one stays"]),
    ] {
        setup.project.write(WORKER_FILE, file);
        worker.wait_for_line(&words);
        assert_eq!(end_of_a_slow_job(&setup), "FAILURE");
    }
    std::fs::remove_file(setup.project.folder().join(WORKER_FILE)).unwrap();
    worker.signal("HUP");
    worker.wait_for_line(&["cannot read the configuration file"]);
    assert_eq!(end_of_a_slow_job(&setup), "FAILURE");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_key_that_can_t_change_while_it_runs_says_that_it_needs_a_restart() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let mut worker = worker_with(&setup, "");
    setup.project.write(WORKER_FILE, "lease = \"7s\"\nconcurrency = 3\n");
    for key in ["`lease`", "`concurrency`"] {
        worker.wait_for_line(&[key, "needs a restart"]);
    }
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn an_attempt_keeps_the_settings_that_it_began_with() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let mut worker = worker_with(&setup, "");
    let id = setup.add(&["sleep_ms", "4000"]);
    let _ = setup.wait_for_status(&id, "RUNNING");
    setup.project.write(WORKER_FILE, "[jobs.sleep_ms]\ntimeout = \"50ms\"\nrecord = false\n");
    worker.wait_for_line(&["read the configuration again"]);
    let row = setup.wait_for_status(&id, "SUCCESS");
    assert_eq!(row.number("attempts"), 1);
    assert_eq!(worker.terminate(), Some(0));
}

fn variables(setup: &Setup) -> String {
    let id = setup.add(&["look_around"]);
    setup.wait_for_status(&id, "SUCCESS").raw("result").to_owned()
}

const GREETING: &str = "[modules.outcomes.grants]\nenv = [\"GREETING\"]\n";

#[test]
fn grants_change_while_a_worker_runs_and_a_revoked_one_ends_at_the_next_attempt() {
    let mut setup = Setup::new(Pair::Embedded, &["outcomes"]);
    setup.project.set("GREETING", "hello");
    let mut worker = worker_with(&setup, "");
    assert!(!variables(&setup).contains("GREETING"));
    for (file, is_granted) in [(GREETING, true), ("", false)] {
        setup.project.write(WORKER_FILE, file);
        wait::until_true("an attempt under the new grants", || {
            variables(&setup).contains("hello") == is_granted
        });
    }
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_grant_with_a_fault_leaves_all_old_settings_and_says_why() {
    let mut setup = Setup::new(Pair::Embedded, &["outcomes"]);
    setup.project.set("GREETING", "hello");
    let short = "[jobs.sleep_ms]\ntimeout = \"50ms\"\nmax-attempts = 1\n";
    let mut worker = worker_with(&setup, &format!("{short}{GREETING}"));
    for (named, fault) in [
        ("/missing`", "[[modules.outcomes.grants.folders]]\npath = \"missing\"\n"),
        ("/jobs`", "[[modules.outcomes.grants.folders]]\npath = \"jobs\"\n"),
        ("NO_SUCH", "[modules.outcomes.grants.secrets]\nA = { env = \"NO_SUCH\" }\n"),
    ] {
        setup.project.write(WORKER_FILE, fault);
        worker.wait_for_line(&["the old one stays", "[modules.outcomes.grants]", named]);
    }
    assert!(variables(&setup).contains("hello"));
    assert_eq!(end_of_a_slow_job(&setup), "FAILURE");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_module_that_was_refused_is_looked_at_again_when_the_file_grants_what_it_wants() {
    let setup = Setup::new(Pair::Embedded, &["fetcher"]);
    let mut worker = worker_with(&setup, "");
    worker.wait_for_line(&["refused a module", "wasi:http"]);
    let grants = "[modules.fetcher.grants]\nhttp = [\"api.example.com:443\"]\n";
    setup.project.write(WORKER_FILE, grants);
    worker.wait_for_line(&["module `fetcher` serves"]);
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn periodic_entries_of_the_file_change_while_a_worker_runs() {
    let setup = Setup::new(Pair::Embedded, &["adder"]);
    let mut worker = worker_with(&setup, "");
    for (every, told) in [("10m", "is new"), ("20m", "is defined anew")] {
        let entry = format!("[periodic.adder_job]\nevery = \"{every}\"\nargs = [1, 2]\n");
        setup.project.write(WORKER_FILE, entry);
        worker.wait_for_line(&["the periodic entry `adder_job`", told]);
        let listed = setup.run(&["periodic", "list"]).ok();
        assert!(listed.stdout.contains(every), "{}", listed.stdout);
    }
    assert_eq!(worker.terminate(), Some(0));
}

/// What the guide shows can be copied.
#[test]
fn the_examples_of_the_guide_are_accepted() {
    let guide = include_str!("../../docs/configuration.md");
    let blocks = guide.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let settings: Vec<&str> = blocks.collect();
    assert!(settings.len() > 2, "{settings:?}");
    let project = Project::with_guests(&[]);
    project.write("sqjobs.toml", settings.join("\n"));
    let _ = project.run(&["list"]).ok();
}
