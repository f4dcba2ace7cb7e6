//! `dev`: each change of the sources is built, deployed and run.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::versions::{FILE, padded, version};
use support::{Project, WorkerProcess, servers, wait};

/// Runs `dev` on a project whose build is a copy of `src/module` to `out.wasm`.
fn dev(project: &Project, args: &[&str]) -> WorkerProcess {
    let build = "test -s src/module && cp src/module out/versioned.wasm && echo built by sh >&2";
    let file = "out/versioned.wasm";
    let args = [&["dev", "--build", build, "--file", file], args].concat();
    let mut command = project.command(&args);
    // The result, too, goes where the log is read.
    command.stdout(Stdio::null());
    WorkerProcess::spawn(command)
}

fn count(dev: &WorkerProcess, words: &str) -> usize {
    dev.log().iter().filter(|line| line.contains(words)).count()
}

#[test]
fn each_change_is_built_deployed_and_run() {
    let project = Project::empty();
    std::fs::create_dir(project.folder().join("out")).unwrap();
    project.write("src/module", version("bad one"));
    let mut dev = dev(&project, &["which"]);
    dev.wait_for_line(&["built and deployed"]);
    dev.wait_for_line(&["the job failed at run", &padded("bad one")]);
    let deployed = || std::fs::read(project.jobs_dir().join(FILE)).unwrap_or_default();
    assert_eq!(deployed(), version("bad one"));
    dev.wait_for_line(&["waiting for changes"]);

    // A build that fails leaves what was deployed.
    project.write("src/module", b"");
    dev.wait_for_line(&["the build failed"]);
    assert_eq!(deployed(), version("bad one"));
    wait::until_true("it to wait again", || count(&dev, "waiting for changes") == 2);

    // A module that can't serve is not deployed.
    project.write("src/module", b"not wasm at all");
    // What is at fault is what was built, not what would have been deployed.
    let line = dev.wait_for_line(&["magic"]);
    assert!(line.contains("out/versioned.wasm") && !line.contains("jobs/"), "{line}");
    assert_eq!(deployed(), version("bad one"));
    wait::until_true("it to wait again", || count(&dev, "waiting for changes") == 3);

    project.write("src/module", version("bad two"));
    dev.wait_for_line(&["the job failed at run", &padded("bad two")]);
    assert_eq!(deployed(), version("bad two"));
    assert!(dev.is_running());
}

#[test]
fn the_result_of_the_job_is_printed() {
    let project = Project::empty();
    std::fs::create_dir(project.folder().join("out")).unwrap();
    project.write("src/module", version("good"));
    let args = ["dev", "which", "5", "--build", "cp src/module out/m.wasm", "--file", "out/m.wasm"];
    let mut command = project.command(&args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let marker = padded("good");
    let expected = format!("[\"{marker}\",\"{marker}\"]\n");
    let mut seen = vec![0; expected.len()];
    stdout.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), expected);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Where the tester's own cargo or rustup keeps what it has fetched.
fn tool_home(variable: &str, folder: &str) -> PathBuf {
    let home = || Path::new(&std::env::var("HOME").unwrap()).join(folder);
    std::env::var(variable).map_or_else(|_| home(), PathBuf::from)
}

/// A project as `new` makes it, built by plain cargo.
#[test]
fn a_new_project_is_built_by_cargo_without_being_told_how() {
    let project = Project::empty();
    let _ = project.run(&["new", "dev_job"]).ok();
    let built = Path::new(&servers::variable("SQJOBS_TEST_GUESTS")).join("../../new");
    let mut command = project.command(&["dev", "dev_job", "1", "2", "--project", "dev_job"]);
    command
        .env("CARGO_TARGET_DIR", built)
        .env("CARGO_HOME", tool_home("CARGO_HOME", ".cargo"))
        .env("RUSTUP_HOME", tool_home("RUSTUP_HOME", ".rustup"));
    let mut dev = WorkerProcess::spawn(command);
    let deployed = project.jobs_dir().join("dev_job.wasm");
    // A build takes longer than anything else that tests wait for.
    let wait_for = |what: &str, count: usize| {
        let mut rounds = 0..20;
        while dev.log().iter().filter(|line| line.contains(what)).count() < count {
            assert!(rounds.next().is_some(), "no {count} x {what}: {}", dev.shown());
            let _ = wait::within(std::time::Duration::from_secs(30), || {
                (dev.log().iter().filter(|line| line.contains(what)).count() >= count).then_some(())
            });
        }
    };
    wait_for("waiting for changes", 1);
    assert!(dev.shown().contains("built and deployed"), "{}", dev.shown());
    let first = std::fs::read(&deployed).unwrap();

    let source = project.folder().join("dev_job/src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(&source, format!("{text}\ncompile_error!(\"by the test\");\n")).unwrap();
    wait_for("waiting for changes", 2);
    assert!(dev.shown().contains("by the test"), "cargo's own words: {}", dev.shown());
    assert!(dev.shown().contains("the build failed"), "{}", dev.shown());
    assert_eq!(std::fs::read(&deployed).unwrap(), first, "what was deployed stays");

    let other = text.replace("try_fold(0, i64::checked_add)", "try_fold(7, i64::checked_add)");
    assert_ne!(other, text);
    std::fs::write(&source, other).unwrap();
    wait_for("built and deployed", 2);
    assert_ne!(std::fs::read(&deployed).unwrap(), first);
    assert!(dev.is_running());
}
