//! Path 2, step C: compiled code on disk, keyed by the module's digest and the engine.
//!
//! A compiled artifact is native code: only what this user wrote, and nobody else can write, is
//! loaded, and only while its bytes are those that were written: an entry's name ends in their
//! SHA-256. Anything doubtful is compiled again.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::compile::CompileError;
use crate::payload::hex;

/// Most bytes of all entries together, where nothing else is set.
pub const DEFAULT_MAX_BYTES: u64 = 1 << 30;
/// How exactly the last use of an entry is known: not every use is worth a write.
const USE_RESOLUTION: Duration = Duration::from_secs(3600);
/// When a half-written entry is one that its writer left behind.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder of compiled code.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
    max_bytes: u64,
}

impl Cache {
    /// A cache in `folder`, which is made for its owner only. Without one, or when it can't be
    /// used, everything is compiled each time.
    #[must_use]
    pub fn new(folder: Option<&Path>) -> Self {
        Self::outside(folder, &[], DEFAULT_MAX_BYTES)
    }

    /// [`Self::new`], of at most `max_bytes`. A folder within one of `jobs_dirs` is not used:
    /// who may write modules must not write native code.
    #[must_use]
    pub fn outside(folder: Option<&Path>, jobs_dirs: &[PathBuf], max_bytes: u64) -> Self {
        let folder = folder.and_then(|folder| match prepare(folder, jobs_dirs) {
            Ok(()) => Some(folder.to_path_buf()),
            Err(reason) => {
                tracing::warn!(
                    "no code cache in `{}`: {reason}; modules are compiled at each start",
                    folder.display()
                );
                None
            }
        });
        Self { folder, max_bytes }
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
        let prefix = prefix(engine, digest);
        let found = self.folder.as_deref().and_then(|folder| find(engine, folder, &prefix));
        if let Some(component) = found {
            return Ok(component);
        }
        let compiled = compile()?;
        if let Some(folder) = &self.folder {
            let path = folder.join(format!("{prefix}{}.{ENDING}", hex(&Sha256::digest(&compiled))));
            if let Err(error) = write(&path, &compiled) {
                tracing::warn!("cannot keep compiled code in `{}`: {error}", path.display());
            }
            trim(folder, self.max_bytes, &path);
        }
        // SAFETY: these bytes came from our own compiler just now.
        unsafe { Component::deserialize(engine, &compiled) }
            .map_err(|error| CompileError::Unfit(format!("{error:#}")))
    }
}

/// The entry of this key, if it can be trusted. One that can't is removed, so that it is
/// looked at once only.
fn find(engine: &Engine, folder: &Path, prefix: &str) -> Option<Component> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let name = entry.file_name();
        let Some(sum) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else {
            continue;
        };
        let Some(sum) = sum.strip_suffix(ENDING).and_then(|sum| sum.strip_suffix('.')) else {
            continue;
        };
        match load(engine, &entry.path(), sum) {
            Ok(component) => return Some(component),
            Err(reason) => {
                tracing::warn!(
                    "compiled code `{}` is compiled again: {reason}",
                    entry.path().display()
                );
                // What can't be removed is doubted again at the next start.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    None
}

/// What entries' names end in.
const ENDING: &str = "cwasm";

/// How the names of a module's entries for this engine begin.
fn prefix(engine: &Engine, digest: &str) -> String {
    let mut settings = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    format!("{digest}-{:016x}-", settings.finish())
}

fn prepare(folder: &Path, jobs_dirs: &[PathBuf]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(text)?;
    let found = fs::symlink_metadata(folder).map_err(text)?;
    check_owner(&found, libc_uid())?;
    if found.mode() & 0o777 != 0o700 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(text)?;
    }
    let real = folder.canonicalize().map_err(text)?;
    let jobs_dirs = jobs_dirs.iter().filter_map(|jobs_dir| jobs_dir.canonicalize().ok());
    match jobs_dirs.into_iter().find(|jobs_dir| real.starts_with(jobs_dir)) {
        Some(jobs_dir) => Err(format!(
            "it lies in the jobs folder `{}`, and is native code; choose another --data-dir",
            jobs_dir.display()
        )),
        None => Ok(()),
    }
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
fn load(engine: &Engine, path: &Path, sum: &str) -> Result<Component, String> {
    const O_NOFOLLOW: i32 =
        if cfg!(any(target_arch = "aarch64", target_arch = "arm")) { 0o100_000 } else { 0o400_000 };
    const O_NONBLOCK: i32 = 0o4_000; // a FIFO in the place of an entry must not make us wait
    let text = |error: std::io::Error| error.to_string();
    let flags = O_NOFOLLOW | O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(text)?;
    let found = file.metadata().map_err(text)?;
    if !found.is_file() {
        return Err("it is no regular file".into());
    }
    check_owner(&found, libc_uid())?;
    if checksum(&file).map_err(text)? != sum {
        return Err("its bytes are not those that were written".into());
    }
    let is_stale = |used: SystemTime| used.elapsed().is_ok_and(|age| age > USE_RESOLUTION);
    if found.modified().is_ok_and(is_stale) {
        // For `trim`. Not noted, the entry only looks older than it is.
        let _ = file.set_modified(SystemTime::now());
    }
    // SAFETY: the file belongs to this user, nobody else can write to it, and its bytes are those
    // that `write` was given. wasmtime checks that engine and settings are those of this process.
    // The path names the open descriptor, so that it is the checked file that is mapped.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    unsafe { Component::deserialize_file(engine, opened) }.map_err(|error| error.to_string())
}

fn checksum(mut file: &fs::File) -> std::io::Result<String> {
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&sum.finalize())),
            read => sum.update(&buffer[..read]),
        }
    }
}

/// Removes the entries that were not used for longest until the rest fits, but never `kept`;
/// and what writers left behind.
fn trim(folder: &Path, max_bytes: u64, kept: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let ending = path.extension().unwrap_or_default();
        if ending == ENDING {
            found.push((used, metadata.len(), path));
        } else if ending == "tmp" && used.elapsed().is_ok_and(|age| age > ABANDONED) {
            // Left for the next time where it can't be removed.
            let _ = fs::remove_file(path);
        }
    }
    found.sort();
    let mut total: u64 = found.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in found {
        if total <= max_bytes {
            return;
        }
        // Whoever has it mapped keeps it.
        if path != kept && fs::remove_file(&path).is_ok() {
            total = total.saturating_sub(size);
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn entries(&self) -> Vec<PathBuf> {
            let cache = self.0.join("cache");
            let mut paths: Vec<_> =
                fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn compile(cache: &Cache, digest: &str) {
        let engine = Engine::default();
        let compile = || Ok(engine.precompile_component(COMPONENT).unwrap());
        drop(cache.component(&engine, digest, compile).unwrap());
    }

    /// The empty component.
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn an_entry_is_made_once_and_found_again() {
        let folder = Folder::new();
        let cache = Cache::new(Some(&folder.0.join("cache")));
        compile(&cache, "d");
        let [entry] = folder.entries().try_into().unwrap();
        let inode = fs::metadata(&entry).unwrap().ino();
        compile(&cache, "d");
        assert_eq!(folder.entries(), std::slice::from_ref(&entry));
        assert_eq!(fs::metadata(&entry).unwrap().ino(), inode);
        assert_eq!(fs::metadata(&entry).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_doubtful_entry_is_made_again() {
        let folder = Folder::new();
        let cache = Cache::new(Some(&folder.0.join("cache")));
        compile(&cache, "d");
        let [entry] = folder.entries().try_into().unwrap();
        let good = fs::read(&entry).unwrap();
        let elsewhere = folder.0.join("elsewhere");
        fs::write(&elsewhere, &good).unwrap();
        let spoil: [(&str, &dyn Fn()); 6] = [
            ("truncated", &|| fs::write(&entry, &good[..good.len() / 2]).unwrap()),
            ("changed", &|| {
                let mut bytes = good.clone();
                bytes[good.len() / 2] ^= 1;
                fs::write(&entry, bytes).unwrap();
            }),
            ("empty", &|| fs::write(&entry, b"").unwrap()),
            ("writable by others", &|| {
                fs::set_permissions(&entry, fs::Permissions::from_mode(0o666)).unwrap();
            }),
            ("a link", &|| {
                fs::remove_file(&entry).unwrap();
                std::os::unix::fs::symlink(&elsewhere, &entry).unwrap();
            }),
            ("a FIFO", &|| {
                fs::remove_file(&entry).unwrap();
                let made = std::process::Command::new("mkfifo").arg(&entry).status();
                assert!(made.unwrap().success());
            }),
        ];
        for (what, spoil) in spoil {
            spoil();
            compile(&cache, "d");
            assert_eq!(folder.entries(), std::slice::from_ref(&entry), "{what}");
            let found = fs::symlink_metadata(&entry).unwrap();
            assert!(found.is_file() && found.mode() & 0o777 == 0o600, "{what}: {found:?}");
            assert_eq!(fs::read(&entry).unwrap(), good, "{what}");
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_when_there_is_too_much() {
        let folder = Folder::new();
        let cache = Cache::outside(Some(&folder.0.join("cache")), &[], 0);
        compile(&cache, "a");
        assert_eq!(folder.entries().len(), 1, "the one in use stays");
        let size = fs::metadata(&folder.entries()[0]).unwrap().len();
        let cache = Cache { max_bytes: 2 * size, ..cache };
        for (digest, age) in [("b", 300), ("c", 200)] {
            compile(&cache, digest);
            let entry = folder.entries().into_iter().find(|path| is_of(path, digest)).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            fs::File::open(entry).unwrap().set_modified(then).unwrap();
        }
        compile(&cache, "d");
        let left = folder.entries();
        assert_eq!(left.len(), 2);
        assert!(left.iter().any(|path| is_of(path, "d")));
        assert!(!left.iter().any(|path| is_of(path, "b")), "{left:?}");
    }

    fn is_of(path: &Path, digest: &str) -> bool {
        path.file_name().unwrap().to_string_lossy().starts_with(&format!("{digest}-"))
    }

    #[test]
    fn a_folder_within_a_jobs_folder_is_not_used() {
        let folder = Folder::new();
        let cache =
            Cache::outside(Some(&folder.0.join("cache")), std::slice::from_ref(&folder.0), 1 << 20);
        compile(&cache, "d");
        assert!(folder.entries().is_empty());
    }

    #[test]
    fn the_folder_is_its_owner_s_only() {
        let folder = Folder::new();
        let path = folder.0.join("cache");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let _ = Cache::new(Some(&path));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        compile(&Cache::new(Some(&path)), "d");
        assert!(folder.entries().is_empty(), "others could have written to it");
    }
}
