//! Jobs that reach for files.

use std::fs::{self, File};
use std::io::Write;

use sqjobs_sdk::prelude::*;

/// `open_paths PATH...`: tries to read each, and returns what it got, or `error: ...`.
#[derive(Default)]
pub(crate) struct OpenPaths;

impl Job for OpenPaths {
    const NAME: &str = "open_paths";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let paths: Vec<String> = call.args()?;
        let read = |path: &String| match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => format!("error: {error}"),
        };
        Ok(paths.iter().map(read).collect::<Vec<_>>())
    }
}

/// `write_file PATH TEXT`: writes it, and returns `written` or `error: ...`.
#[derive(Default)]
pub(crate) struct WriteFile;

impl Job for WriteFile {
    const NAME: &str = "write_file";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let (path, text): (String, String) = (call.arg(0)?, call.arg(1)?);
        let written = File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
        Ok(match written {
            Ok(()) => "written".to_owned(),
            Err(error) => format!("error: {error}"),
        })
    }
}

/// `open_many PATH COUNT`: opens the file so often and closes none.
#[derive(Default)]
pub(crate) struct OpenMany;

impl Job for OpenMany {
    const NAME: &str = "open_many";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let (path, count): (String, usize) = (call.arg(0)?, call.arg(1)?);
        let files: std::io::Result<Vec<File>> = (0..count).map(|_| File::open(&path)).collect();
        files.map(|files| files.len()).map_err(|error| Failure::permanent(error.to_string()))
    }
}
