//! Path 2, step B: read a file, check it against the world, compile, ask what it holds.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::cache::Cache;
use super::definition::{Definition, DefinitionError};
use crate::payload::hex;
use crate::sandbox::{Prepared, Sandbox};
use crate::store::claim::ModuleVersion;

/// Largest module file, in bytes.
pub const MAX_MODULE_BYTES: u64 = 64 << 20;

/// The interface that a module must export, in the version that this host serves.
pub const EXPORT: &str = "sqjobs:job/job@1.0.0";

/// Imports of our own package.
const OWN_IMPORTS: [&str; 4] = [
    "sqjobs:job/types@1.0.0",
    "sqjobs:job/log@1.0.0",
    "sqjobs:job/progress@1.0.0",
    "sqjobs:job/add-job@1.0.0",
];

/// WASI packages that are always linked: empty, or denying at the call.
const WASI_PACKAGES: [&str; 6] =
    ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:random/", "wasi:filesystem/", "wasi:sockets/"];

/// Why a file did not become a module. The others serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each field is what its variant's message says
pub enum LoadError {
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("`{}` is written to all the time; move a finished file into its place", path.display())]
    Changing { path: PathBuf },
    #[error("`{}` has {size} bytes; a module has at most {MAX_MODULE_BYTES}", path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error(
        "`{}` is a core WebAssembly module, not a component; build it for the target wasm32-wasip2",
        path.display()
    )]
    CoreModule { path: PathBuf },
    #[error("`{}` is not a WebAssembly component: {reason}", path.display())]
    NotAComponent { path: PathBuf, reason: String },
    #[error("`{}` exports no `{EXPORT}`: it holds no jobs; write it with sqjobs-sdk", path.display())]
    NoJobs { path: PathBuf },
    #[error(
        "`{}` was built for `{found}`, and this host serves `{EXPORT}`; use a newer sqjobs-host, or build with an SDK of this version",
        path.display()
    )]
    OtherVersion { path: PathBuf, found: String },
    #[error("`{}` imports `{import}`, which this host does not offer", path.display())]
    UnknownImport { path: PathBuf, import: String },
    #[error("`{}` does not fit the world sqjobs:job@1.0.0: {reason}", path.display())]
    Unfit { path: PathBuf, reason: String },
    #[error("`{}` failed in `describe`: {reason}", path.display())]
    Describe { path: PathBuf, reason: String },
    #[error("`{}` describes its jobs wrongly: {source}", path.display())]
    Definition { path: PathBuf, source: DefinitionError },
}

/// A module that can serve.
pub struct Module {
    /// Name, version and digest.
    pub version: ModuleVersion,
    /// The file it was read from.
    pub path: PathBuf,
    /// The file's size in bytes.
    pub size: u64,
    /// Name and version of the SDK that built it.
    pub sdk: String,
    /// The interfaces it imports.
    pub imports: Vec<String>,
    /// The jobs it holds.
    pub jobs: Vec<Definition>,
    /// What instances are made from.
    pub prepared: Prepared,
}

/// Reads files into modules.
pub struct Loader {
    sandbox: Arc<Sandbox>,
    cache: Cache,
}

impl Loader {
    /// A loader that compiles for `sandbox` and keeps compiled code in `cache`.
    #[must_use]
    pub fn new(sandbox: Arc<Sandbox>, cache: Cache) -> Self {
        Self { sandbox, cache }
    }

    /// Loads one file.
    ///
    /// # Errors
    /// It can't serve, and why.
    pub async fn load(&self, path: &Path) -> Result<Module, LoadError> {
        let (owned, sandbox, cache) =
            (path.to_path_buf(), self.sandbox.clone(), self.cache.clone());
        let prepare = move || prepare(&owned, &sandbox, &cache);
        let prepared = tokio::task::spawn_blocking(prepare).await.unwrap_or_else(|error| {
            Err(LoadError::NotAComponent { path: path.into(), reason: error.to_string() })
        })?;
        let described = self.sandbox.describe(&prepared.prepared).await;
        let description =
            described.map_err(|reason| LoadError::Describe { path: path.into(), reason })?;
        let jobs = Definition::read_all(description.jobs)
            .map_err(|source| LoadError::Definition { path: path.into(), source })?;
        Ok(Module {
            version: ModuleVersion {
                name: module_name(path),
                version: prepared.version,
                digest: prepared.digest,
            },
            path: path.to_path_buf(),
            size: prepared.size,
            sdk: description.sdk,
            imports: prepared.imports,
            jobs,
            prepared: prepared.prepared,
        })
    }
}

/// A module's name: its file's, without `.wasm`.
#[must_use]
pub fn module_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

struct Compiled {
    prepared: Prepared,
    digest: String,
    size: u64,
    version: Option<String>,
    imports: Vec<String>,
}

/// What takes a processor for long: read, digest, compile, check.
fn prepare(path: &Path, sandbox: &Sandbox, cache: &Cache) -> Result<Compiled, LoadError> {
    let bytes = read(path)?;
    if !bytes.starts_with(b"\0asm") {
        let reason = "it does not begin with the WebAssembly magic number".into();
        return Err(LoadError::NotAComponent { path: path.into(), reason });
    }
    // Bytes 4 to 8: version and layer. Layer 0 is a core module.
    if bytes.get(6..8) == Some(&[0, 0]) {
        return Err(LoadError::CoreModule { path: path.into() });
    }
    let digest = hex(&Sha256::digest(&bytes));
    let component = cache.component(sandbox.engine(), &digest, &bytes).map_err(|error| {
        LoadError::NotAComponent { path: path.into(), reason: error.root_cause().to_string() }
    })?;
    let imports = check_world(path, sandbox, &component)?;
    let prepared = sandbox
        .prepare(&component)
        .map_err(|error| LoadError::Unfit { path: path.into(), reason: format!("{error:#}") })?;
    let size = bytes.len() as u64;
    Ok(Compiled { prepared, digest, size, version: version(&bytes), imports })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read { path: path.into(), source };
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    (&file).take(MAX_MODULE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    // A mix of two versions must not be taken for one.
    let after = file.metadata().map_err(failed)?;
    if (before.len(), before.modified().ok()) != (after.len(), after.modified().ok()) {
        return Err(LoadError::Changing { path: path.into() });
    }
    let size = bytes.len() as u64;
    if size > MAX_MODULE_BYTES {
        return Err(LoadError::TooLarge { path: path.into(), size: found.len() });
    }
    Ok(bytes)
}

/// Checks imports and exports by name, so that the error can name what is wrong; returns the
/// imports.
fn check_world(
    path: &Path,
    sandbox: &Sandbox,
    component: &Component,
) -> Result<Vec<String>, LoadError> {
    let engine = sandbox.engine();
    let ty = component.component_type();
    let exports: Vec<String> = ty
        .exports(engine)
        .filter(|(_, item)| matches!(item.ty, ComponentItem::ComponentInstance(_)))
        .map(|(name, _)| name.to_owned())
        .collect();
    if !exports.iter().any(|name| name == EXPORT) {
        return Err(match exports.iter().find(|name| name.starts_with("sqjobs:job/job@")) {
            Some(found) => LoadError::OtherVersion { path: path.into(), found: found.clone() },
            None => LoadError::NoJobs { path: path.into() },
        });
    }
    let imports: Vec<String> = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
    for import in &imports {
        let is_offered = OWN_IMPORTS.contains(&import.as_str())
            || WASI_PACKAGES.iter().any(|package| import.starts_with(package));
        if !is_offered {
            return Err(LoadError::UnknownImport { path: path.into(), import: import.clone() });
        }
    }
    Ok(imports)
}

/// The version that the component's metadata tells: the custom section `version` of the
/// WebAssembly tool conventions, at the component's top level.
fn version(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes.get(8..)?;
    while let Some((&id, after)) = rest.split_first() {
        let (size, after) = leb128(after)?;
        let (section, next) = after.split_at_checked(size)?;
        if id == 0 {
            let (name_size, named) = leb128(section)?;
            let (name, content) = named.split_at_checked(name_size)?;
            if name == b"version" {
                let text = std::str::from_utf8(content).ok()?;
                return (text.len() <= 256).then(|| text.to_owned());
            }
        }
        rest = next;
    }
    None
}

/// An unsigned number of at most 32 bits in LEB128, and what follows it.
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_its_custom_section() {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.extend([0, 5, 4, b'n', b'a', b'm', b'e']);
        bytes.extend([0, 13, 7]);
        bytes.extend(b"version1.2.3");
        assert_eq!(version(&bytes).as_deref(), Some("1.2.3"));
        assert_eq!(version(&bytes[..bytes.len() - 1]), None);
        assert_eq!(version(b"\0asm"), None);
    }
}
