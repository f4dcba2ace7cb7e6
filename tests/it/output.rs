//! What is printed, and where: one object a line for programs, nothing for eyes that could harm
//! them, and no panic where nothing can be printed.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use support::{Output, Pair, Project, Setup, servers};

/// JSON of several lines, as a job or a producer may write it, and the same on one line.
const SPREAD: &str =
    "{\r\n  \"b\": 123456789012345678901234567890,\n  \"a\": [1.50,\n\"x \\n y\"]\n}";
const ON_ONE_LINE: &str = r#"{"b":123456789012345678901234567890,"a":[1.50,"x \n y"]}"#;

on_every_pair! {
    fn json_of_several_lines_is_printed_as_one(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _worker = setup.worker(&[]);
        let queue = setup.queue.as_str();
        let told = serde_json::to_string(SPREAD).unwrap();
        let args = format!("[\n  {told}\n]");
        let kwargs = format!("{{\n  \"k\": {SPREAD}}}");
        let call = ["bad_result", "--args-json", &args, "--kwargs-json", &kwargs];
        let add = [&["add", "--queue", queue, "--id", "spread", "--wait"], &call[..]].concat();
        assert_eq!(setup.run(&add).ok().line(), ON_ONE_LINE);
        assert_eq!(setup.run(&[&["run"], &call[..]].concat()).ok().line(), ON_ONE_LINE);
        let list = setup.run(&["list", "--output", "json"]).ok();
        for row in [setup.status("spread").unwrap(), list.json()] {
            assert_eq!(row.raw("result"), ON_ONE_LINE);
            assert_eq!(row.raw("args"), format!("[{told}]"));
            assert_eq!(row.raw("kwargs"), format!(r#"{{"k":{ON_ONE_LINE}}}"#));
        }
        let shown = setup.run(&["status", "spread"]).ok();
        assert!(shown.stdout.contains(ON_ONE_LINE), "{shown}");
    }
}

#[test]
fn json_on_one_line_is_printed_as_it_was_written() {
    let project = Project::with_guests(&["outcomes"]);
    let told = serde_json::to_string(r#"{ "b" :1.50, "a":	[ ] }"#).unwrap();
    let output = project.run(&["run", "bad_result", &told]).ok();
    assert_eq!(output.line(), r#"{ "b" :1.50, "a":	[ ] }"#);
}

/// A command whose standard streams are full, where they are told to be.
fn with_full(mut command: Command, is_out_full: bool, is_err_full: bool) -> Option<i32> {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let null = || Stdio::from(OpenOptions::new().write(true).open("/dev/null").unwrap());
    command.stdin(Stdio::null());
    command.stdout(if is_out_full { full() } else { null() });
    command.stderr(if is_err_full { full() } else { null() });
    command.status().unwrap().code()
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_output_is_an_error_and_no_panic() {
    let project = Project::with_guests(&["adder"]);
    let id = project.run(&["add", "adder_job", "1"]).ok().line().to_owned();
    for args in [
        &["--help"][..],
        &["--version"],
        &["completions", "bash"],
        &["list"],
        &["list", "--output", "json"],
        &["status", &id],
        &["jobs"],
        &["run", "adder_job", "1"],
        &["inspect", "jobs/adder.wasm"],
        &["migrate"],
    ] {
        for is_err_full in [false, true] {
            let code = with_full(project.command(args), true, is_err_full);
            assert_eq!(code, Some(1), "{args:?}, standard error full: {is_err_full}");
        }
    }
    let mut command = project.command(&["list"]);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("standard output"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_error_changes_no_exit_code() {
    let project = Project::with_guests(&["adder"]);
    for (args, code) in [
        (&["status", "unknown"][..], 1),
        (&["run", "nobody_knows"], 1),
        (&["run", "adder_job", "x"], 1),
        (&["run", "adder_job", "1", "--log-level", "trace"], 0),
        (&["nonsense"], 2),
        (&["worker", "q", "--broker", "rabbit"], 2),
        (&["list"], 0),
        (&["dead", "list"], 0),
        (&["new", "hello"], 0),
    ] {
        assert_eq!(with_full(project.command(args), false, true), Some(code), "{args:?}");
    }
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let project = Project::with_guests(&["adder"]);
    let _ = project.run(&["add", "adder_job", "1"]).ok();
    for args in [&["list"][..], &["completions", "bash"], &["--help"], &["jobs"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = project.command(args);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

/// The command with a terminal for its standard streams, all that it prints on it as one text.
fn on_a_terminal(command: &Command) -> Output {
    const PYTHON: &str = "import os, pty, sys\n\
        sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut wrapped = Command::new(servers::old_python());
    wrapped.args(["-c", PYTHON]).arg(command.get_program()).args(command.get_args());
    wrapped.current_dir(command.get_current_dir().unwrap()).env_clear();
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut output = Output::of(wrapped);
    output.stdout = output.stdout.replace("\r\n", "\n");
    output
}

#[test]
fn on_a_terminal_a_result_is_json_that_moves_no_cursor() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    // The C1 control and the tag character need one and two `\u` escapes.
    let hostile = "\"red\u{9b}31m \u{202e}turned \u{e0041}\"";
    let escaped = r#""red\u009b31m \u202eturned \udb40\udc41""#;
    let told = serde_json::to_string(hostile).unwrap();
    let _worker = setup.worker(&[]);
    let queue = setup.queue.as_str();
    let run = ["run", "bad_result", &told, "--log-level", "error"];
    let add = ["add", "--queue", queue, "--id", "\u{202e}id", "--wait", "bad_result", &told];
    let status = ["status", "\u{202e}id", "--output", "json"];
    for args in [&run[..], &add, &status] {
        let shown = on_a_terminal(&setup.project.command(args)).ok();
        assert!(shown.stdout.contains(escaped), "{shown}");
        assert!(!shown.stdout.contains(['\u{202e}', '\u{9b}', '\u{e0041}']), "{shown}");
    }
    let piped = setup.run(&run).ok();
    assert_eq!(piped.line(), hostile, "as it is for a program");

    let again = ["add", "--queue", queue, "--id", "\u{202e}id", "bad_result", &told];
    assert!(on_a_terminal(&setup.project.command(&again)).ok().stdout.contains("\\u{202e}id"));
    assert_eq!(setup.run(&again).ok().line(), "\u{202e}id");
    let text = on_a_terminal(&setup.project.command(&["status", "\u{202e}id"])).ok();
    assert!(!text.stdout.contains(['\u{202e}', '\u{9b}']), "{text}");
}

#[test]
fn run_of_a_job_says_nothing_of_other_modules() {
    let project = Project::with_guests(&["adder", "samples"]);
    project.write("jobs/broken.wasm", "no module");
    let output = project.run(&["run", "adder_job", "1", "2"]).ok();
    assert_eq!((output.line(), output.stderr.as_str()), ("3", ""), "{output}");

    let unknown = project.run(&["run", "nobody_knows"]).exits(1);
    unknown.is_a_sentence().says(&["nobody_knows", "broken.wasm"]);
    std::fs::copy(servers::guest("adder"), project.jobs_dir().join("zz.wasm")).unwrap();
    project.run(&["run", "adder_job", "1"]).ok().says(&["zz.wasm", "adder.wasm"]);
}

#[test]
fn one_error_is_one_line() {
    let project = Project::with_guests(&["outcomes"]);
    let traps = servers::guest("describe_traps").display().to_string();
    let config = project.write("bad.toml", "broker = \"local\"\nthis is nonsense\n");
    let config = config.display().to_string();
    for args in [&["list", "--config", &config][..], &["inspect", &traps]] {
        let output = project.run(args);
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
        assert!(output.stderr.starts_with("error: "), "{output}");
    }
    let output = project.run(&["run", "fail_permanent", "first\nsecond"]).exits(1);
    let errors = output.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{output}");
    output.says(&["first second"]);
}
