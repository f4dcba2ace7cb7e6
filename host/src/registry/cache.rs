//! Path 2, step C: compiled code on disk, keyed by the module's digest and the engine.
//!
//! A compiled artifact is native code: only what this user wrote, and nobody else can write, is
//! loaded; anything doubtful is compiled again.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

use super::compile::CompileError;

/// A folder of compiled code.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// A cache in `folder`, which is made for its owner only. Without one, or when it can't be
    /// used, everything is compiled each time.
    #[must_use]
    pub fn new(folder: Option<&Path>) -> Self {
        let folder = folder.and_then(|folder| match prepare(folder) {
            Ok(()) => Some(folder.to_path_buf()),
            Err(reason) => {
                tracing::warn!(
                    "no code cache in `{}`: {reason}; modules are compiled at each start",
                    folder.display()
                );
                None
            }
        });
        Self { folder }
    }

    /// The compiled code of a module, from the cache, or by `compile` now and kept.
    ///
    /// # Errors
    /// Those of `compile`.
    pub fn component(
        &self,
        engine: &Engine,
        digest: &str,
        compile: impl FnOnce() -> Result<Vec<u8>, CompileError>,
    ) -> Result<Component, CompileError> {
        let path = self.path(engine, digest);
        if let Some(component) = path.as_deref().and_then(|path| load(engine, path)) {
            return Ok(component);
        }
        let compiled = compile()?;
        if let Some(path) = &path
            && let Err(error) = write(path, &compiled)
        {
            tracing::warn!("cannot keep compiled code in `{}`: {error}", path.display());
        }
        // SAFETY: these bytes came from our own compiler just now.
        unsafe { Component::deserialize(engine, &compiled) }
            .map_err(|error| CompileError::Unfit(format!("{error:#}")))
    }

    fn path(&self, engine: &Engine, digest: &str) -> Option<PathBuf> {
        let mut settings = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut settings);
        let file = format!("{digest}-{:016x}.cwasm", settings.finish());
        self.folder.as_ref().map(|folder| folder.join(file))
    }
}

fn prepare(folder: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| error.to_string())?;
    let found = fs::symlink_metadata(folder).map_err(|error| error.to_string())?;
    check_owner(&found, libc_uid())
}

/// Whether only this user can have written what `found` describes.
fn check_owner(found: &fs::Metadata, user: u32) -> Result<(), String> {
    if found.file_type().is_symlink() {
        return Err("it is a link".into());
    }
    if found.uid() != user {
        return Err(format!("it belongs to user {}", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        return Err("others can write to it".into());
    }
    Ok(())
}

fn libc_uid() -> u32 {
    // The owner of a process's own entry is its effective user.
    fs::metadata("/proc/self").map_or(u32::MAX, |found| found.uid())
}

/// Opens an entry without following links, checks the very file that is mapped, and loads it.
fn load(engine: &Engine, path: &Path) -> Option<Component> {
    const O_NOFOLLOW: i32 = 0o400_000;
    let file = fs::OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).ok()?;
    let found = file.metadata().ok()?;
    if let Err(reason) = check_owner(&found, libc_uid()) {
        tracing::warn!("compiled code `{}` is not used: {reason}", path.display());
        return None;
    }
    // SAFETY: the file belongs to this user, nobody else can write to it, and it was written
    // whole by `write`. wasmtime checks that engine and settings are those of this process.
    // The path names the open descriptor, so that it is the checked file that is mapped.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    match unsafe { Component::deserialize_file(engine, opened) } {
        Ok(component) => Some(component),
        Err(error) => {
            tracing::warn!("compiled code `{}` is compiled again: {error}", path.display());
            None
        }
    }
}

/// Writes an entry whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of a full disk must not stay; the first error is the one that counts.
        let _ = fs::remove_file(&temporary);
    }
    written
}
