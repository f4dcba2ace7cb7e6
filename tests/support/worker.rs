//! A worker process: its log lines and its signals.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::wait;

/// A worker that runs until it is stopped. Dropping it kills it.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl WorkerProcess {
    /// Starts it. It may not be ready yet: see [`Self::wait_until_ready`].
    ///
    /// # Panics
    /// It can't be started.
    #[must_use]
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().unwrap();
        let sink = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                sink.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, line by line.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a log line that holds all these words, and returns it.
    ///
    /// # Panics
    /// It does not come, or the worker has ended without it; the message shows the log.
    pub fn wait_for_line(&mut self, words: &[&str]) -> String {
        let find = |lines: &[String]| {
            lines.iter().find(|line| words.iter().all(|word| line.contains(word))).cloned()
        };
        let lines = self.lines.clone();
        let found = wait::within(wait::DEADLINE, || {
            let has_ended = self.child.try_wait().unwrap().is_some();
            if has_ended {
                self.join_reader();
            }
            match find(&lines.lock().unwrap()) {
                Some(line) => Some(Some(line)),
                None => has_ended.then_some(None),
            }
        });
        found.flatten().unwrap_or_else(|| panic!("no line with {words:?} in:\n{}", self.shown()))
    }

    /// Waits until it says that it is ready for messages.
    ///
    /// # Panics
    /// It does not say so.
    pub fn wait_until_ready(&mut self) -> String {
        self.wait_for_line(&["ready"])
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Sends SIGTERM, waits for the end, and returns the exit code (`None`: by a signal).
    ///
    /// # Panics
    /// It does not end before the deadline.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait_for_exit().code()
    }

    /// Kills it at once, as a power cut would.
    pub fn kill(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.child.kill();
        self.wait_for_exit();
    }

    /// Waits until it has killed itself at a fail point.
    ///
    /// # Panics
    /// It ends in another way, or not before the deadline; the message shows the log.
    pub fn wait_until_killed_at(&mut self, point: &str) {
        let status = self.wait_for_exit();
        let line = format!("killed at fail point {point}");
        let is_killed = status.signal() == Some(9) && self.log().contains(&line);
        assert!(is_killed, "{status}, and not at {point}; its log:\n{}", self.shown());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end before the deadline; the message shows the log.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let status = wait::within(wait::DEADLINE, || self.child.try_wait().unwrap());
        let Some(status) = status else {
            let shown = self.shown();
            let _ = self.child.kill();
            panic!("the worker does not end; its log:\n{shown}");
        };
        self.join_reader();
        status
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Most memory that it has held at once, in bytes.
    ///
    /// # Panics
    /// It has ended, or the system does not tell.
    #[must_use]
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
        kib << 10
    }

    /// The processes that compile modules for it now.
    ///
    /// # Panics
    /// The system does not tell of processes.
    #[must_use]
    pub fn compilers(&self) -> Vec<u32> {
        let parent = format!("PPid:\t{}", self.pid());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_its = |pid: &u32| {
            // One that has ended meanwhile tells nothing.
            let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
            read("status").is_ok_and(|status| status.lines().any(|line| line == parent))
                && read("cmdline").is_ok_and(|line| line.contains("compile-module"))
        };
        pids.filter(is_its).collect()
    }

    /// Its log in one text, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        self.log().join("\n")
    }

    fn join_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of worker {}\n{}", self.pid(), self.shown());
        }
    }
}

/// Sends a signal to a process that a test has started.
///
/// # Panics
/// There is no shell to send it with.
pub fn signal(pid: u32, name: &str) {
    // The shell's own `kill`: there in every system, and without unsafe code in here.
    let script = format!("kill -{name} {pid} 2>/dev/null || true");
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
}
