//! The command line: what each command prints, and how it ends.

use std::process::Command;

use serde_json::{Value, json};
use support::{Output, Pair, Project, Setup, servers};

/// Keys that `status` and `list` have at least.
const STATUS_KEYS: [&str; 14] = [
    "id",
    "name",
    "queue",
    "status",
    "result",
    "error",
    "attempts",
    "module_digest",
    "schedule",
    "fire_time",
    "created_at",
    "started_at",
    "finished_at",
    "duration_ms",
];

/// Characters that move a cursor or turn text around, as no text output may have them.
const HOSTILE: &str = "\u{1b}[31mred\u{202e}turned\u{7}";

fn has_no_control_characters(output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        let found = text.chars().find(|&c| (c.is_control() && c != '\n') || c == '\u{202e}');
        assert_eq!(found, None, "in {output}");
    }
}

on_every_pair! {
    fn add_with_wait_prints_the_result_as_json(pair) {
        let setup = Setup::new(pair, &["adder", "outcomes"]);
        let _worker = setup.worker(&[]);
        let queue = setup.queue.as_str();
        let good = setup.run(&["add", "--queue", queue, "--wait", "adder_job", "1", "2", "3", "4"]).ok();
        assert_eq!(good.line(), "10");

        let bad = setup.run(&["add", "--queue", queue, "--wait", "fail_permanent", "no way"]).exits(1);
        bad.is_a_sentence().says(&["no way"]);

        let unrecorded = setup.run(&["add", "--queue", queue, "--wait", "unrecorded", "false"]).exits(2);
        unrecorded.is_a_sentence().says(&["record"]);
    }

    fn add_with_a_known_id_and_the_same_call_adds_nothing(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["counter", "x", "--id", "order-7"]);
        assert_eq!(id, "order-7");
        assert_eq!(setup.add(&["counter", "x", "--id", "order-7"]), "order-7");
        assert_eq!(setup.depth().iter().sum::<u64>(), 1);

        for call in [["counter", "y"], ["panic_job", "x"]] {
            let args = [&["add", "--queue", &setup.queue, "--id", "order-7"], &call[..]].concat();
            setup.run(&args).exits(1).is_a_sentence().says(&["order-7"]);
        }
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status("order-7", "SUCCESS");
        assert_eq!(setup.add(&["counter", "x", "--id", "order-7"]), "order-7", "also when it is done");
        setup.wait_until_drained();
        assert_eq!(setup.status("order-7").unwrap().number("attempts"), 1);
    }

    fn list_is_newest_first_and_filtered(pair) {
        let setup = Setup::new(pair, &["outcomes", "adder"]);
        let first = setup.add(&["counter"]);
        let second = setup.add(&["counter"]);
        let third = setup.add(&["fail_permanent"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&first, "SUCCESS");
        let _ = setup.wait_for_status(&second, "SUCCESS");
        let _ = setup.wait_for_status(&third, "FAILURE");

        let list = |filter: &[&str]| {
            let args = [&["list", "--output", "json"], filter].concat();
            let rows = setup.run(&args).ok().json_lines();
            for row in &rows {
                assert!(STATUS_KEYS.iter().all(|key| row.has(key)), "{row}");
            }
            rows.iter().map(|row| row.text("id")).collect::<Vec<_>>()
        };
        assert_eq!(list(&[]), [third.as_str(), second.as_str(), first.as_str()]);
        assert_eq!(list(&["--job", "counter"]), [second.as_str(), first.as_str()]);
        assert_eq!(list(&["--status", "FAILURE"]), [third.as_str()]);
        assert_eq!(list(&["--queue", &setup.queue, "--limit", "1"]), [third.as_str()]);
        assert!(list(&["--queue", "another"]).is_empty());
    }

    fn dead_show_prints_the_exact_body(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let body = "not a job, but \"text\" → año";
        let id = setup.send_body(body);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_dead(1);
        let shown = setup.run(&["dead", "show", &id, "--output", "json"]).ok().json();
        assert_eq!(shown.text("body"), body);
        assert_eq!(shown.text("kind"), "malformed");
        for key in ["id", "kind", "queue", "job", "reason", "body", "received_at"] {
            assert!(shown.has(key), "{key}");
        }
        assert!(setup.run(&["dead", "show", &id]).ok().stdout.contains(body));
        setup.run(&["dead", "show", "unknown"]).exits(1).is_a_sentence().says(&["unknown"]);
    }

    fn what_guests_and_bodies_say_cannot_move_the_cursor(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let failed = setup.add(&["fail_permanent", HOSTILE]);
        let printed = setup.add(&["print", HOSTILE]);
        // SQS takes no control characters, but those that turn text around.
        let body = setup.send_body("nonsense \u{202e}turned");
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&failed, "FAILURE");
        let _ = setup.wait_for_status(&printed, "SUCCESS");
        let _ = setup.wait_for_dead(2);
        for args in [
            &["status", failed.as_str()][..], &["list"], &["dead", "list"],
            &["dead", "show", body.as_str()], &["dead", "show", failed.as_str()],
        ] {
            has_no_control_characters(&setup.run(args).ok());
        }
        let hostile_id = setup.run(&["status", "\u{1b}[31m\u{202e}"]).exits(1);
        has_no_control_characters(&hostile_id);
        assert_eq!(worker.terminate(), Some(0));
        let log = Output { command: "worker".into(), code: Some(0), stdout: worker.shown(), stderr: String::new() };
        has_no_control_characters(&log);
    }
}

#[test]
fn the_queue_defaults_to_what_the_deployed_job_describes() {
    let project = Project::with_guests(&["adder"]);
    let id = project.run(&["add", "adder_job", "1", "2"]).ok().line().to_owned();
    let row = project.run(&["status", &id, "--output", "json"]).ok().json();
    assert_eq!(row.text("queue"), "my_queue");
}

#[test]
fn add_of_a_job_that_nobody_knows_asks_for_the_queue() {
    let project = Project::with_guests(&["adder"]);
    let output = project.run(&["add", "nobody_knows"]);
    assert!(output.code == Some(1) || output.code == Some(2), "{output}");
    output.is_a_sentence().says(&["nobody_knows", "--queue"]);
    let _ = project.run(&["add", "nobody_knows", "--queue", "q"]).ok();
}

#[test]
fn an_argument_that_is_json_is_taken_as_json_else_as_a_string() {
    let project = Project::with_guests(&["samples"]);
    let output = project.run(&[
        "run",
        "echo_job",
        "1",
        "1.50",
        "true",
        "null",
        "[1, 2]",
        r#"{"b": 1, "a": 2}"#,
        r#""quoted""#,
        "plain words",
        "",
        "01",
        "--kwarg",
        "n=3",
        "--kwarg",
        "text=a=b",
        "--kwarg",
        "list=[1]",
    ]);
    let echoed = output.ok().json();
    let args =
        json!([1, 1.5, true, null, [1, 2], {"a": 2, "b": 1}, "quoted", "plain words", "", "01"]);
    assert_eq!(echoed.value("args"), args);
    assert_eq!(echoed.value("kwargs"), json!({"n": 3, "text": "a=b", "list": [1]}));
    assert!(echoed.raw("args").contains("1.50"), "numbers keep their text: {echoed}");
}

#[test]
fn a_negative_number_is_an_argument_and_no_flag() {
    let project = Project::with_guests(&["adder"]);
    assert_eq!(project.run(&["run", "adder_job", "-1", "3"]).ok().line(), "2");
}

#[test]
fn run_takes_a_file_and_needs_no_jobs_folder_nor_database() {
    let project = Project::empty();
    std::fs::remove_dir(project.jobs_dir()).unwrap();
    let adder = servers::guest("adder").display().to_string();
    assert_eq!(project.run(&["run", &adder, "1", "2", "3"]).ok().line(), "6");
    let _ = project.run(&["inspect", &adder]).ok();
    let _ = project.run(&["completions", "bash"]).ok();
}

#[test]
fn run_of_a_failing_job_exits_1_with_the_error_on_standard_error() {
    let project = Project::with_guests(&["outcomes"]);
    let output = project.run(&["run", "fail_permanent", "no way"]).exits(1);
    assert_eq!(output.stdout, "");
    output.is_a_sentence().says(&["no way"]);
}

#[test]
fn run_of_a_file_with_several_jobs_asks_which() {
    let project = Project::empty();
    let samples = servers::guest("samples").display().to_string();
    let output = project.run(&["run", &samples]);
    assert!(output.code == Some(1) || output.code == Some(2), "{output}");
    output.is_a_sentence().says(&["echo_job"]);
}

#[test]
fn jobs_lists_what_is_deployed() {
    let project = Project::with_guests(&["adder", "samples"]);
    let rows = project.run(&["jobs", "--output", "json"]).ok().json_lines();
    let row = rows.iter().find(|row| row.text("name") == "adder_job").unwrap();
    assert_eq!(row.text("queue"), "my_queue");
    assert_eq!(row.text("module"), "adder");
    assert!(rows.iter().any(|row| row.text("name") == "dummy_periodic_job"));
    assert!(project.run(&["jobs"]).ok().stdout.contains("adder_job"));
}

#[test]
fn inspect_tells_what_a_file_holds() {
    let project = Project::empty();
    let file = servers::guest("outcomes").display().to_string();
    let text = project.run(&["inspect", &file]).ok();
    assert!(text.stdout.contains("described") && text.stdout.contains("described_queue"), "{text}");
    let lines = project.run(&["inspect", &file, "--output", "json"]).ok().json_lines();
    let shown = format!("{lines:?}");
    assert!(shown.contains("described_queue") && shown.contains("sqjobs-sdk"), "{shown}");
}

#[test]
fn status_has_all_its_keys_and_says_when_a_job_is_unknown() {
    let project = Project::with_guests(&["adder"]);
    let id = project.run(&["add", "adder_job", "1"]).ok().line().to_owned();
    let row = project.run(&["status", &id, "--output", "json"]).ok().json();
    assert!(STATUS_KEYS.iter().all(|key| row.has(key)), "{row}");
    assert!(project.run(&["status", &id]).ok().stdout.contains("PENDING"));
    project.run(&["status", "unknown"]).exits(1).is_a_sentence().says(&["unknown"]);
}

#[test]
fn status_with_wait_returns_when_the_job_is_done() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let id = setup.add(&["counter"]);
    let _worker = setup.worker(&[]);
    let row = setup.run(&["status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(row.text("status"), "SUCCESS");
}

#[test]
fn completions_are_printed_for_each_shell() {
    let project = Project::empty();
    for shell in ["bash", "zsh", "fish"] {
        let output = project.run(&["completions", shell]).ok();
        assert!(output.stdout.contains("sqjobs-host"), "{shell}");
    }
    project.run(&["completions", "nonsense"]).exits(2).says(&["bash"]);
}

#[test]
fn all_faults_of_a_job_that_is_added_are_told_at_once() {
    let project = Project::with_guests(&["adder"]);
    let args = ["add", "a\nb", "--args-json", "{}", "--kwargs-json", "[]", "--id", "a#b"];
    let more = ["--queue", "no queue", "--delay", "soon"];
    let output = project.run(&[&args[..], &more].concat()).exits(2);
    output.says(&["--args-json", "--kwargs-json", "--id", "--queue", "--delay", "the job's name"]);
    let twice = ["add", "j", "--kwarg", "a", "--kwarg", "b=1", "--kwarg", "b=2"];
    project.run(&twice).exits(2).says(&["`a`", "`b` is given twice"]);
    assert!(!project.folder().join(".sqjobs").exists(), "nothing was opened");
}

#[test]
fn wrong_usage_exits_2_and_names_what_was_expected() {
    let project = Project::with_guests(&["adder"]);
    let long = "x".repeat(257);
    // Its dead-letter queue's name would be too long.
    let nearly = "q".repeat(78);
    let cases: &[(&[&str], &[&str])] = &[
        (&["nonsense"], &["nonsense"]),
        (&["worker"], &["queue"]),
        (&["add"], &["job"]),
        (&["add", "adder_job", "--kwarg", "no-equals-sign"], &["no-equals-sign"]),
        (&["add", "adder_job", "--args-json", "{}"], &["array"]),
        (&["add", "adder_job", "--args-json", "[1"], &["json"]),
        (&["add", "adder_job", "--kwargs-json", "[1]"], &["object"]),
        (&["worker", "q", "--concurrency", "many"], &["many"]),
        (&["worker", "q", "--concurrency", "0"], &["concurrency"]),
        (&["worker", "q", "--broker", "rabbit"], &["rabbit", "local", "sqs"]),
        (&["worker", "q", "--database", "mysql://x"], &["sqlite", "postgres"]),
        (&["worker", "q", "--log-level", "loud"], &["loud", "info"]),
        (&["list", "--limit", "-1"], &["limit"]),
        (&["list", "--status", "DONE"], &["SUCCESS"]),
        (&["worker", "q", "--config", "missing.toml"], &["missing.toml"]),
        (&["worker", "q", "--config", ""], &["--config"]),
        (&["worker", "q", "--data-dir", ""], &["--data-dir"]),
        (&["worker", "q", "--jobs-dir", ""], &["--jobs-dir"]),
        (&["worker", "q", "--grace", "-5s"], &["--grace", "-5s"]),
        (&["worker", ""], &["queue"]),
        (&["worker", "a b"], &["a b", "queue", "letters"]),
        (&["worker", "https://nowhere", "--broker", "sqs"], &["nowhere", "ACCOUNT/NAME"]),
        (&["add", ""], &["name", "empty"]),
        (&["add", "a\nb", "--queue", "q"], &["name", "control"]),
        (&["add", &long, "--queue", "q"], &["name", "257", "256"]),
        (&["add", "adder_job", "--id", ""], &["--id", "empty"]),
        (&["add", "adder_job", "--id", "a#b"], &["--id", "#"]),
        (&["add", "adder_job", "--id", "a\tb"], &["--id", "control"]),
        (&["add", "adder_job", "--id", &long], &["--id", "257", "256"]),
        (&["add", "adder_job", "--queue", ""], &["--queue"]),
        (&["add", "adder_job", "--queue", "a/b"], &["--queue", "a/b", "letters"]),
        (&["add", "adder_job", "--queue", &long], &["--queue", "80"]),
        (&["add", "adder_job", "--group", ""], &["--group", "128"]),
        (&["add", "adder_job", "--group", "a b"], &["--group", "128"]),
        (&["add", "adder_job", "--group", "año"], &["--group", "128"]),
        (&["add", "adder_job", "--kwarg", "=1"], &["--kwarg", "KEY=VALUE"]),
        (&["add", "adder_job", "--kwarg", "a=1", "--kwarg", "a=2"], &["--kwarg", "`a`", "twice"]),
        (&["add", "adder_job", "1", "--args-json", "[1]"], &["--args-json"]),
        (&["add", "adder_job", "--kwarg", "a=1", "--kwargs-json", "{}"], &["--kwargs-json"]),
        (&["add", "adder_job", "--args-json", "-1"], &["array", "number"]),
        (&["add", "adder_job", "--queue", "a", "--queue", "b"], &["--queue"]),
        (&["run", ""], &["name", "empty"]),
        (&["run", "adder_job", "--job", "x"], &["--job", "adder_job", "file"]),
        (&["run", "adder_job", "--id", ""], &["--id", "empty"]),
        (&["run", "adder_job", "--id", "a#b"], &["--id", "#"]),
        (&["run", "jobs/adder.wasm", "--job", ""], &["name", "empty"]),
        (&["status", ""], &["<ID>"]),
        (&["list", "--limit", "0"], &["limit"]),
        (&["list", "--limit", "99999999999999999999999"], &["limit"]),
        (&["list", "--job", ""], &["--job"]),
        (&["list", "--queue", ""], &["--queue"]),
        (&["list", "--since", "tomorrow"], &["--since", "2h"]),
        (&["list", "--error", ""], &["--error"]),
        (&["list", "--follow", "--after", "x"], &["--follow", "--after"]),
        (&["cancel"], &["ID", "--job", "--all"]),
        (&["cancel", ""], &["ID"]),
        (&["cancel", "x", "--all"], &["--all"]),
        (&["cancel", "--status", "success"], &["PENDING", "RUNNING", "RETRY"]),
        (&["queues"], &["list", "create", "pause", "purge"]),
        (&["queues", "create", "a/b"], &["letters"]),
        (&["queues", "create", &nearly], &["80"]),
        (&["queues", "pause", ""], &["letters"]),
        (&["worker", "q", "--keep", "-1d"], &["--keep", "-1d"]),
        (&["worker", "q", "--keep", "7"], &["--keep", "30s"]),
        (&["worker", "q", "--keep-count", "-1"], &["--keep-count"]),
        (&["worker", "q", "--listen", "localhost"], &["--listen", "127.0.0.1:9464"]),
        (&["dead", "list", "--kind", "bogus"], &["bogus", "malformed", "unknown-job", "lost"]),
        (&["dead", "list", "--limit", "-1"], &["limit"]),
        (&["dead", "show", ""], &["<ID>"]),
        (&["dead"], &["list", "show"]),
        (&["new", "fn"], &["fn", "fn-job"]),
        (&["new", "core"], &["core", "core-job"]),
        (&["new", ""], &["letter"]),
        (&["list", "--nonsense"], &["--nonsense"]),
    ];
    for (args, words) in cases {
        let output = project.run(args).exits(2);
        output.is_a_sentence().says(words);
        assert_eq!(output.stdout, "", "{output}");
    }
}

#[test]
fn help_and_version_are_data() {
    let project = Project::empty();
    let help = project.run(&["--help"]).ok();
    for command in [
        "worker",
        "add",
        "run",
        "status",
        "list",
        "cancel",
        "queues",
        "dead",
        "jobs",
        "inspect",
        "migrate",
        "new",
        "completions",
    ] {
        assert!(help.stdout.contains(command), "{command}");
        let _ = project.run(&[command, "--help"]).ok();
    }
    assert!(project.run(&["--version"]).ok().line().contains('.'));
}

#[test]
fn errors_are_one_sentence_with_a_remedy() {
    let project = Project::with_guests(&["adder"]);
    project.write("a-file", "");
    let cases: &[(&[&str], &[&str])] = &[
        (&["worker", "q", "--jobs-dir", "nowhere"], &["nowhere"]),
        (&["worker", "q", "--data-dir", "a-file"], &["a-file"]),
        (&["worker", "q", "--database", "sqlite:a-file/x.db"], &["a-file"]),
        (&["worker", "q", "--database", "postgres://nobody@127.0.0.1:1/none"], &["127.0.0.1"]),
        (&["inspect", "nowhere.wasm"], &["nowhere.wasm"]),
        (&["inspect", "a-file"], &["a-file"]),
        (&["run", "nowhere.wasm"], &["nowhere.wasm"]),
        (&["run", "nobody_knows"], &["nobody_knows"]),
    ];
    for (args, words) in cases {
        let output = project.run(args);
        assert!(output.code == Some(1) || output.code == Some(2), "{output}");
        output.is_a_sentence().says(words);
    }
}

#[test]
fn sqs_errors_say_what_to_do() {
    let mut project = Project::with_guests(&["adder"]);
    project.set("SQJOBS_BROKER", "sqs");
    project.set("AWS_EC2_METADATA_DISABLED", "true");
    project.run(&["worker", "q"]).exits(1).is_a_sentence().says(&["region"]);

    project.set("AWS_REGION", "us-east-1");
    project.set("AWS_ENDPOINT_URL", &servers::sqs_url());
    project.run(&["worker", "q"]).exits(1).is_a_sentence().says(&["credentials"]);

    for (name, value) in support::sqs::CREDENTIALS {
        project.set(name, value);
    }
    let missing = servers::unique("missing");
    project.run(&["worker", &missing]).exits(1).is_a_sentence().says(&[&missing, "does not exist"]);
    let add = project.run(&["add", "adder_job", "1", "--queue", &missing]).exits(1);
    add.is_a_sentence().says(&[&missing, "does not exist"]);

    project.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let nowhere = project.run(&["worker", "q"]).exits(1);
    nowhere.is_a_sentence().says(&["127.0.0.1:1", "check AWS_ENDPOINT_URL"]);
}

#[test]
fn a_password_is_never_shown() {
    let project = Project::with_guests(&["adder"]);
    let secret = "hunter2secret";
    let url = format!("postgres://somebody:{secret}@127.0.0.1:1/none");
    let by_query = format!("postgres://somebody@127.0.0.1:1/none?password={secret}");
    for url in [url, by_query, format!("postgres://somebody:{secret}@[bad")] {
        for command in
            [&["worker", "q"][..], &["list"], &["migrate"], &["add", "adder_job", "1"], &["--help"]]
        {
            let mut run = project.command(command);
            run.env("SQJOBS_DATABASE", &url).env("SQJOBS_LOG_LEVEL", "trace");
            let output = Output::of(run);
            assert!(!format!("{}{}", output.stdout, output.stderr).contains(secret), "{output}");
        }
        let flag = [&["list", "--database"], &[url.as_str()][..]].concat();
        let output = project.run(&flag);
        assert!(
            !format!("{}{}", output.stdout, output.stderr).contains(secret),
            "{}",
            output.stderr
        );
    }
}

#[test]
fn output_that_is_no_terminal_has_no_colour() {
    let project = Project::with_guests(&["adder"]);
    let id = project.run(&["add", "adder_job", "1"]).ok().line().to_owned();
    for args in
        [&["list"][..], &["status", &id], &["jobs"], &["--help"], &["run", "adder_job", "1"]]
    {
        let output = project.run(args).ok();
        assert!(!output.stdout.contains('\u{1b}') && !output.stderr.contains('\u{1b}'), "{output}");
    }
}

/// The project lies in an empty folder, far from our clone, and is built by plain cargo.
#[test]
fn new_makes_a_project_that_builds_and_runs() {
    let project = Project::empty();
    let _ = project.run(&["new", "hello_job"]).ok();
    let folder = project.folder().join("hello_job");
    assert!(folder.join("Cargo.toml").is_file());

    let target =
        std::path::PathBuf::from(servers::variable("SQJOBS_TEST_GUESTS")).join("../../new");
    for args in [&["build", "--release", "--target", "wasm32-wasip2"][..], &["test"]] {
        let mut cargo = Command::new("cargo");
        cargo.args(args).current_dir(&folder).env("CARGO_TARGET_DIR", &target);
        let _ = Output::of(cargo).ok();
    }
    let built = target.join("wasm32-wasip2/release/hello_job.wasm");
    assert!(built.is_file(), "no {}", built.display());
    let built = built.display().to_string();
    let jobs = project.run(&["inspect", &built, "--output", "json"]).ok();
    assert!(jobs.stdout.contains("hello_job"), "{jobs}");
    assert_eq!(project.run(&["run", &built, "1", "2", "3", "4"]).ok().line(), "10");

    project.run(&["new", "hello_job"]).exits(1).is_a_sentence().says(&["hello_job", "exists"]);
    let _ = project.run(&["new", "not/a name"]).exits(2);
}

#[test]
fn the_worker_s_log_in_json_is_an_object_a_line_and_never_holds_a_payload() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let id = setup.add(&["sleep_ms", "1", "--kwarg", "card=4111111111111111"]);
    let mut worker = setup.worker(&["--log-format", "json", "--log-level", "trace"]);
    let _ = setup.wait_for_status(&id, "SUCCESS");
    assert_eq!(worker.terminate(), Some(0));
    for line in worker.log() {
        let object: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(object.is_object(), "{line}");
        assert!(!line.contains("4111111111111111"), "{line}");
    }
    assert!(worker.log().iter().any(|line| line.contains(&id)), "{}", worker.shown());
}
