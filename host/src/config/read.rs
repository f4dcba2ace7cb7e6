//! Values from flags, environment and file, with where each was found; every fault is collected.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigError, FILE_NAME, Flags};
use crate::registry::settle::Stamp;
use crate::text::nearest;

/// Settings that may stand in the file as a number.
const NUMBERS: [&str; 3] = ["concurrency", "keep-count", "max-generations"];
/// Settings that are true or false.
const SWITCHES: [&str; 2] = ["migrate", "strict"];

/// A value as it was written, and where.
pub(super) struct Found {
    pub(super) value: String,
    /// How an error names the place.
    pub(super) origin: String,
    /// The folder that relative paths stand against.
    pub(super) base: PathBuf,
}

/// All sources together.
pub(super) struct Reader<'a> {
    flags: &'a Flags,
    environment: &'a dyn Fn(&str) -> Option<String>,
    folder: PathBuf,
    top: Place,
    /// The file that was read.
    pub(super) file: Option<PathBuf>,
    /// That file's state just before it was read.
    pub(super) file_stamp: Option<Stamp>,
    pub(super) faults: Vec<String>,
}

/// One table of the file.
pub(super) struct Place {
    table: toml::Table,
    /// The table's name: `jobs.adder_job`; empty for the whole file.
    path: String,
    /// The file's name, for errors.
    file: String,
    pub(super) faults: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        flags: &'a Flags,
        environment: &'a dyn Fn(&str) -> Option<String>,
        folder: &Path,
    ) -> Result<Self, ConfigError> {
        let named = flags
            .values
            .get("config")
            .and_then(|values| values.last().cloned())
            .or_else(|| environment("SQJOBS_CONFIG"));
        if named.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError(vec!["--config: expected a path, found nothing".to_owned()]));
        }
        let named = named.map(|path| folder.join(path));
        let file = named.clone().or_else(|| {
            folder.ancestors().map(|above| above.join(FILE_NAME)).find(|path| path.is_file())
        });
        // Before the reading: a change while it is read must count as one.
        let file_stamp = file.as_deref().and_then(|path| Stamp::of(path).ok().flatten());
        let table = match &file {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    ConfigError(vec![format!(
                        "cannot read the configuration file `{}`: {error}; name another with --config",
                        path.display()
                    )])
                })?;
                text.parse().map_err(|error: toml::de::Error| {
                    let before = error.span().and_then(|span| text.get(..span.start));
                    let line = before.map_or(0, |before| before.matches('\n').count()) + 1;
                    let reason = error.message();
                    ConfigError(vec![format!(
                        "`{}` is not TOML: line {line}: {reason}",
                        path.display()
                    )])
                })?
            }
        };
        let label = file.as_ref().map(|path| format!("`{}`", path.display())).unwrap_or_default();
        let top = Place { table, path: String::new(), file: label, faults: Vec::new() };
        let (folder, faults) = (folder.into(), Vec::new());
        Ok(Self { flags, environment, folder, top, file, file_stamp, faults })
    }

    /// The folder of the file, or the working folder without one: where defaults lie.
    pub(super) fn base(&self) -> PathBuf {
        let beside = self.file.as_ref().and_then(|file| file.parent());
        beside.map_or_else(|| self.folder.clone(), Path::to_path_buf)
    }

    pub(super) fn check_keys(&mut self, known: &[&str]) {
        self.top.check_keys(known);
        self.faults.append(&mut self.top.faults);
    }

    pub(super) fn fault(&mut self, origin: &str, what: &str) {
        self.faults.push(format!("{origin}: {what}"));
    }

    /// The values of a setting, from the strongest source that has it.
    fn all(&mut self, key: &'static str) -> Vec<Found> {
        if let Some(values) = self.flags.values.get(key).filter(|values| !values.is_empty()) {
            let found = |value: &String| Found {
                value: value.clone(),
                origin: format!("--{key}"),
                base: self.folder.clone(),
            };
            return values.iter().map(found).collect();
        }
        let name = format!("SQJOBS_{}", key.to_uppercase().replace('-', "_"));
        if let Some(value) = (self.environment)(&name) {
            let found = |value: &str| Found {
                value: value.to_owned(),
                origin: name.clone(),
                base: self.folder.clone(),
            };
            if key == "jobs-dir" {
                return value.split(':').filter(|part| !part.is_empty()).map(found).collect();
            }
            return vec![found(&value)];
        }
        let (base, origin) = (self.base(), format!("`{key}` in {}", self.top.label()));
        let texts = match self.top.table.get(key) {
            None => return Vec::new(),
            Some(toml::Value::Integer(_)) if !NUMBERS.contains(&key) => None,
            Some(toml::Value::Boolean(_)) if !SWITCHES.contains(&key) => None,
            Some(toml::Value::Array(items)) if key == "jobs-dir" => {
                items.iter().map(scalar).collect::<Option<Vec<_>>>()
            }
            Some(value) => scalar(value).map(|text| vec![text]),
        };
        let Some(texts) = texts else {
            let expected = match key {
                key if NUMBERS.contains(&key) => "expected a number",
                key if SWITCHES.contains(&key) => "expected `true` or `false`",
                "jobs-dir" => "expected a text or a list of texts",
                _ => "expected a text",
            };
            self.fault(&origin, expected);
            return Vec::new();
        };
        let found = |value| Found { value, origin: origin.clone(), base: base.clone() };
        texts.into_iter().map(found).collect()
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<Found> {
        self.all(key).pop()
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let found = self.text(key)?;
        self.place(found)
    }

    pub(super) fn paths(&mut self, key: &'static str) -> Vec<PathBuf> {
        self.all(key).into_iter().filter_map(|found| self.place(found)).collect()
    }

    /// An empty path would be the folder that it stands against, which nobody means.
    fn place(&mut self, found: Found) -> Option<PathBuf> {
        if found.value.is_empty() {
            self.fault(&found.origin, "expected a path, found nothing");
            return None;
        }
        Some(found.base.join(found.value))
    }

    /// The content of a file that holds a secret, without the newline at its end.
    pub(super) fn secret_file(&mut self, key: &'static str) -> Option<String> {
        let found = self.text(key)?;
        let path = found.base.join(&found.value);
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim_end_matches(['\n', '\r']).to_owned()),
            Err(error) => {
                self.fault(&found.origin, &format!("cannot read `{}`: {error}", path.display()));
                None
            }
        }
    }

    fn parse<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let found = self.text(key)?;
        match parse(&found.value) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault(&found.origin, &fault);
                None
            }
        }
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        self.parse(key, |text| choice(text, choices))
    }

    pub(super) fn number(&mut self, key: &'static str, least: u64, most: u64) -> Option<u64> {
        self.parse(key, |text| number(text, least, most))
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        self.parse(key, |text| duration(text, least, most))
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.parse(key, boolean)
    }

    pub(super) fn address(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.parse(key, |text| {
            text.parse().map_err(|_| {
                format!("expected an address and a port such as `127.0.0.1:9464`, found `{text}`")
            })
        })
    }

    /// The table `[key]` of the file; empty when there is none.
    pub(super) fn table(&mut self, key: &'static str) -> Place {
        let table = self.top.sub(key);
        self.faults.append(&mut self.top.faults);
        table.unwrap_or_else(|| self.top.place(key.to_owned(), toml::Table::new()))
    }

    /// The tables `[key.NAME]` of the file.
    pub(super) fn tables(&mut self, key: &'static str) -> BTreeMap<String, Place> {
        let tables = self.top.subs(key);
        self.faults.append(&mut self.top.faults);
        tables
    }
}

impl Place {
    fn place(&self, path: String, table: toml::Table) -> Self {
        Self { table, path, file: self.file.clone(), faults: Vec::new() }
    }

    /// How errors name the table and its file.
    pub(super) fn label(&self) -> String {
        match self.path.as_str() {
            "" => self.file.clone(),
            path => format!("[{path}] in {}", self.file),
        }
    }

    /// How other errors name the table: `[jobs.adder_job]`.
    pub(super) fn header(&self) -> String {
        format!("[{}]", self.path)
    }

    pub(super) fn fault(&mut self, key: &str, what: &str) {
        self.faults.push(format!("`{key}` in {}: {what}", self.label()));
    }

    fn below(&self, key: &str) -> String {
        let key = toml_key(key);
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    /// The table `key` of this table.
    pub(super) fn sub(&mut self, key: &str) -> Option<Self> {
        match self.table.get(key)?.clone() {
            toml::Value::Table(table) => Some(self.place(self.below(key), table)),
            _ => {
                self.fault(key, "expected a table");
                None
            }
        }
    }

    /// The tables of the table `key` of this table, by name.
    pub(super) fn subs(&mut self, key: &str) -> BTreeMap<String, Self> {
        let Some(mut table) = self.sub(key) else { return BTreeMap::new() };
        let names: Vec<String> = table.table.keys().cloned().collect();
        let subs = names.into_iter().filter_map(|name| {
            let sub = table.sub(&name)?;
            Some((name, sub))
        });
        let subs = subs.collect();
        self.faults.append(&mut table.faults);
        subs
    }

    /// The tables of the list `[[key]]` of this table.
    pub(super) fn list(&mut self, key: &str) -> Vec<Self> {
        let Some(value) = self.table.get(key).cloned() else { return Vec::new() };
        let toml::Value::Array(items) = value else {
            self.fault(key, "expected a list of tables");
            return Vec::new();
        };
        let mut places = Vec::with_capacity(items.len());
        for item in items {
            match item {
                toml::Value::Table(table) => places.push(self.place(self.below(key), table)),
                _ => self.fault(key, "expected a list of tables"),
            }
        }
        places
    }

    /// A text.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.table.get(key)? {
            toml::Value::String(text) => Some(text.clone()),
            _ => {
                self.fault(key, "expected a text");
                None
            }
        }
    }

    /// A list of texts, each read by `parse`.
    pub(super) fn texts<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(value) = self.table.get(key).cloned() else { return Vec::new() };
        let toml::Value::Array(items) = value else {
            self.fault(key, "expected a list of texts");
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in &items {
            match item.as_str().map(&parse) {
                Some(Ok(text)) => texts.push(text),
                Some(Err(what)) => self.fault(key, &what),
                None => self.fault(key, "expected a list of texts"),
            }
        }
        texts
    }

    pub(super) fn check_keys(&mut self, known: &[&str]) {
        for key in self.table.keys().filter(|key| !known.contains(&key.as_str())) {
            let hint = suggestion(key, known);
            self.faults.push(format!("`{key}` in {}: not a key{hint}", self.label()));
        }
    }

    fn parse<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.table.get(key)?;
        let parsed = match scalar(value) {
            Some(text) => parse(&text),
            None => Err("expected a text or a number".to_owned()),
        };
        parsed.map_err(|fault| self.fault(key, &fault)).ok()
    }

    pub(super) fn number(&mut self, key: &str, least: u64, most: u64) -> Option<u64> {
        self.parse(key, |text| number(text, least, most))
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        self.parse(key, |text| choice(text, choices))
    }

    pub(super) fn duration(
        &mut self,
        key: &str,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        self.parse(key, |text| duration(text, least, most))
    }

    pub(super) fn bytes(&mut self, key: &str, least: u64, most: u64) -> Option<usize> {
        self.parse(key, |text| {
            let size: bytesize::ByteSize = text
                .parse()
                .map_err(|_| format!("expected a size such as `64MiB`, found `{text}`"))?;
            let shown = |bytes| bytesize::ByteSize::b(bytes);
            if size.0 < least || size.0 > most {
                return Err(format!(
                    "expected {} to {}, found `{text}`",
                    shown(least),
                    shown(most)
                ));
            }
            usize::try_from(size.0).map_err(|error| error.to_string())
        })
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        self.parse(key, boolean)
    }

    /// An RFC 3339 instant, in milliseconds since 1970: a text, or a date and time of TOML.
    pub(super) fn instant(&mut self, key: &str) -> Option<i64> {
        let text = match self.table.get(key)? {
            toml::Value::Datetime(time) => time.to_string(),
            value => scalar(value).unwrap_or_default(),
        };
        match crate::clock::Timestamp::parse(&text) {
            Ok(instant) => Some(instant.0),
            Err(_) => {
                self.fault(
                    key,
                    &format!("expected an instant such as 2027-03-28T00:30:00Z, found `{text}`"),
                );
                None
            }
        }
    }

    /// A list or a table as the JSON text that it means.
    pub(super) fn json(&mut self, key: &str) -> Option<String> {
        let text = serde_json::to_string(self.table.get(key)?);
        text.map_err(|error| self.fault(key, &error.to_string())).ok()
    }

    /// What is wrong with the table as a whole.
    pub(super) fn fault_of_all(&mut self, what: &str) {
        self.faults.push(format!("{}: {what}", self.label()));
    }
}

/// A name as a part of a table's header: `invoices`, `"a.b"`.
pub(crate) fn toml_key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

/// A value of the file as the text that a flag would have had.
fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    chosen.ok_or_else(|| {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
        format!("expected {}, found `{text}`", words.join(" or "))
    })
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {least} to {most}, found `{text}`")),
    }
}

/// Reads a duration with its unit: `30s`, `1h 30m`, `250ms`.
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let expected = || format!("expected a duration such as `30s` or `1h 30m`, found `{text}`");
    let duration = humantime::parse_duration(text).map_err(|_| expected())?;
    if duration < least {
        return Err(format!(
            "expected at least {}, found `{text}`",
            humantime::format_duration(least)
        ));
    }
    if duration > most {
        return Err(format!(
            "expected at most {}, found `{text}`",
            humantime::format_duration(most)
        ));
    }
    Ok(duration)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("expected `true` or `false`, found `{text}`")),
    }
}

/// Adds the known word nearest to one that isn't known.
fn suggestion(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(word) => format!("; did you mean `{word}`?"),
        None => format!("; known are {}", known.join(", ")),
    }
}
