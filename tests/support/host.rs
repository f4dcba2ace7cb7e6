//! What one run of the binary said.

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Command, Stdio};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::wait;

/// What one run of the binary said, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end, with nothing on its standard input.
    ///
    /// # Panics
    /// It can't be started, does not end before the deadline, or writes what is not UTF-8.
    #[must_use]
    pub fn of(mut command: Command) -> Self {
        let shown = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let pid = child.id();
        // Both pipes have to be read while it runs, hence the thread.
        let reader = std::thread::spawn(move || child.wait_with_output());
        if wait::within(wait::DEADLINE * 4, || reader.is_finished().then_some(())).is_none() {
            crate::worker::signal(pid, "KILL");
            panic!("{shown} did not end: {:?}", reader.join());
        }
        let output = reader.join().unwrap().unwrap();
        Self {
            command: shown,
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The same, once it is sure that the command succeeded.
    ///
    /// # Panics
    /// It did not exit with 0.
    #[must_use]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// The same, once it is sure that the command ended with this code.
    ///
    /// # Panics
    /// It ended in another way.
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code of {self}");
        self
    }

    /// Standard output without the newline at its end.
    ///
    /// # Panics
    /// It is not one line.
    #[must_use]
    pub fn line(&self) -> &str {
        let line = self.stdout.strip_suffix('\n').unwrap_or(&self.stdout);
        assert!(!line.contains('\n') && !line.is_empty(), "not one line of output: {self}");
        line
    }

    /// Standard output as JSON, one object a line.
    ///
    /// # Panics
    /// It is not that.
    #[must_use]
    pub fn json_lines(&self) -> Vec<Json> {
        self.stdout.lines().map(Json::parse).collect()
    }

    /// Standard output as one object.
    ///
    /// # Panics
    /// It is not that.
    #[must_use]
    pub fn json(&self) -> Json {
        Json::parse(self.line())
    }

    /// Asserts that standard error holds all these words, whatever their case.
    ///
    /// # Panics
    /// One is missing.
    pub fn says(&self, words: &[&str]) -> &Self {
        let said = self.stderr.to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "`{word}` is not said by {self}");
        }
        self
    }

    /// Asserts that standard error is made for people: some lines, none of them of a backtrace,
    /// a panic or Rust's own notation of values.
    ///
    /// # Panics
    /// It is not.
    pub fn is_a_sentence(&self) -> &Self {
        assert!(!self.stderr.trim().is_empty(), "nothing on standard error: {self}");
        for trace in ["thread '", "stack backtrace", "RUST_BACKTRACE", "Some(", "Error {", "Os {"] {
            assert!(!self.stderr.contains(trace), "`{trace}` is in the error of {self}");
        }
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "{command}\nexit code {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// A JSON object whose values keep the text that was printed.
#[derive(Debug, Clone)]
pub struct Json(BTreeMap<String, Box<RawValue>>);

impl Json {
    /// Reads one line.
    ///
    /// # Panics
    /// It is no JSON object.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        Self(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    /// A value's text, exactly as printed.
    ///
    /// # Panics
    /// There is no such key.
    #[must_use]
    pub fn raw(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("no `{key}` in {self}")).get()
    }

    /// A value.
    ///
    /// # Panics
    /// There is no such key.
    #[must_use]
    pub fn value(&self, key: &str) -> Value {
        serde_json::from_str(self.raw(key)).unwrap()
    }

    /// A value that is a string.
    ///
    /// # Panics
    /// It is not, or there is no such key.
    #[must_use]
    pub fn text(&self, key: &str) -> String {
        let value = self.value(key);
        value.as_str().unwrap_or_else(|| panic!("`{key}` is no string in {self}")).to_owned()
    }

    /// A value that is a whole number from 0.
    ///
    /// # Panics
    /// It is not, or there is no such key.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        self.value(key).as_u64().unwrap_or_else(|| panic!("`{key}` is no count in {self}"))
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(key, value)| (key, value.get()))).finish()
    }
}
