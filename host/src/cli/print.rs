//! Standard output: lines of JSON, aligned tables, and a spinner where one waits.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;

use crate::text::printable;

/// Writes a line.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Writes bytes as they are.
pub(super) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// JSON text from the database as a value of its own. A row that somebody edited to what is no
/// JSON is shown as a string.
pub(super) fn raw(text: Option<&str>) -> Option<Box<RawValue>> {
    let text = text?;
    let value = RawValue::from_string(text.to_owned());
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
