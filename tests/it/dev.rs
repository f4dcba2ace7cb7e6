//! `dev`: each change of the sources is built, deployed and run.

use std::io::Read as _;
use std::process::Stdio;

use support::versions::{FILE, padded, version};
use support::{Project, WorkerProcess, wait};

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
    dev.wait_for_line(&["magic"]);
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
