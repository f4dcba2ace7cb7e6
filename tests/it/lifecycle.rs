//! The life of one attempt: each row of the design's table, on a worker of every pair and in an
//! eager run. Each row's job tells its stages by log lines.

use serde_json::Value;
use support::{Json, Project, Setup};

/// What one row promises. The rule is its name in a failure's message.
struct Row {
    rule: &'static str,
    job: &'static [&'static str],
    /// Stages of the first attempt, in order, as the guest logs them.
    stages: &'static [&'static str],
    /// The job's status after that attempt; a RETRY may have become a FAILURE by then.
    status: &'static str,
    /// What the stored error says.
    error: Option<&'static str>,
    /// What is logged as a warning beside the outcome.
    warning: Option<&'static str>,
}

const ROWS: &[Row] = &[
    Row {
        rule: "a good attempt passes all stages in order",
        job: &["fail_in"],
        stages: &["set-up", "run", "tear-down", "on-success"],
        status: "SUCCESS",
        error: None,
        warning: None,
    },
    Row {
        rule: "a failing set-up skips run and tear-down",
        job: &["fail_in", "set-up", "--kwarg", "permanent=true"],
        stages: &["set-up", "on-failure"],
        status: "FAILURE",
        error: Some("fault in set-up"),
        warning: None,
    },
    Row {
        rule: "a failing run is followed by tear-down",
        job: &["fail_in", "run", "--kwarg", "permanent=true"],
        stages: &["set-up", "run", "tear-down", "on-failure"],
        status: "FAILURE",
        error: Some("fault in run"),
        warning: None,
    },
    Row {
        rule: "a tear-down that fails after a good run fails the attempt",
        job: &["fail_in", "tear-down", "--kwarg", "permanent=true"],
        stages: &["set-up", "run", "tear-down", "on-failure"],
        status: "FAILURE",
        error: Some("fault in tear-down"),
        warning: None,
    },
    Row {
        rule: "of two failures run's stands and tear-down's is a warning",
        job: &["fail_in", "run", "tear-down", "--kwarg", "permanent=true"],
        stages: &["set-up", "run", "tear-down", "on-failure"],
        status: "FAILURE",
        error: Some("fault in run"),
        warning: Some("fault in tear-down"),
    },
    Row {
        rule: "a tear-down that hangs after a failing run is stopped, and run's failure stands",
        job: &["fail_in", "run", "--kwarg", "permanent=true", "--kwarg", "hang_in=tear-down"],
        stages: &["set-up", "run", "tear-down", "on-failure"],
        status: "FAILURE",
        error: Some("fault in run"),
        warning: Some("tear-down"),
    },
    Row {
        rule: "an on-success that hangs is a warning and the success stands",
        job: &["fail_in", "--kwarg", "hang_in=on-success"],
        stages: &["set-up", "run", "tear-down", "on-success"],
        status: "SUCCESS",
        error: None,
        warning: Some("on-success"),
    },
    Row {
        rule: "a failing on-success is a warning and the success stands",
        job: &["fail_in", "on-success"],
        stages: &["set-up", "run", "tear-down", "on-success"],
        status: "SUCCESS",
        error: None,
        warning: Some("fault in on-success"),
    },
    Row {
        rule: "a failing on-failure is a warning and the failure stands",
        job: &["fail_in", "run", "on-failure", "--kwarg", "permanent=true"],
        stages: &["set-up", "run", "tear-down", "on-failure"],
        status: "FAILURE",
        error: Some("fault in run"),
        warning: Some("fault in on-failure"),
    },
    Row {
        rule: "a trap in set-up ends the instance and on-failure gets a fresh one",
        job: &["trap_in", "set-up"],
        stages: &["set-up", "Trap in SetUp, attempt 1", "on-failure"],
        status: "RETRY",
        error: Some("unreachable"),
        warning: None,
    },
    Row {
        rule: "a trap in run skips tear-down",
        job: &["trap_in", "run"],
        stages: &["set-up", "run", "Trap in Run, attempt 1", "on-failure"],
        status: "RETRY",
        error: Some("unreachable"),
        warning: None,
    },
    Row {
        rule: "a trap in tear-down fails the attempt",
        job: &["trap_in", "tear-down"],
        stages: &["set-up", "run", "tear-down", "Trap in TearDown, attempt 1", "on-failure"],
        status: "RETRY",
        error: Some("unreachable"),
        warning: None,
    },
    Row {
        rule: "a trap in on-success is a warning and the success stands",
        job: &["trap_in", "on-success"],
        stages: &["set-up", "run", "tear-down"],
        status: "SUCCESS",
        error: None,
        warning: Some("on-success"),
    },
    Row {
        rule: "a trap in on-failure is a warning and the failure stands",
        job: &["trap_in", "run", "on-failure"],
        stages: &["set-up", "run", "Trap in Run, attempt 1", "on-failure"],
        status: "RETRY",
        error: Some("unreachable"),
        warning: Some("on-failure"),
    },
    Row {
        rule: "a panic fails the attempt with the message of the panic",
        job: &["panic_job", "boom"],
        stages: &[],
        status: "RETRY",
        error: Some("boom"),
        warning: None,
    },
    Row {
        rule: "leaving by exit code 0 is no success",
        job: &["exit", "0"],
        stages: &[],
        status: "RETRY",
        error: Some("exit"),
        warning: None,
    },
    Row {
        rule: "an attempt past its timeout ends, and the last one is a failure for good",
        job: &["hurried"],
        stages: &[],
        status: "FAILURE",
        error: Some("300"),
        warning: None,
    },
    Row {
        rule: "an attempt blocked in a host call ends at its timeout too",
        job: &["sleep_ms", "600000"],
        stages: &["sleeping for 600000 ms"],
        status: "RETRY",
        error: Some("700"),
        warning: None,
    },
    Row {
        rule: "an attempt that wants too much memory fails and on-failure is told so",
        job: &["allocate", "2000000000"],
        stages: &["told of OutOfMemory in Run"],
        status: "RETRY",
        error: Some("memory"),
        warning: None,
    },
    Row {
        rule: "a transient failure comes again",
        job: &["fail_transient"],
        stages: &[],
        status: "RETRY",
        error: Some("the line is busy"),
        warning: None,
    },
    Row {
        rule: "retry-after comes again",
        job: &["fail_retry_after", "3600"],
        stages: &[],
        status: "RETRY",
        error: Some("come back later"),
        warning: None,
    },
    Row {
        rule: "a permanent failure is one for good",
        job: &["fail_permanent"],
        stages: &[],
        status: "FAILURE",
        error: Some("there is no such number"),
        warning: None,
    },
    Row {
        rule: "a result that is not JSON is a permanent failure",
        job: &["bad_result"],
        stages: &[],
        status: "FAILURE",
        error: Some("JSON"),
        warning: None,
    },
    Row {
        rule: "a result over the limit is a permanent failure that names the limit",
        job: &["big_result", "2000000"],
        stages: &[],
        status: "FAILURE",
        error: Some("1048576"),
        warning: None,
    },
];

/// Settings under which a job that sleeps is stopped soon.
const SETTINGS: &str =
    "[jobs.sleep_ms]\ntimeout = \"700ms\"\n[jobs.fail_in]\ntimeout = \"900ms\"\n";

/// What a guest logged in the first attempt of a job, and warnings of the host about it.
struct Told {
    stages: Vec<String>,
    warnings: Vec<String>,
}

/// Reads JSON log lines; of one job where an id is given.
fn told(lines: &[String], id: Option<&str>) -> Told {
    let mut told = Told { stages: Vec::new(), warnings: Vec::new() };
    for line in lines {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let field = |name: &str| {
            let fields = &line["fields"];
            if fields[name].is_null() { line[name].clone() } else { fields[name].clone() }
        };
        if id.is_some_and(|id| field("job.id") != id) {
            continue;
        }
        let message = field("message").as_str().unwrap_or_default().to_owned();
        if !field("guest.target").is_null() {
            if field("attempt") == 1 {
                told.stages.push(
                    message.split_once(": ").map_or(message.clone(), |(_, text)| text.to_owned()),
                );
            }
        } else if line["level"] == "WARN" {
            told.warnings.push(line.to_string());
        }
    }
    told
}

impl Row {
    /// What of the row does not hold, if anything.
    fn broken(&self, status: &str, error: &str, told: &Told) -> Option<String> {
        let Told { stages, warnings } = told;
        let mut faults = Vec::new();
        let is_status = status == self.status || (self.status == "RETRY" && status == "RUNNING");
        if !is_status {
            faults.push(format!("status is {status} instead of {}", self.status));
        }
        if let Some(word) = self.error.filter(|word| !error.contains(word)) {
            faults.push(format!("`{word}` is not in the error `{error}`"));
        }
        let are_stages = self.stages.is_empty()
            || (stages.len() >= self.stages.len()
                && self
                    .stages
                    .iter()
                    .zip(stages)
                    .all(|(expected, stage)| stage.starts_with(expected))
                && !stages[self.stages.len()..]
                    .iter()
                    .any(|stage| ["run", "tear-down"].contains(&stage.as_str())));
        if !are_stages {
            faults.push(format!("the stages are {stages:?} instead of {:?}", self.stages));
        }
        if let Some(word) =
            self.warning.filter(|word| !warnings.iter().any(|line| line.contains(word)))
        {
            faults.push(format!("`{word}` is in none of the warnings {warnings:?}"));
        }
        (!faults.is_empty()).then(|| format!("{}: {}", self.rule, faults.join("; ")))
    }
}

on_every_pair! {
    fn each_row_of_the_table_holds_on_a_worker(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", SETTINGS);
        let ids: Vec<String> = ROWS.iter().map(|row| setup.add(row.job)).collect();
        let mut worker = setup.worker(&["--log-format", "json"]);
        let done = |row: &Json| !["PENDING", "RUNNING"].contains(&row.text("status").as_str());
        let ends: Vec<Json> =
            ids.iter().map(|id| setup.wait_for_row(id, "the end of an attempt", done)).collect();
        // Warnings are logged when the attempt is settled.
        assert_eq!(worker.terminate(), Some(0));
        let log = worker.log();
        let broken: Vec<String> = ROWS
            .iter()
            .zip(ids.iter().zip(&ends))
            .filter_map(|(row, (id, end))| {
                let error = end.value("error");
                row.broken(&end.text("status"), error.as_str().unwrap_or_default(), &told(&log, Some(id)))
            })
            .collect();
        assert!(broken.is_empty(), "{}\n{}", broken.join("\n"), log.join("\n"));
    }

    fn a_job_that_fails_for_a_while_succeeds_at_last(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["fail_until", "3"]);
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.raw("result"), "3");
        assert_eq!(row.number("attempts"), 3);
        assert_eq!(row.raw("error"), "null", "an error that has passed");
        setup.wait_until_drained();
    }

    /// Whether the job runs again is decided before `on-failure` is called.
    fn on_failure_is_told_whether_the_job_runs_again(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "[jobs.trap_in]\nmax-attempts = 2\ninitial-backoff = \"1ms\"\n");
        let id = setup.add(&["trap_in", "run"]);
        let mut worker = setup.worker(&[]);
        worker.wait_for_line(&[&id, "Trap in Run, attempt 1, again in Some"]);
        worker.wait_for_line(&[&id, "Trap in Run, attempt 2, again in None"]);
        let _ = setup.wait_for_status(&id, "FAILURE");
    }

    fn retry_after_spends_no_attempt(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["fail_retry_after", "1"]);
        let _worker = setup.worker(&[]);
        // Five attempts may fail by default; these are no such.
        let row = setup.wait_for_row(&id, "a seventh run", |row| row.number("attempts") > 6);
        assert_ne!(row.text("status"), "FAILURE");
        assert_eq!(setup.dead().len(), 0);
    }

    fn a_failure_for_good_is_in_the_dead_list_and_gone_from_the_queue(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["fail_permanent", "no \u{202e}way"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&id, "FAILURE");
        let dead = setup.wait_for_dead(1).remove(0);
        assert_eq!(dead.text("kind"), "failed");
        assert_eq!(dead.text("id"), id);
        assert_eq!(dead.text("job"), "fail_permanent");
        assert!(dead.text("reason").contains("no \u{202e}way"), "{dead}");
        assert!(!dead.text("body").is_empty());
        setup.wait_until_drained();
    }

    fn the_last_attempt_that_fails_is_one_for_good(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let settings = "[jobs.fail_transient]\nmax-attempts = 3\ninitial-backoff = \"0s\"\n";
        setup.project.write("sqjobs.toml", settings);
        let id = setup.add(&["fail_transient"]);
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "FAILURE");
        assert_eq!(row.number("attempts"), 3);
        assert_eq!(setup.wait_for_dead(1)[0].text("kind"), "failed");
        setup.wait_until_drained();
    }

    fn what_set_up_keeps_is_there_in_every_later_stage(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["stages"]);
        let mut worker = setup.worker(&["--log-format", "json"]);
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(row.text("result"), format!("attempt 1 of {id}"));
        assert_eq!(worker.terminate(), Some(0));
        let said = told(&worker.log(), Some(&id)).stages;
        for stage in ["run", "tear-down", "on-success"] {
            let line = format!("{stage} keeps attempt 1 of {id}");
            assert!(said.iter().any(|said| said.starts_with(&line)), "{line}: {said:?}");
        }
        assert!(said.iter().any(|said| said.starts_with("set-up keeps nothing")), "{said:?}");
    }

    fn a_hanging_job_does_not_hold_up_the_others(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let spinning = setup.add(&["spin"]);
        let worker = setup.worker(&["--concurrency", "2"]);
        let _ = setup.wait_for_status(&spinning, "RUNNING");
        let other = setup.add(&["counter"]);
        let _ = setup.wait_for_status(&other, "SUCCESS");
        drop(worker);
    }
}

#[test]
fn each_row_of_the_table_holds_in_an_eager_run() {
    let project = Project::with_guests(&["outcomes"]);
    project.write("sqjobs.toml", SETTINGS);
    let mut broken = Vec::new();
    for row in ROWS {
        let args = [&["run", "--log-format", "json"], row.job].concat();
        let output = project.run(&args);
        let expected = i32::from(row.status != "SUCCESS");
        if output.code != Some(expected) {
            broken.push(format!("{}: {output}", row.rule));
            continue;
        }
        let lines: Vec<String> = output.stderr.lines().map(str::to_owned).collect();
        broken.extend(row.broken(row.status, &output.stderr, &told(&lines, None)));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
