//! `periodic next`: the ticks of a schedule, without database, queue or module.

use serde_json::Value;
use support::Project;

const VECTORS: &str = include_str!("../fixtures/cron_vectors.json");

fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

#[test]
fn every_vector_is_printed_line_by_line() {
    let project = Project::empty();
    for case in vectors()["cases"].as_array().unwrap() {
        let (expression, zone) = (text(case, "expr"), text(case, "tz"));
        let after = text(case, "after");
        let args =
            ["periodic", "next", expression, "--timezone", zone, "--after", after, "--count", "5"];
        let ticks: Vec<&str> =
            case["next"].as_array().unwrap().iter().map(|tick| tick.as_str().unwrap()).collect();
        let output = project.run(&args).ok();
        assert_eq!(output.stdout.lines().collect::<Vec<_>>(), ticks, "{case}");
        let output = project.run(&[&args[..], &["--output", "json"]].concat()).ok();
        let printed: Vec<Value> =
            output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(printed, ticks, "{case}");
    }
    assert!(!project.folder().join(".sqjobs").exists(), "no database is made");
}

#[test]
fn a_rejected_expression_is_wrong_usage_with_the_reason_and_prints_nothing() {
    let project = Project::empty();
    for case in vectors()["invalid"].as_array().unwrap() {
        let args = ["periodic", "next", text(case, "expr"), "--timezone", "UTC"];
        let output = project.run(&args).exits(2);
        output.is_a_sentence();
        assert_eq!(output.stdout, "", "{case}");
    }
    let output = project.run(&["periodic", "next", "-5 * * * *", "--timezone", "UTC"]).exits(2);
    output.says(&["minute", "0-59"]);
}

#[test]
fn an_unknown_zone_is_wrong_usage_with_the_nearest_names() {
    let project = Project::empty();
    let args = ["periodic", "next", "0 0 * * *", "--timezone"];
    let output = project.run(&[&args[..], &["Europe/Madird"]].concat()).exits(2);
    output.is_a_sentence().says(&["Europe/Madrid"]);
    let output = project.run(&["periodic", "next", "0 0 * * *"]).exits(2);
    output.says(&["--timezone"]);
}

#[test]
fn an_interval_is_aligned_to_1970() {
    let project = Project::empty();
    let args = ["periodic", "next", "--every", "90s", "--after", "1970-01-01T00:01:00Z"];
    let output = project.run(&[&args[..], &["--count", "2"]].concat()).ok();
    assert_eq!(output.stdout, "1970-01-01T00:01:30Z\n1970-01-01T00:03:00Z\n");
    for wrong in ["0s", "900ms", "soon", "-5s", "9999999d"] {
        let every = format!("--every={wrong}");
        project.run(&["periodic", "next", &every]).exits(2).is_a_sentence();
    }
}

#[test]
fn a_count_or_an_instant_that_is_none_is_wrong_usage() {
    let project = Project::empty();
    for wrong in [["--count", "0"], ["--count", "-1"], ["--count", "x"], ["--after", "tomorrow"]] {
        let args = ["periodic", "next", "0 0 * * *", "--timezone", "UTC"];
        let _ = project.run(&[&args[..], &wrong].concat()).exits(2);
    }
}
