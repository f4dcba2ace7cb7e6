//! The producers and the worker of 2014 keep working: the real Python library, PHP's own
//! encoders, and a real SQS server between them and us.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::{Json, Output, Pair, Setup, servers};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn python(script: &str, args: &[&str]) -> Output {
    let mut command = Command::new(servers::old_python());
    command.arg(fixture(script)).args(args);
    Output::of(command).ok()
}

fn what_the_python_library_adds_is_run_by_our_worker(pair: Pair) {
    let setup = Setup::new(pair, &["adder", "samples"]);
    let added = python("produce.py", &[&servers::sqs_url(), &setup.queue]);
    let ids: Vec<&str> = added.stdout.lines().collect();
    let _worker = setup.worker(&[]);
    assert_eq!(setup.wait_for_status(ids[0], "SUCCESS").raw("result"), "10");
    let echoed = Json::parse(setup.wait_for_status(ids[1], "SUCCESS").raw("result"));
    assert_eq!(echoed.text("id"), ids[1]);
    assert!(echoed.raw("args").starts_with("[1180591620717411303424, "), "{echoed}");
    assert_eq!(echoed.value("args")[1], "año → 日本語");
    assert_eq!(echoed.value("kwargs"), json!({"when": "2016-02-29 23:59:58"}));
    setup.wait_until_drained();
}

#[test]
fn what_the_python_library_adds_is_run_on_sqlite() {
    what_the_python_library_adds_is_run_by_our_worker(Pair::SqliteSqs);
}

#[test]
fn what_the_python_library_adds_is_run_on_postgres() {
    what_the_python_library_adds_is_run_by_our_worker(Pair::PostgresSqs);
}

#[test]
fn what_php_encodes_is_run_under_the_id_of_its_message() {
    let setup = Setup::new(Pair::SqliteSqs, &["adder", "samples"]);
    let mut php = Command::new(servers::php());
    php.arg(fixture("produce.php"));
    let bodies = Output::of(php).ok();
    let ids: Vec<String> = bodies.stdout.lines().map(|body| setup.send_body(body)).collect();
    assert_eq!(ids.len(), 3);
    let _worker = setup.worker(&[]);
    let rows: Vec<Json> = ids.iter().map(|id| setup.wait_for_status(id, "SUCCESS")).collect();
    assert_eq!((rows[0].raw("result"), rows[1].raw("result")), ("10", "11"));
    let echoed = Json::parse(rows[2].raw("result"));
    assert_eq!(echoed.text("id"), ids[2]);
    assert!(echoed.raw("args").contains(r"a\/b"), "the text is kept as sent: {echoed}");
    assert_eq!(echoed.value("args"), json!(["a/b", "año → 🙂", 1.5, null]));
    assert_eq!(echoed.value("kwargs"), json!({"key": {"nested": []}}));
    setup.wait_until_drained();
}

#[test]
fn what_our_add_sends_is_run_by_the_python_worker() {
    let setup = Setup::new(Pair::PostgresSqs, &["adder"]);
    let first = setup.add(&["adder_job", "1", "2", "3", "4"]);
    let second = setup.add(&["adder_job", "5", "--kwarg", "name=año"]);
    let output = python("work.py", &[&servers::sqs_url(), &setup.queue, "2"]);
    let seen = output.json_lines();
    let of = |id: &str| seen.iter().find(|seen| seen.text("id") == id).unwrap();
    assert_eq!(of(&first).number("sum"), 10);
    assert_eq!(of(&first).value("kwargs"), json!({}));
    assert_eq!(of(&second).value("kwargs"), json!({"name": "año"}));
    setup.wait_until_drained();
}
