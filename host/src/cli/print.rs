//! What commands write: data to standard output, as lines of JSON, aligned tables or text, and
//! notes to standard error, with a spinner where one waits.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;

use crate::json::one_line;
use crate::text::{printable, printable_json};

/// Standard output did not take our data.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output; check where it goes")]
pub(super) struct OutputError(#[from] std::io::Error);

impl OutputError {
    /// Whether whoever reads our output has stopped reading, as `head` does.
    pub(super) fn is_closed_pipe(&self) -> bool {
        self.0.kind() == std::io::ErrorKind::BrokenPipe
    }
}

/// Writes a line.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    Ok(write(&[text.as_bytes(), b"\n"])?)
}

/// Writes bytes as they are.
pub(super) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    Ok(write(&[bytes])?)
}

fn write(parts: &[&[u8]]) -> Result<(), OutputError> {
    let mut out = std::io::stdout().lock();
    for part in parts {
        out.write_all(part)?;
    }
    Ok(out.flush()?)
}

/// Writes a JSON value as one line: its text as it is for a program, and for a terminal with what
/// could move the cursor as JSON's own escapes.
pub(super) fn json(text: &str) -> anyhow::Result<()> {
    let text = one_line(text);
    if std::io::stdout().is_terminal() { line(&printable_json(&text)) } else { line(&text) }
}

/// Writes a line of text from outside: as it is for a program, safe to show for a terminal.
pub(super) fn text(text: &str) -> anyhow::Result<()> {
    if std::io::stdout().is_terminal() { line(&printable(text)) } else { line(text) }
}

/// Writes a line to standard error. Where nobody can read it there is nobody to tell, so a full
/// disk or a closed terminal is no fault.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// JSON text from the database as a value of its own, on one line. A row that somebody edited to
/// what is no JSON is shown as a string.
pub(super) fn raw(text: Option<&str>) -> Option<Box<RawValue>> {
    let text = text?;
    let value = RawValue::from_string(one_line(text).into_owned());
    value.or_else(|_| serde_json::value::to_raw_value(text)).ok()
}

/// A table for eyes: a header, aligned columns, no lines. Every cell is made safe to show.
pub(super) struct Grid(Table);

impl Grid {
    pub(super) fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if !header.is_empty() {
            table.set_header(header.iter().map(|name| name.to_uppercase()));
        }
        Self(table)
    }

    pub(super) fn row(&mut self, cells: &[&str]) {
        self.0.add_row(cells.iter().map(|cell| {
            let cell = printable(cell);
            if cell.is_empty() { "-".to_owned() } else { shortened(&cell, 400) }
        }));
    }

    pub(super) fn print(mut self) -> anyhow::Result<()> {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for row in self.0.lines() {
            line(row.trim_end())?;
        }
        Ok(())
    }
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A spinner on standard error, on a terminal only.
pub(super) fn spinner(text: String) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    let bar = ProgressBar::new_spinner().with_message(text);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A progress bar on standard error, on a terminal only.
pub(super) fn bar(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} ({eta})");
    let bar = ProgressBar::new(length);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Writes a question to standard error, without an end of line.
pub(super) fn ask(text: impl Display) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}
