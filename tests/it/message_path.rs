//! A message in, a sandboxed component run, a result out: on every pair.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;
use sqjobs::client::{AddError, JobRequest};
use support::servers::RUNTIME;
use support::{Json, Pair, Setup, servers, wait};

/// Bodies as they lie in SQS, and what a worker does with each.
const SAMPLES: &str = include_str!("../fixtures/sample_bodies.json");

/// One body of the sample.
struct Case {
    name: String,
    body: String,
    expect: Value,
}

fn cases() -> Vec<Case> {
    let sample: Value = serde_json::from_str(SAMPLES).unwrap();
    let cases = sample["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 19);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let case = |case: &Value| Case {
        name: text(&case["case"]),
        body: text(&case["body"]),
        expect: case["expect"].clone(),
    };
    cases.iter().map(case).collect()
}

impl Case {
    fn becomes(&self, outcome: &str) -> bool {
        self.expect["outcome"] == outcome
    }

    /// The JSON text in the body.
    fn json(&self) -> String {
        if self.body.starts_with('{') {
            return self.body.clone();
        }
        let packed: String = self.body.split_ascii_whitespace().collect();
        String::from_utf8(STANDARD.decode(packed).unwrap()).unwrap()
    }

    /// The id that the job should get, given that of its message. All cases share one database,
    /// so the ids of the sample, which repeat, become the names of their cases.
    fn id(&self, message_id: &str) -> String {
        match self.expect["id"].as_str().unwrap() {
            "the MessageId" => message_id.to_owned(),
            _ => self.name.clone(),
        }
    }

    /// The same body in the same style, for a job that gives back what it got.
    fn for_echo_job(&self) -> String {
        let mut json = self.json();
        for old in ["00000000-0000-4000-8000-000000000001", "7c1e", "1"] {
            json = json.replace(&format!(r#""id": "{old}"#), &format!(r#""id": "{}"#, self.name));
        }
        json = json.replace(r#""adder""#, r#""echo_job""#);
        assert!(json.contains("echo_job") || self.becomes("unknown job"), "{json}");
        if self.body.starts_with('{') {
            return json;
        }
        let encoded = STANDARD.encode(json);
        if !self.body.contains('\n') {
            return encoded;
        }
        let lines: Vec<&str> =
            encoded.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
        lines.join("\n") + "\n"
    }

    /// Compares what the job got, as it gave it back, with what was sent.
    fn check(&self, row: &Json, id: &str) {
        let echoed = Json::parse(row.raw("result"));
        assert_eq!(echoed.text("id"), id, "{}: id", self.name);
        let json = self.json();
        let sent: HashMap<String, Box<RawValue>> = serde_json::from_str(&json).unwrap();
        for (key, empty) in [("args", "[]"), ("kwargs", "{}")] {
            let sent = sent.get(key).map_or("null", |text| text.get());
            let is_empty = sent == "null" || (key == "kwargs" && sent == "[]");
            let expected = if is_empty { empty } else { sent };
            assert_eq!(
                echoed.raw(key),
                expected,
                "{}: {key} are not the text that was sent",
                self.name
            );
            assert_eq!(echoed.value(key), self.expect[key], "{}: {key}", self.name);
        }
        assert_eq!(row.number("attempts"), 1, "{}", self.name);
    }
}

/// The JSON of a message in the usual encoding.
fn encoded(json: &str) -> String {
    STANDARD.encode(json)
}

on_every_pair! {
    /// Among them are malformed bodies and an unknown job; none of these costs another its run.
    fn bodies_that_are_jobs_are_run_with_what_was_sent(pair) {
        let setup = Setup::new(pair, &["samples"]);
        let mut sent = Vec::new();
        for case in cases() {
            let body = if case.becomes("run") { case.for_echo_job() } else { case.body.clone() };
            let message_id = setup.send_body(&body);
            sent.push((case, message_id));
        }
        let _worker = setup.worker(&[]);
        for (case, message_id) in sent.iter().filter(|(case, _)| case.becomes("run")) {
            let id = case.id(message_id);
            case.check(&setup.wait_for_status(&id, "SUCCESS"), &id);
        }
    }

    fn malformed_bodies_are_put_aside_with_their_exact_body_and_the_reason(pair) {
        let setup = Setup::new(pair, &["samples"]);
        let mut bodies: Vec<String> =
            cases().into_iter().filter(|case| case.becomes("malformed")).map(|case| case.body).collect();
        assert_eq!(bodies.len(), 4);
        bodies.extend([
            "//79".to_owned(),
            "!!! not base64 → \u{202e}".to_owned(),
            encoded(r#"{"id": "a", "args": []}"#),
            encoded(r#"{"id": "a", "name": 7}"#),
            encoded(r#"{"id": 7, "name": "echo_job"}"#),
            encoded(r#"{"id": "a", "name": "echo_job", "kwargs": [1]}"#),
            encoded(r#"{"id": "a", "name": "echo_job", "args": [1"#),
            encoded(r#"{"id": "a", "name": "echo_job", "args": [Infinity]}"#),
            encoded(&format!(r#"{{"id": "a", "name": "echo_job", "args": {}{}}}"#, "[".repeat(200), "]".repeat(200))),
            r#"{"id": "a", "name": "echo_job"} and more"#.to_owned(),
        ]);
        let messages: HashMap<String, String> =
            bodies.iter().map(|body| (setup.send_body(body), body.clone())).collect();
        let good = setup.add(&["echo_job"]);
        let _worker = setup.worker(&[]);

        let dead = setup.wait_for_dead(bodies.len());
        for entry in &dead {
            assert_eq!(entry.text("kind"), "malformed", "{entry}");
            assert_eq!(entry.text("queue"), setup.queue, "{entry}");
            let body = messages.get(&entry.text("id")).unwrap_or_else(|| panic!("no such message: {entry}"));
            assert_eq!(&entry.text("body"), body, "{entry}");
            assert!(!entry.text("reason").is_empty(), "{entry}");
            assert!(entry.text("received_at").ends_with('Z'), "{entry}");
            assert!(entry.has("job"), "{entry}");
        }
        let _ = setup.wait_for_status(&good, "SUCCESS");
        setup.wait_until_drained();
    }

    fn a_message_of_an_unknown_job_waits_for_its_module(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let body = encoded(r#"{"id": "early", "name": "echo_job", "args": [7], "kwargs": {}}"#);
        setup.send_body(&body);
        let mut before = setup.worker(&[]);
        before.wait_for_line(&["echo_job"]);
        wait::until_true("the message to be returned", || setup.depth()[0] == 0);
        assert_eq!(before.terminate(), Some(0));
        assert_eq!(setup.dead().len(), 0);

        setup.project.deploy("samples");
        let _after = setup.worker(&[]);
        let row = setup.wait_for_status("early", "SUCCESS");
        assert_eq!(Json::parse(row.raw("result")).raw("args"), "[7]");
        assert_eq!(row.number("attempts"), 1, "being unknown is no attempt");
    }

    fn a_redelivered_job_that_succeeded_is_not_run_again(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let body = encoded(r#"{"id": "twice", "name": "counter", "args": ["x"], "kwargs": {}}"#);
        setup.send_body(&body);
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_status("twice", "SUCCESS");
        setup.wait_until_drained();

        setup.send_body(&body);
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        let runs = worker.log().iter().filter(|line| line.contains("counted twice x")).count();
        assert_eq!(runs, 1, "{}", worker.shown());
        assert_eq!(setup.status("twice").unwrap().number("attempts"), 1);
        assert_eq!(setup.dead().len(), 0);
    }

    fn a_known_id_with_another_job_or_arguments_is_put_aside(pair) {
        let setup = Setup::new(pair, &["outcomes", "samples"]);
        let first = encoded(r#"{"id": "taken", "name": "counter", "args": ["x"], "kwargs": {}}"#);
        setup.send_body(&first);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status("taken", "SUCCESS");

        let others = [
            encoded(r#"{"id": "taken", "name": "counter", "args": ["y"], "kwargs": {}}"#),
            encoded(r#"{"id": "taken", "name": "echo_job", "args": ["x"], "kwargs": {}}"#),
        ];
        for body in &others {
            setup.send_body(body);
        }
        let dead = setup.wait_for_dead(2);
        for entry in &dead {
            assert_eq!(entry.text("kind"), "id-conflict", "{entry}");
            assert!(others.contains(&entry.text("body")), "{entry}");
        }
        assert_eq!(setup.status("taken").unwrap().text("status"), "SUCCESS");
        setup.wait_until_drained();
    }

    fn whitespace_between_the_arguments_of_a_known_id_is_no_other_call(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.send_body(&encoded(r#"{"id": "same", "name": "counter", "args": ["x"], "kwargs": {}}"#));
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status("same", "SUCCESS");
        setup.send_body(&encoded(r#"{"id":"same","name":"counter","args":[ "x" ],"kwargs":{}}"#));
        setup.wait_until_drained();
        assert_eq!(setup.dead().len(), 0);
    }

    fn arguments_and_results_keep_the_text_that_was_sent(pair) {
        let setup = Setup::new(pair, &["samples"]);
        let args = r#"[123456789012345678901234567890, 1.50, 1e400, -0.0, "\u00e9\/\u0000", "año → 🙂"]"#;
        let kwargs = r#"{"b": 1, "a": {"z": [ ], "y": null}}"#;
        let id = setup.add(&["echo_job", "--args-json", args, "--kwargs-json", kwargs]);
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        let echoed = Json::parse(row.raw("result"));
        assert_eq!(echoed.raw("args"), args);
        assert_eq!(echoed.raw("kwargs"), kwargs);
    }

    fn status_tells_what_is_known_of_a_job(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let id = setup.add(&["adder_job", "1", "2", "3", "4"]);
        let waiting = setup.status(&id).unwrap();
        assert_eq!(waiting.text("status"), "PENDING");
        assert_eq!(waiting.number("attempts"), 0);
        for key in ["result", "error", "module_digest", "schedule", "fire_time", "started_at", "finished_at", "duration_ms"] {
            assert_eq!(waiting.raw(key), "null", "{key}");
        }

        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.text("id"), id);
        assert_eq!(row.text("name"), "adder_job");
        assert_eq!(row.text("queue"), setup.queue);
        assert_eq!(row.raw("result"), "10");
        assert_eq!(row.raw("error"), "null");
        assert_eq!(row.number("attempts"), 1);
        assert_eq!(row.text("module_digest"), sha256_hex(&std::fs::read(servers::guest("adder")).unwrap()));
        let times = ["created_at", "started_at", "finished_at"].map(|key| row.text(key));
        assert!(times.is_sorted(), "{times:?}");
        assert!(times.iter().all(|time| time.len() >= 20 && time.ends_with('Z')), "{times:?}");
        let _ = row.number("duration_ms");
    }

    /// SQS takes 1 MiB, of which base64 leaves 786,432 bytes of JSON; a producer that does without
    /// has more room.
    fn jobs_up_to_the_queues_own_limit_are_run_and_larger_ones_are_refused(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _ = setup.run(&["migrate"]).ok();
        let client = setup.client(&servers::sqs_url());
        let add = |bytes: usize| {
            let request = JobRequest::new("counter").queue(&setup.queue);
            let request = request.args(&["x".repeat(bytes)]).unwrap();
            RUNTIME.block_on(client.add(request))
        };
        let error = add(1 << 20).unwrap_err();
        let AddError::TooLarge { size, limit, .. } = &error else { panic!("{error}") };
        assert!(size > limit && error.to_string().contains(&limit.to_string()), "{error}");

        // What surrounds the argument: names, the id, a time.
        let around = 1024;
        assert!(matches!(add(limit / 4 * 3), Err(AddError::TooLarge { .. })));
        let id = add(limit / 4 * 3 - around).unwrap().id;
        let large = "x".repeat(limit - around);
        setup.send_body(&format!(r#"{{"id": "large", "name": "counter", "args": ["{large}"]}}"#));
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&id, "SUCCESS");
        let _ = setup.wait_for_status("large", "SUCCESS");
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
    }

    fn many_messages_are_run_once_each(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids: Vec<String> = (0..60).map(|number| format!("job-{number}")).collect();
        for id in &ids {
            setup.send_body(&encoded(&format!(r#"{{"id": "{id}", "name": "counter", "args": ["."]}}"#)));
        }
        let mut worker = setup.worker(&["--concurrency", "8"]);
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        for id in &ids {
            let mark = format!("counted {id} .");
            assert_eq!(worker.log().iter().filter(|line| line.contains(&mark)).count(), 1, "{id}");
        }
        let rows = setup.run(&["list", "--job", "counter", "--output", "json"]).ok().json_lines();
        assert_eq!(rows.len(), ids.len());
        assert!(rows.iter().all(|row| row.text("status") == "SUCCESS"), "{rows:?}");
    }

    fn a_job_that_records_nothing_leaves_no_row_when_it_succeeds(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.send_body(&encoded(r#"{"id": "good", "name": "unrecorded", "args": [false]}"#));
        setup.send_body(&encoded(r#"{"id": "bad", "name": "unrecorded", "args": [true]}"#));
        let _worker = setup.worker(&[]);
        let bad = setup.wait_for_status("bad", "FAILURE");
        assert!(bad.text("error").contains("failed unrecorded"), "{bad}");
        setup.wait_until_drained();
        assert!(setup.status("good").is_none());
        let dead = setup.wait_for_dead(1);
        assert_eq!(dead[0].text("job"), "unrecorded");
    }

    fn the_operator_overrides_whether_a_job_records(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[jobs.counter]\nrecord = false\n[jobs.unrecorded]\nrecord = true\n");
        setup.send_body(&encoded(r#"{"id": "a", "name": "counter"}"#));
        setup.send_body(&encoded(r#"{"id": "b", "name": "unrecorded", "args": [false]}"#));
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status("b", "SUCCESS");
        assert_eq!(row.raw("result"), r#""never seen""#);
        setup.wait_until_drained();
        assert!(setup.status("a").is_none());
    }

    /// `record = false` drops only the result of a job that we added: its row is the fence.
    fn an_added_job_that_records_nothing_has_a_row_without_a_result(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["unrecorded", "false"]);
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.raw("result"), "null");
    }

    fn a_child_that_records_nothing_has_a_row_without_a_result(pair) {
        let setup = Setup::new(pair, &["outcomes", "samples"]);
        setup.project.write("sqjobs.toml", "[jobs.echo_job]\nrecord = false\n");
        let parent = setup.add(&["add_children", "1", "--kwarg", "name=echo_job"]);
        let _worker = setup.worker(&[]);
        let parent = setup.wait_for_status(&parent, "SUCCESS");
        let children: Vec<String> = serde_json::from_str(parent.raw("result")).unwrap();
        let row = setup.wait_for_status(&children[0], "SUCCESS");
        assert_eq!(row.raw("result"), "null");
    }

    fn a_result_or_error_with_a_nul_harms_its_own_job_at_most(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let result = setup.add(&["nul_result"]);
        let error = setup.add(&["nul_error"]);
        let other = setup.add(&["counter"]);
        let mut worker = setup.worker(&[]);
        assert_eq!(setup.wait_for_status(&result, "SUCCESS").raw("result"), r#""before\u0000after""#);
        let error = setup.wait_for_status(&error, "FAILURE");
        assert!(error.text("error").contains("before"), "{error}");
        let _ = setup.wait_for_status(&other, "SUCCESS");
        assert!(worker.is_running());
    }

    fn the_view_job_status_shows_what_status_prints(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let id = setup.add(&["adder_job", "1", "2"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&id, "SUCCESS");
        let view = setup.table("job_status");
        let columns = "job_id || ' ' || job_name || ' ' || status || ' ' || result";
        let shown: String = setup.query(&format!("SELECT {columns} FROM {view} WHERE job_id = '{id}'"));
        assert_eq!(shown, format!("{id} adder_job SUCCESS 3"));
        let unset: i64 = setup.query(&format!(
            "SELECT CAST(count(*) AS bigint) FROM {view} \
             WHERE traceback IS NULL AND created_at IS NOT NULL AND updated_at IS NOT NULL"
        ));
        assert_eq!(unset, 1);
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows of the embedded queue that somebody edited by hand to what can't be read.
#[test]
fn a_message_that_was_edited_to_nonsense_harms_itself_only() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let ids: Vec<String> = (0..6).map(|_| setup.add(&["counter"])).collect();
    for (row, change) in [
        "attributes = 'no JSON'",
        "attributes = '{\"sqjobs-tracked\": 1}'",
        "sent_at = 'yesterday', receive_count = 'often', received_at = 'never', receipt = x'ff'",
        "visible_at = 'soon'",
        "body = x'ff00', message_group = x'ff', message_id = x'6dff'",
    ]
    .iter()
    .enumerate()
    {
        let at = format!("(SELECT min(seq) + {row} FROM sqjobs_messages)");
        setup.execute(&format!("UPDATE sqjobs_messages SET {change} WHERE seq = {at}"));
    }
    let mut worker = setup.worker(&[]);
    for id in [&ids[..4], &ids[5..]].concat() {
        let _ = setup.wait_for_status(&id, "SUCCESS");
    }
    let dead = setup.wait_for_dead(1).remove(0);
    assert_eq!(dead.text("kind"), "malformed");
    assert_eq!(dead.text("body"), "\u{fffd}\0");
    setup.wait_until_drained();
    worker.wait_for_line(&["WARN", "attributes"]);
    assert_eq!(worker.terminate(), Some(0));
}
