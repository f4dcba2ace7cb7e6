//! The life of an attempt, row by row of the table at [`Job`], and what a test sees of it.

use std::collections::BTreeMap;

use super::*;
use crate::{NewJob, add_job, progress};

/// Fails, or panics, in the stages that its `fail` and `panic` arguments name.
#[derive(Default)]
struct Fragile {
    kept: u32,
}

impl Fragile {
    fn stage(&mut self, name: &str, call: &Call) -> Result<()> {
        ::log::info!(kept = self.kept; "{name}");
        self.kept += 1;
        let is_in = |list: Option<Vec<String>>| list.unwrap_or_default().iter().any(|s| s == name);
        if is_in(call.kwarg("panic")?) {
            panic!("panic in {name}");
        }
        if is_in(call.kwarg("fail")?) {
            return Err(Failure::transient(format!("fault in {name}")));
        }
        Ok(())
    }
}

impl Job for Fragile {
    const NAME: &str = "fragile";
    const QUEUE: Option<&str> = Some("queue");

    fn set_up(&mut self, call: &Call) -> Result<()> {
        self.stage("set_up", call)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        add_job(NewJob::new("later").arg(call.attempt()))?;
        add_job(NewJob::of::<Fragile>().kwarg("a", 1).at_once())?;
        self.stage("run", call)?;
        Ok("done")
    }

    fn tear_down(&mut self, call: &Call) -> Result<()> {
        self.stage("tear_down", call)
    }

    fn on_success(&mut self, call: &Call, result: Option<&str>) -> Result<()> {
        assert_eq!(result, Some("\"done\""));
        self.stage("on_success", call)
    }

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        ::log::warn!("{}, again in {:?}", report.message(), report.retry_in());
        self.stage("on_failure", call)
    }
}

fn stages(outcome: &Outcome) -> String {
    let stages: Vec<_> = outcome.stages().iter().map(|stage| format!("{stage:?}")).collect();
    stages.join(" ")
}

fn kept(outcome: &Outcome) -> Vec<&str> {
    outcome
        .log_lines()
        .iter()
        .flat_map(|line| &line.fields)
        .map(|(_, value)| value.as_str())
        .collect()
}

#[test]
fn a_good_attempt_goes_through_all_stages_in_one_instance() {
    let outcome = attempt::<Fragile>().run();
    assert_eq!(outcome.result::<String>(), "done");
    assert_eq!(outcome.result_json(), Some("\"done\""));
    assert_eq!(stages(&outcome), "SetUp Run TearDown OnSuccess");
    assert_eq!(outcome.log_text(), "set_up\nrun\ntear_down\non_success");
    assert_eq!(kept(&outcome), ["0", "1", "2", "3"]);
    assert_eq!(outcome.failure(), None);
}

#[test]
fn after_a_failed_set_up_only_on_failure_is_called() {
    let outcome = attempt::<Fragile>().kwarg("fail", ["set_up"]).run();
    assert_eq!(stages(&outcome), "SetUp OnFailure");
    assert_eq!(kept(&outcome), ["0", "1"], "in the same instance");
    let report = outcome.failure().unwrap();
    assert_eq!((report.stage(), report.message()), (Stage::SetUp, "fault in set_up"));
    assert_eq!(report.retry_in(), Some(DEFAULT_WAIT));
}

#[test]
fn after_a_failed_run_tear_down_is_called() {
    let outcome = attempt::<Fragile>().kwarg("fail", ["run"]).run();
    assert_eq!(stages(&outcome), "SetUp Run TearDown OnFailure");
    assert_eq!(outcome.failure_message(), "fault in run");
}

#[test]
fn a_failed_tear_down_fails_a_good_run() {
    let outcome = attempt::<Fragile>().kwarg("fail", ["tear_down"]).run();
    assert_eq!(stages(&outcome), "SetUp Run TearDown OnFailure");
    assert_eq!(outcome.failure().unwrap().stage(), Stage::TearDown);
}

#[test]
fn when_run_and_tear_down_fail_the_failure_of_run_stands() {
    let outcome = attempt::<Fragile>().kwarg("fail", ["run", "tear_down", "on_failure"]).run();
    assert_eq!(outcome.failure().unwrap().stage(), Stage::Run);
    assert_eq!(outcome.warnings(), ["fault in tear_down", "fault in on_failure"]);
}

#[test]
fn a_failed_on_success_is_a_warning() {
    let outcome = attempt::<Fragile>().kwarg("fail", ["on_success"]).run();
    assert!(outcome.is_success());
    assert_eq!(outcome.warnings(), ["fault in on_success"]);
}

#[test]
fn after_a_panic_on_failure_runs_in_a_fresh_instance() {
    for (stage, called) in [
        ("set_up", "SetUp OnFailure"),
        ("run", "SetUp Run OnFailure"),
        ("tear_down", "SetUp Run TearDown OnFailure"),
    ] {
        let outcome = attempt::<Fragile>().kwarg("panic", [stage]).run();
        assert_eq!(stages(&outcome), called);
        assert_eq!(outcome.failure().unwrap().cause(), &FailureCause::Trap);
        assert_eq!(outcome.failure_message(), format!("panic in {stage}"));
        assert_eq!(kept(&outcome).last(), Some(&"0"), "{stage}");
    }
    let outcome = attempt::<Fragile>().kwarg("panic", ["on_success"]).run();
    assert!(outcome.is_success(), "the outcome stands");
}

#[test]
fn a_job_that_can_not_be_made_fails_and_does_not_end_the_test() {
    struct Stillborn;
    impl Default for Stillborn {
        fn default() -> Self {
            panic!("no")
        }
    }
    impl Job for Stillborn {
        const NAME: &str = "stillborn";
        fn run(&mut self, _: &Call) -> Result<impl Serialize> {
            Ok(())
        }
    }
    let outcome = attempt::<Stillborn>().run();
    assert_eq!(outcome.failure_message(), "no");
    assert_eq!(stages(&outcome), "SetUp OnFailure");
}

#[test]
fn an_attempt_that_fails_adds_only_what_is_sent_at_once() {
    let names = |outcome: &Outcome| -> Vec<_> {
        outcome.added_jobs().iter().map(|job| job.name.clone()).collect()
    };
    let outcome = attempt::<Fragile>().attempt(2).run();
    assert_eq!(names(&outcome), ["later", "fragile"]);
    assert_eq!(outcome.added_jobs()[0].args, "[2]");
    assert_eq!(outcome.added_jobs()[0].queue, None);
    assert_eq!(outcome.added_jobs()[1].kwargs, "{\"a\":1}");
    assert_eq!(outcome.added_jobs()[1].queue.as_deref(), Some("queue"));
    let outcome = attempt::<Fragile>().kwarg("fail", ["run"]).run();
    assert_eq!(names(&outcome), ["fragile"]);
}

#[test]
fn the_last_attempt_is_not_repeated() {
    let run = |attempt: u32| super::attempt::<Fragile>().kwarg("fail", ["run"]).attempt(attempt);
    assert_eq!(run(4).run().failure().unwrap().retry_in(), Some(DEFAULT_WAIT));
    assert_eq!(run(5).run().failure().unwrap().retry_in(), None);
    assert_eq!(run(5).max_attempts(6).run().failure().unwrap().retry_in(), Some(DEFAULT_WAIT));
}

/// Returns what its argument names.
#[derive(Default)]
struct Returns;

impl Job for Returns {
    const NAME: &str = "returns";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        progress(f64::NAN, "never seen");
        progress(7.0, None);
        Ok(match call.arg::<&str>(0)? {
            "none" => Err(None),
            "map" => Err(Some(BTreeMap::from([(vec![1], 1)]))),
            _ => Ok(call.arg::<&RawValue>(1)?),
        }
        .map_or_else(Either::Other, Either::Raw))
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Either<'a> {
    Raw(&'a RawValue),
    Other(Option<BTreeMap<Vec<u8>, u8>>),
}

#[derive(Default)]
struct Silent;

impl Job for Silent {
    const NAME: &str = "silent";

    fn run(&mut self, _: &Call) -> Result<impl Serialize> {
        Ok(())
    }
}

#[test]
fn nothing_is_no_result_and_none_is_null() {
    assert_eq!(attempt::<Silent>().run().result_json(), None);
    assert_eq!(attempt::<Returns>().arg("none").run().result_json(), Some("null"));
    attempt::<Silent>().run().result::<()>();
}

#[test]
fn a_result_that_is_not_json_is_a_permanent_failure() {
    let outcome = attempt::<Returns>().arg("map").run();
    assert!(outcome.is_permanent());
    assert_eq!(outcome.failure_message(), "the result is not JSON: key must be a string");
}

#[test]
fn text_passes_through_as_it_was_sent() {
    let outcome = attempt::<Returns>().args_json("[\"\", {\"b\": 1.50, \"a\" : 2}]").run();
    assert_eq!(outcome.result_json(), Some("{\"b\": 1.50, \"a\" : 2}"));
    assert_eq!(outcome.progress(), [(1.0, None)]);
}
