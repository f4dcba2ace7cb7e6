//! `docs/operations.md`: every command that it shows is run as it is printed, with the names of
//! this project in place of those of the page.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use support::{Output, Setup, WorkerProcess, servers, wait};

const PAGE: &str = include_str!("../../docs/operations.md");

/// The command lines of the page, in their order, without their comments.
fn commands() -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut is_shell = false;
    for line in PAGE.lines() {
        match line {
            "```sh" => is_shell = true,
            "```" => is_shell = false,
            _ if is_shell => found.extend(line.split("  #").next().map(str::trim)),
            _ => {}
        }
    }
    found
}

/// A small project in which the page's jobs are known and some of each kind are there.
struct Shown {
    setup: Setup,
    /// A job that has succeeded.
    done: String,
    /// Where the page's worker listens.
    address: String,
    /// The worker that runs behind all commands.
    worker: WorkerProcess,
    /// Started by the page.
    started: Option<WorkerProcess>,
}

impl Shown {
    fn new(pair: support::Pair) -> Self {
        let setup = Setup::new(pair, &["adder", "outcomes"]);
        setup.project.write("bin/.keep", "");
        std::os::unix::fs::symlink(servers::host(), setup.project.folder().join("bin/sqjobs-host"))
            .unwrap();
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        let jobs = setup.table("deployed_jobs");
        for name in ["report", "sync"] {
            setup.execute(&format!(
                "INSERT INTO {jobs} (name, module, module_digest, queue, records_result, \
                 description, seen_at) VALUES ('{name}', 'm', 'd', '{}', 1, '{{}}', 0)",
                setup.queue
            ));
        }
        let done = setup.add(&["counter"]);
        let _ = setup.wait_for_status(&done, "SUCCESS");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        Self { setup, done, address, worker, started: None }
    }

    /// A job that is in the dead list.
    fn dead(&self) -> String {
        let id = self.setup.add(&["fail_permanent"]);
        let _ = self.setup.wait_for_status(&id, "FAILURE");
        id
    }

    /// A job that waits.
    fn waiting(&self) -> String {
        self.setup.add(&["counter", "--delay", "1h"])
    }

    /// The command with the names of this project.
    fn named(&self, line: &str) -> String {
        let mut line =
            line.replace("127.0.0.1:9464", &self.address).replace("FILE", "jobs/adder.wasm");
        let queue = match line.contains("queues create") {
            true => servers::unique("created"),
            false => self.setup.queue.clone(),
        };
        for word in ["orders", "QUEUE"] {
            line = line.replace(word, &queue);
        }
        while line.contains("ID") && !line.contains("PID") {
            let id = match line.as_str() {
                line if line.contains(" dead ") => self.dead(),
                line if line.contains(" cancel ") => self.waiting(),
                _ => self.done.clone(),
            };
            line = line.replacen("ID", &id, 1);
        }
        line
    }

    /// A shell that runs the line in the project's folder.
    fn shell(&self, line: &str) -> Command {
        let like = self.setup.project.command::<&str>(&[]);
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env_clear().current_dir(self.setup.project.folder());
        shell.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.setup.project.folder().join("bin");
        shell.env("PATH", format!("{}:{path}", bin.display()));
        shell
    }

    fn run(&mut self, printed: &str) {
        let line = self.named(printed);
        if line.starts_with("sqjobs-host worker ") {
            let mut worker = WorkerProcess::spawn(self.shell(&format!("exec {line}")));
            worker.wait_until_ready();
            if let Some(mut earlier) = self.started.replace(worker) {
                assert_eq!(earlier.terminate(), Some(0), "{}", earlier.shown());
            }
        } else if let Some(url) = line.strip_prefix("curl http://") {
            let (_, path) = url.split_once('/').unwrap();
            wait::until_true(printed, || get(&self.address, path).starts_with("HTTP/1.1 200 OK"));
        } else if line.contains("--follow") {
            let mut follow =
                self.shell(&format!("exec {line}")).stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
            assert!(lines.next().is_some_and(|line| line.is_ok()), "{printed}");
            support::worker::signal(follow.id(), "TERM");
            follow.wait().unwrap();
        } else if line.contains("PID") {
            let mut worker = self.setup.worker(&[]);
            worker.wait_until_ready();
            let _ = Output::of(self.shell(&line.replace("PID", &worker.pid().to_string()))).ok();
            assert_eq!(worker.wait_for_exit().code(), Some(0), "{}", worker.shown());
        } else {
            assert!(line.starts_with("sqjobs-host "), "no rule for `{printed}`");
            let output = Output::of(self.shell(&line));
            // Off a terminal nobody can be asked.
            match output.code {
                Some(2) if output.stderr.contains("--yes") => {
                    let _ = Output::of(self.shell(&format!("{line} --yes"))).ok();
                }
                _ => drop(output.ok()),
            }
        }
    }
}

/// The answer to a request.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

on_every_pair! {
    fn every_command_of_the_page_runs_as_it_is_printed(pair) {
        let mut shown = Shown::new(pair);
        let commands = commands();
        assert!(commands.len() > 30, "{commands:?}");
        for printed in commands {
            shown.run(printed);
        }
        for mut worker in shown.started.take().into_iter().chain([shown.worker]) {
            assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
        }
    }
}
