//! Jobs that attack the host, each by a test of its own: the attack is stopped at its limit and
//! says so, a neighbour's job on the same worker goes on, and the worker's memory stays in budget.
//!
//! Only a deadline bounds what spins, sleeps, or floods the host with calls; all else ends at a
//! limit of its own.

use support::{Json, Pair, Setup};

/// Most memory that a worker may ever have held: what it has by itself, the 64 MiB that an attempt
/// may have here, and as much again for a host that carries some of it.
const BUDGET_BYTES: u64 = 384 << 20;

/// What an attack came to.
struct Fight {
    setup: Setup,
    id: String,
    row: Json,
    log: Vec<String>,
}

/// Runs a hostile job, and another one beside it, on one worker.
fn fight(guest: &str, settings: &str, job: &[&str]) -> Fight {
    let setup = Setup::new(Pair::Embedded, &[guest, "adder"]);
    let settings = format!("[defaults]\nmax-attempts = 1\nmemory = \"64MiB\"\n{settings}\n");
    setup.project.write("sqjobs.toml", settings);
    let id = setup.add(job);
    let mut worker = setup.worker(&["--concurrency", "4"]);
    let _ = setup.wait_for_row(&id, "its first attempt", |row| row.text("status") != "PENDING");
    let neighbour = setup.add(&["adder_job", "1", "2"]);
    assert_eq!(setup.wait_for_status(&neighbour, "SUCCESS").raw("result"), "3");
    let is_over = |row: &Json| ["SUCCESS", "FAILURE"].contains(&row.text("status").as_str());
    let row = setup.wait_for_row(&id, "its end", is_over);
    let peak = worker.peak_memory_bytes();
    assert!(peak < BUDGET_BYTES, "the worker held {peak} bytes");
    assert_eq!(worker.terminate(), Some(0));
    let log = worker.log();
    Fight { setup, id, row, log }
}

impl Fight {
    /// Asserts that the attack failed in this way, with these words in its error.
    fn failed(&self, kind: &str, words: &[&str]) -> &Self {
        assert_eq!(self.row.text("error_kind"), kind, "{}", self.row);
        let error = self.row.text("error");
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
        self
    }

    /// What `status` prints for eyes.
    fn shown(&self) -> String {
        self.setup.run(&["status", &self.id]).ok().stdout
    }

    fn log_bytes(&self) -> usize {
        self.log.iter().map(String::len).sum()
    }
}

#[test]
fn spinning_in_set_up_ends_at_the_timeout() {
    let fight = fight("outcomes", "timeout = \"1s\"", &["spin", "\"set-up\""]);
    fight.failed("timeout", &["timeout of 1s", "processor time"]);
    assert_eq!(fight.row.text("error_stage"), "set-up");
}

#[test]
fn spinning_in_run_ends_at_the_timeout() {
    let fight = fight("outcomes", "timeout = \"1s\"", &["spin"]);
    fight.failed("timeout", &["timeout of 1s"]);
    assert_eq!(fight.row.text("error_stage"), "run");
}

#[test]
fn spinning_in_tear_down_ends_at_the_timeout() {
    let fight = fight("outcomes", "timeout = \"1s\"", &["spin", "\"tear-down\""]);
    fight.failed("timeout", &["timeout of 1s"]);
    assert_eq!(fight.row.text("error_stage"), "tear-down");
}

#[test]
fn spinning_in_on_success_ends_at_its_own_deadline_and_the_success_stands() {
    let fight = fight("outcomes", "", &["spin", "\"on-success\""]);
    assert_eq!(fight.row.text("status"), "SUCCESS");
    assert!(fight.shown().contains("on-success failed: took longer than 10 s"));
}

#[test]
fn spinning_in_on_failure_ends_at_its_own_deadline() {
    let fight = fight("outcomes", "", &["spin", "\"on-failure\""]);
    fight.failed("permanent", &["on-failure is called"]);
    assert!(fight.shown().contains("on-failure failed: took longer than 10 s"));
}

#[test]
fn computing_ends_at_the_processor_limit_long_before_the_timeout() {
    let fight = fight("outcomes", "cpu = \"300ms\"", &["spin"]);
    fight.failed("timeout", &["processor time", "may use 300ms", "`cpu`"]);
}

#[test]
fn a_job_that_sleeps_spends_no_processor_time_and_ends_at_the_timeout() {
    let settings = "cpu = \"300ms\"\ntimeout = \"1s\"";
    let fight = fight("outcomes", settings, &["sleep_ms", "3600000"]);
    fight.failed("timeout", &["timeout of 1s"]);
}

#[test]
fn taking_too_much_memory_at_once_ends_the_job_with_limit_and_use() {
    let fight = fight("outcomes", "", &["allocate", "1000000000"]);
    fight.failed("out-of-memory", &["may have 67108864", "in use"]);
}

#[test]
fn taking_memory_in_small_steps_ends_at_the_same_limit() {
    let fight = fight("hostile", "", &["grow_slowly"]);
    fight.failed("out-of-memory", &["may have 67108864", "in use"]);
}

#[test]
fn recursion_without_end_ends_at_the_stack_s_and_names_function_file_and_line() {
    let fight = fight("hostile", "", &["recurse"]);
    fight.failed("trap", &["call stack exhausted", "limits.rs:"]);
    let backtrace = fight.row.text("backtrace");
    assert!(backtrace.contains("deeper"), "{backtrace}");
    let dead = fight.setup.run(&["dead", "show", &fight.id]).ok().stdout;
    assert!(dead.contains("call stack exhausted") && dead.contains("deeper"), "{dead}");
}

#[test]
fn a_flood_of_log_lines_is_cut() {
    let fight = fight("hostile", "timeout = \"2s\"", &["flood_log"]);
    fight.failed("timeout", &["timeout of 2s"]);
    assert!(fight.log_bytes() < 1_000_000, "{} bytes of log", fight.log_bytes());
    assert!(fight.shown().contains("said more than it may"));
}

#[test]
fn a_flood_of_output_without_a_line_s_end_is_cut() {
    let fight = fight("hostile", "timeout = \"2s\"\nlog = \"10KiB\"", &["flood_output"]);
    fight.failed("timeout", &["timeout of 2s"]);
    assert!(fight.log_bytes() < 200_000, "{} bytes of log", fight.log_bytes());
}

#[test]
fn of_a_flood_of_progress_only_the_latest_is_kept_and_cut() {
    let fight = fight("hostile", "timeout = \"2s\"", &["flood_progress"]);
    fight.failed("timeout", &["timeout of 2s"]);
    assert!(fight.row.text("progress_message").len() < 1100);
}

#[test]
fn a_result_that_is_too_large_is_no_result() {
    let fight = fight("outcomes", "result = \"10KiB\"", &["big_result", "10241"]);
    fight.failed("permanent", &["10241 bytes", "may have 10240"]);
}

#[test]
fn adding_jobs_ends_at_the_limit_and_a_failed_attempt_adds_none() {
    let fight = fight("hostile", "added-jobs = 5", &["add_for_ever"]);
    fight.failed("permanent", &["5 were added", "may add 5"]);
    let added = fight.setup.run(&["list", "--job", "adder_job", "--output", "json"]).ok();
    assert_eq!(added.json_lines().len(), 1, "only the neighbour: {added}");
}

#[test]
fn a_job_that_adds_itself_for_ever_ends() {
    let setup = Setup::new(Pair::Embedded, &["hostile"]);
    let _ = setup.add(&["add_self"]);
    let mut worker = setup.worker(&[]);
    let dead = setup.wait_for_dead(1);
    assert!(dead[0].text("reason").contains("ends after"), "{}", dead[0]);
    assert_eq!(worker.terminate(), Some(0));
    let jobs = setup.run(&["list", "--job", "add_self", "--output", "json"]).ok().json_lines();
    assert_eq!(jobs.len(), 17, "the first, and sixteen that were added");
}

#[test]
fn json_nested_ten_thousand_deep_is_no_result() {
    let fight = fight("hostile", "", &["deep_result", "10000"]);
    fight.failed("permanent", &["nested deeper than 128"]);
}

#[test]
fn a_result_that_is_not_json_is_no_result() {
    let fight = fight("outcomes", "", &["bad_result", "\"{\""]);
    fight.failed("permanent", &["not JSON"]);
}

#[test]
fn a_result_that_is_no_text_is_no_result() {
    let fight = fight("hostile", "", &["not_utf8"]);
    fight.failed("trap", &["utf-8"]);
}

#[test]
fn a_nul_in_an_error_reaches_neither_database_nor_terminal() {
    let fight = fight("outcomes", "", &["nul_error"]);
    fight.failed("permanent", &["before\u{fffd}after"]);
    assert!(!fight.shown().contains('\0'));
}

#[test]
fn terminal_escapes_reach_no_terminal() {
    let fight = fight("hostile", "", &["escapes"]);
    fight.failed("permanent", &["tail"]);
    let mut shown = vec![fight.shown(), fight.log.join("\n")];
    for command in [&["list"][..], &["dead", "list"], &["dead", "show", &fight.id]] {
        shown.push(fight.setup.run(command).ok().stdout);
    }
    for text in shown {
        let is_hostile = |c: &char| c.is_control() && *c != '\n' && *c != '\t' || *c == '\u{202e}';
        let found: Vec<char> = text.chars().filter(is_hostile).collect();
        assert!(found.is_empty(), "{found:?} in {text}");
    }
}

#[test]
fn leaving_by_exit_is_no_success() {
    let fight = fight("outcomes", "", &["exit", "0"]);
    fight.failed("trap", &["exit(0)"]);
}

#[test]
fn a_trap_in_any_stage_ends_its_own_attempt_only() {
    for stage in ["set-up", "run", "tear-down"] {
        let fight = fight("outcomes", "", &["trap_in", &format!("\"{stage}\"")]);
        fight.failed("trap", &["unreachable"]);
        assert_eq!(fight.row.text("error_stage"), stage);
    }
}

#[test]
fn handing_the_host_too_much_in_one_call_ends_the_job() {
    let fight = fight("hostile", "host-memory = \"1MiB\"", &["huge_line", "2000000"]);
    fight.failed("trap", &["more than 1048576 bytes", "`host-memory`"]);
}

#[test]
fn asking_for_too_many_random_bytes_ends_the_job() {
    let fight = fight("hostile", "", &["huge_random", "100000000000"]);
    fight.failed("trap", &["random bytes", "`host-memory`"]);
}

#[test]
fn holding_too_many_timers_ends_the_job() {
    let fight = fight("hostile", "handles = 100", &["wait_for_many", "1000"]);
    fight.failed("trap", &["more than 100 ", "`handles`"]);
}

/// More jobs that spin than there are processors, each longer than a lease: the neighbours' jobs
/// go on meanwhile, and no lease is lost, so each runs once.
#[test]
fn jobs_that_spin_hold_up_neither_the_others_nor_their_own_leases() {
    let setup = Setup::new(Pair::Embedded, &["outcomes", "adder"]);
    let settings = "[defaults]\nmax-attempts = 1\n[jobs.spin]\ntimeout = \"12s\"\n";
    setup.project.write("sqjobs.toml", settings);
    let spinning: Vec<_> = (0..8).map(|_| setup.add(&["spin"])).collect();
    let mut worker = setup.worker(&["--lease", "5s", "--concurrency", "12"]);
    for id in &spinning {
        let _ = setup.wait_for_status(id, "RUNNING");
    }
    let neighbours: Vec<_> = (0..10).map(|_| setup.add(&["adder_job", "1", "2"])).collect();
    for id in &neighbours {
        let _ = setup.wait_for_status(id, "SUCCESS");
    }
    for id in &spinning {
        let row = setup.wait_for_status(id, "FAILURE");
        assert_eq!(row.text("error_kind"), "timeout", "{row}");
        assert_eq!(row.number("attempts"), 1, "{row}");
    }
    assert!(!worker.shown().contains("lost its lease"), "{}", worker.shown());
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn limits_are_set_per_job_over_the_module_s_over_the_defaults() {
    let settings = "[modules.outcomes]\nmemory = \"32MiB\"\n[jobs.allocate]\nmemory = \"16MiB\"";
    let of_job = fight("outcomes", settings, &["allocate", "1000000000"]);
    of_job.failed("out-of-memory", &["may have 16777216"]);
    let settings = "[modules.outcomes]\nmemory = \"32MiB\"";
    let of_module = fight("outcomes", settings, &["allocate", "1000000000"]);
    of_module.failed("out-of-memory", &["may have 33554432"]);
}

#[test]
fn what_goes_beyond_a_cap_is_a_fault_that_names_its_place() {
    let setup = Setup::new(Pair::Embedded, &["adder", "outcomes"]);
    let settings = "[caps]\nmemory = \"32MiB\"\nhandles = 50\n[defaults]\nmemory = \"64MiB\"\n[jobs.a]\nhandles = 51\n[modules.m]\nhandles = 50\n";
    setup.project.write("sqjobs.toml", settings);
    let output = setup.run(&["list"]).exits(2);
    output.is_a_sentence().says(&["`memory` in [defaults]", "`handles` in [jobs.a]", "[caps]"]);
    assert!(!output.stderr.contains("modules.m"), "{output}");
}

/// `described` asks for 30 s by itself.
#[test]
fn a_module_that_asks_for_more_than_the_cap_is_refused_until_the_operator_decides() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    setup.project.write("sqjobs.toml", "[caps]\ntimeout = \"20s\"\n");
    let jobs = setup.run(&["jobs"]).ok();
    jobs.says(&["`described` asks for a timeout of 30s", "[caps]", "[jobs.described]"]);
    let settings = "[caps]\ntimeout = \"20s\"\n[jobs.described]\ntimeout = \"20s\"\n";
    setup.project.write("sqjobs.toml", settings);
    assert!(setup.run(&["jobs"]).ok().stdout.contains("described"));
}
