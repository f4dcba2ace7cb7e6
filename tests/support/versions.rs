//! Versions of one module, made without a compiler: the guest `versioned` with other bytes for
//! its marker, which it tells in its result.

use std::path::{Path, PathBuf};

use crate::{Setup, servers, wait};

/// The file name under which tests deploy it.
pub const FILE: &str = "versioned.wasm";

/// The module with this marker, of at most 16 bytes.
///
/// # Panics
/// The marker is too long, or the guest is not built.
#[must_use]
pub fn version(marker: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(servers::guest("versioned")).unwrap();
    let begin = b"version-marker:";
    let at = bytes.windows(begin.len()).position(|window| window == begin);
    let at = at.expect("the guest holds its marker") + begin.len();
    let marker = padded(marker);
    bytes[at..at + 16].copy_from_slice(marker.as_bytes());
    bytes
}

/// The marker as the module tells it.
///
/// # Panics
/// It is too long.
#[must_use]
pub fn padded(marker: &str) -> String {
    assert!(marker.len() <= 16, "{marker}");
    format!("{marker:.<16}")
}

/// The text of a component whose compiling takes long, about a tenth of a second for each of its
/// functions: each keeps hundreds of values alive over a loop. It holds no jobs.
#[must_use]
pub fn slow(functions: usize) -> String {
    let mut body = String::new();
    for local in 0..400 {
        body.push_str(&format!("(local $l{local} i64)"));
    }
    body.push_str("(loop $again");
    for local in 0..400 {
        let (one, other) = ((local * 7 + 3) % 400, (local * 13 + 5) % 400);
        body.push_str(&format!(
            "(local.set $l{local} (i64.add (i64.mul (local.get $l{one}) (local.get $l{other})) (local.get $l{local})))"
        ));
    }
    body.push_str("(br_if $again (i32.wrap_i64 (local.get $l7))))");
    let functions = format!("(func {body})").repeat(functions);
    format!("(component (core module {functions}))")
}

/// The SHA-256 of a module's bytes, in hex.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    use std::fmt::Write as _;
    sha2::Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Puts bytes in the place of a file by a rename from the folder above, as a careful operator
/// would.
///
/// # Panics
/// The file can't be written.
pub fn move_into_place(file: &Path, bytes: &[u8]) {
    let above = file.parent().unwrap().parent().unwrap();
    let half = above.join(servers::unique("half"));
    std::fs::write(&half, bytes).unwrap();
    std::fs::rename(half, file).unwrap();
}

impl Setup {
    /// The file of the module `versioned` in the jobs folder.
    #[must_use]
    pub fn versioned_file(&self) -> PathBuf {
        self.project.jobs_dir().join(FILE)
    }

    /// Deploys a version of `versioned`.
    ///
    /// # Panics
    /// The file can't be written.
    pub fn deploy_version(&self, marker: &str) {
        move_into_place(&self.versioned_file(), &version(marker));
    }

    /// Runs a job and returns the marker of the version that ran it.
    ///
    /// # Panics
    /// The job fails, or two stages of it saw different versions.
    #[must_use]
    pub fn serving_marker(&self) -> String {
        let id = self.add(&["which"]);
        let row = self.wait_for_status(&id, "SUCCESS");
        marker_of(&row)
    }

    /// Waits until this version runs jobs.
    ///
    /// # Panics
    /// It does not get there.
    pub fn wait_for_version(&self, marker: &str) {
        let wanted = padded(marker);
        let what = format!("version {marker} to serve");
        wait::until_true(&what, || self.serving_marker() == wanted);
    }
}

/// The marker in the result of a job of `versioned`.
///
/// # Panics
/// Two stages saw different versions.
#[must_use]
pub fn marker_of(row: &crate::Json) -> String {
    let result = row.value("result");
    let markers: Vec<&str> =
        result.as_array().unwrap().iter().map(|marker| marker.as_str().unwrap()).collect();
    assert_eq!(markers[0], markers[1], "mixed versions in {row}");
    markers[0].to_owned()
}
