//! Path 2, step B: read a file, check it against the world, compile, ask what it holds.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::cache::Cache;
use super::compile::{CompileError, CompileSettings, Compiler, Wish};
use super::definition::{Definition, DefinitionError};
use super::measure;
use crate::config::Config;
use crate::config::granted::{ModuleSource, toml_key};
use crate::config::live::LiveConfig;
use crate::sandbox::{Prepared, Sandbox};
use crate::store::claim::ModuleVersion;

/// The interface that a module must export, in the version that this host serves.
pub const EXPORT: &str = "sqjobs:job/job@1.0.0";

/// Imports of our own package.
const OWN_IMPORTS: [&str; 4] = [
    "sqjobs:job/types@1.0.0",
    "sqjobs:job/log@1.0.0",
    "sqjobs:job/progress@1.0.0",
    "sqjobs:job/add-job@1.0.0",
];

/// The package that is linked too, but only modules with a grant may import.
const HTTP_PACKAGE: &str = "wasi:http/";

/// WASI packages that are always linked: empty, or denying at the call.
const WASI_PACKAGES: [&str; 6] =
    ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:random/", "wasi:filesystem/", "wasi:sockets/"];

/// Why a file did not become a module. The others serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each field is what its variant's message says
pub enum LoadError {
    #[error("cannot read `{}`; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("`{}` is written to all the time; move a finished file into its place", path.display())]
    Changing { path: PathBuf },
    #[error(
        "`{}` has {size} bytes, and a module may have {limit}; make it smaller, or raise `module-size` in [compile]",
        path.display()
    )]
    TooLarge { path: PathBuf, size: u64, limit: u64 },
    #[error(
        "`{}` has {count} functions, and a module may have {limit}; make it smaller, or raise `functions` in [compile]",
        path.display()
    )]
    TooManyFunctions { path: PathBuf, count: u64, limit: u64 },
    #[error("`{}` nests components deeper than {limit}; make it flatter", path.display())]
    TooDeep { path: PathBuf, limit: usize },
    #[error(
        "`{}` is not the file that {place} pins: its digest is sha256:{found}, not sha256:{pinned}; deploy that file, or change `digest`",
        path.display()
    )]
    Pinned { path: PathBuf, place: String, found: String, pinned: String },
    #[error("`{}` can't be compiled: {source}", path.display())]
    Compile { path: PathBuf, source: CompileError },
    #[error(
        "`{}` imports `{import}`, which was not granted; to grant it, list the hosts in {place}, as in http = [\"api.example.com:443\"]{hint}",
        path.display()
    )]
    NotGranted { path: PathBuf, import: String, place: String, hint: &'static str },
    #[error("`{}` goes beyond a cap: {reason}", path.display())]
    BeyondCap { path: PathBuf, reason: String },
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
    UnknownImport { path: PathBuf, import: String, imports: Vec<String> },
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
    /// The folder in which that was found, by which grants may be bound.
    pub folder: PathBuf,
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

impl Module {
    /// What grants depend on.
    #[must_use]
    pub fn source(&self) -> ModuleSource<'_> {
        ModuleSource {
            name: &self.version.name,
            digest: &self.version.digest,
            folder: &self.folder,
        }
    }
}

/// Reads files into modules.
pub struct Loader {
    sandbox: Arc<Sandbox>,
    cache: Cache,
    compiler: Arc<Compiler>,
    settings: Settings,
    takes_ungranted: bool,
}

/// Where grants, pins and caps come from.
enum Settings {
    Unknown,
    Fixed(Arc<Config>),
    /// Each load takes them as they are then.
    Live(Arc<LiveConfig>),
}

impl Settings {
    fn now(&self) -> Option<Arc<Config>> {
        match self {
            Self::Unknown => None,
            Self::Fixed(config) => Some(config.clone()),
            Self::Live(live) => Some(live.load()),
        }
    }
}

impl Loader {
    /// A loader that compiles for `sandbox` and keeps compiled code in `cache`. It compiles in
    /// this process, and knows of no grant.
    #[must_use]
    pub fn new(sandbox: Arc<Sandbox>, cache: Cache) -> Self {
        let compiler = Arc::new(Compiler::in_process(CompileSettings::default()));
        Self { sandbox, cache, compiler, settings: Settings::Unknown, takes_ungranted: false }
    }

    /// With the grants, pins and caps of this configuration.
    #[must_use]
    pub fn with_config(self, config: Arc<Config>) -> Self {
        Self { settings: Settings::Fixed(config), ..self }
    }

    /// With the grants, pins and caps of the settings as they are at each load.
    #[must_use]
    pub fn with_live_config(self, live: Arc<LiveConfig>) -> Self {
        Self { settings: Settings::Live(live), ..self }
    }

    /// With another compiler.
    #[must_use]
    pub fn with_compiler(self, compiler: Arc<Compiler>) -> Self {
        Self { compiler, ..self }
    }

    /// Taking modules whose imports were not granted as well: to look at, not to run.
    #[must_use]
    pub fn for_inspection(self) -> Self {
        Self { takes_ungranted: true, ..self }
    }

    /// Loads one file. Given up, it stops compiling.
    ///
    /// # Errors
    /// It can't serve, and why.
    pub async fn load(&self, path: &Path) -> Result<Module, LoadError> {
        self.load_in_place(path, path).await
    }

    /// Loads the bytes of `file` as the module of the file `path`: under its name, and what is
    /// granted and pinned there. Errors name `file`, which is what is at fault.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_in_place(&self, file: &Path, path: &Path) -> Result<Module, LoadError> {
        self.load_named(file, path, file).await
    }

    /// As [`Self::load_in_place`], for a file that nobody else knows: errors name `named`.
    pub(super) async fn load_named(
        &self,
        file: &Path,
        path: &Path,
        named: &Path,
    ) -> Result<Module, LoadError> {
        let (config, wish) = (self.settings.now(), Wish::default());
        let _waiting = wish.waiting();
        let work = Work {
            file: file.to_path_buf(),
            path: path.to_path_buf(),
            named: named.to_path_buf(),
            wish,
            sandbox: self.sandbox.clone(),
            cache: self.cache.clone(),
            compiler: self.compiler.clone(),
            config: config.clone(),
            takes_ungranted: self.takes_ungranted,
        };
        let prepared =
            tokio::task::spawn_blocking(move || work.prepare()).await.unwrap_or_else(|error| {
                Err(LoadError::NotAComponent { path: named.into(), reason: error.to_string() })
            })?;
        let config = config.as_deref();
        let limits = config.map(|config| config.module_limits(&module_name(path)));
        let described = self.sandbox.describe(&prepared.prepared, limits.unwrap_or_default()).await;
        let description =
            described.map_err(|reason| LoadError::Describe { path: named.into(), reason })?;
        let jobs = Definition::read_all(description.jobs)
            .map_err(|source| LoadError::Definition { path: named.into(), source })?;
        let module = Module {
            version: ModuleVersion {
                name: module_name(path),
                version: prepared.version,
                digest: prepared.digest,
            },
            path: path.to_path_buf(),
            folder: folder_of(path),
            size: prepared.size,
            sdk: description.sdk,
            imports: prepared.imports,
            jobs,
            prepared: prepared.prepared,
        };
        self.check_jobs(config, named, &module)?;
        Ok(module)
    }

    /// Checks what could not be known before the module had told its jobs.
    fn check_jobs(
        &self,
        config: Option<&Config>,
        named: &Path,
        module: &Module,
    ) -> Result<(), LoadError> {
        let Some(config) = config else { return Ok(()) };
        let names: Vec<&str> = module.jobs.iter().map(|job| job.name.as_str()).collect();
        let is_granted =
            |import: &String| config.grants_import(module.source(), &names, import) == Some(true);
        let wants_http = module.imports.iter().find(|import| import.starts_with(HTTP_PACKAGE));
        if let Some(import) = wants_http.filter(|import| !is_granted(import))
            && !self.takes_ungranted
        {
            return Err(not_granted(named, module.source(), import, Some(config)));
        }
        let mut jobs = module.jobs.iter();
        match jobs.find_map(|job| config.beyond_cap(&module.version.name, job)) {
            Some(reason) if !self.takes_ungranted => {
                Err(LoadError::BeyondCap { path: named.into(), reason })
            }
            _ => Ok(()),
        }
    }
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn not_granted(
    path: &Path,
    module: ModuleSource<'_>,
    import: &str,
    config: Option<&Config>,
) -> LoadError {
    let settings = config.and_then(|config| config.modules.get(module.name));
    let is_bound_elsewhere = settings
        .and_then(|settings| settings.grants.as_ref())
        .is_some_and(|grants| grants.covers(import) == Some(true));
    LoadError::NotGranted {
        path: path.into(),
        import: import.to_owned(),
        place: format!("[modules.{}.grants]", toml_key(module.name)),
        hint: if is_bound_elsewhere {
            "; the ones there are bound to another `jobs-dir`"
        } else {
            ""
        },
    }
}

/// A module's name: its file's, without `.wasm`.
#[must_use]
pub fn module_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// What one load needs on a thread that may block.
struct Work {
    /// What is read.
    file: PathBuf,
    /// What it is the module of.
    path: PathBuf,
    /// What errors name.
    named: PathBuf,
    wish: Wish,
    sandbox: Arc<Sandbox>,
    cache: Cache,
    compiler: Arc<Compiler>,
    config: Option<Arc<Config>>,
    takes_ungranted: bool,
}

struct Compiled {
    prepared: Prepared,
    digest: String,
    size: u64,
    version: Option<String>,
    imports: Vec<String>,
}

impl Work {
    /// What takes a processor for long: read, check, digest, compile, check the world.
    fn prepare(&self) -> Result<Compiled, LoadError> {
        let path = self.named.as_path();
        let bytes = read(&self.file, self.compiler.settings().module_bytes)?;
        self.check_form(&bytes)?;
        let digest = measure::digest(&bytes);
        self.check_pin(&digest)?;
        let engine = self.sandbox.engine();
        let compile = || self.compiler.compile(engine, &bytes, &self.wish);
        let component =
            self.cache.component(engine, &digest, compile).map_err(|source| match source {
                CompileError::Refused(reason) => {
                    LoadError::NotAComponent { path: path.into(), reason }
                }
                source => LoadError::Compile { path: path.into(), source },
            })?;
        let imports = self.check_world(&component, &digest)?;
        let prepared = self.sandbox.prepare(&component).map_err(|error| LoadError::Unfit {
            path: path.into(),
            reason: format!("{error:#}"),
        })?;
        let (size, version) = (bytes.len() as u64, measure::version(&bytes));
        Ok(Compiled { prepared, digest, size, version, imports })
    }

    /// Whether the bytes look like a component of a size that is worth a compiler's time.
    fn check_form(&self, bytes: &[u8]) -> Result<(), LoadError> {
        let path = || self.named.clone();
        if !bytes.starts_with(b"\0asm") {
            let reason = "it does not begin with the WebAssembly magic number".into();
            return Err(LoadError::NotAComponent { path: path(), reason });
        }
        // Bytes 4 to 8: version and layer. Layer 0 is a core module.
        if bytes.get(6..8) == Some(&[0, 0]) {
            return Err(LoadError::CoreModule { path: path() });
        }
        let limit = self.compiler.settings().functions;
        match measure::functions(bytes) {
            Ok(Some(count)) if count > limit => {
                Err(LoadError::TooManyFunctions { path: path(), count, limit })
            }
            Ok(_) => Ok(()),
            Err(measure::TooDeep) => {
                Err(LoadError::TooDeep { path: path(), limit: measure::MAX_DEPTH })
            }
        }
    }

    /// Whether the file is the one that the operator pinned, if one is.
    fn check_pin(&self, digest: &str) -> Result<(), LoadError> {
        let name = module_name(&self.path);
        let settings = self.config.as_deref().and_then(|config| config.modules.get(&name));
        match settings.and_then(|settings| settings.digest.as_deref()) {
            Some(pinned) if pinned != digest && !self.takes_ungranted => Err(LoadError::Pinned {
                path: self.named.clone(),
                place: format!("[modules.{}]", toml_key(&name)),
                found: digest.to_owned(),
                pinned: pinned.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks imports and exports by name, so that the error can name what is wrong; returns the
    /// imports.
    fn check_world(&self, component: &Component, digest: &str) -> Result<Vec<String>, LoadError> {
        let (engine, path) = (self.sandbox.engine(), || self.named.clone());
        let ty = component.component_type();
        let exports: Vec<String> = ty
            .exports(engine)
            .filter(|(_, item)| matches!(item.ty, ComponentItem::ComponentInstance(_)))
            .map(|(name, _)| name.to_owned())
            .collect();
        if !exports.iter().any(|name| name == EXPORT) {
            return Err(match exports.iter().find(|name| name.starts_with("sqjobs:job/job@")) {
                Some(found) => LoadError::OtherVersion { path: path(), found: found.clone() },
                None => LoadError::NoJobs { path: path() },
            });
        }
        let imports: Vec<String> = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
        if let Some(import) = imports.iter().find(|import| !is_offered(import)).cloned() {
            return Err(LoadError::UnknownImport { path: path(), import, imports });
        }
        for import in &imports {
            self.check_http(import, digest)?;
        }
        Ok(imports)
    }

    /// Refuses a module that wants HTTP where no grant could be meant for it, before it says
    /// which jobs it holds.
    fn check_http(&self, import: &str, digest: &str) -> Result<(), LoadError> {
        if !import.starts_with(HTTP_PACKAGE) || self.takes_ungranted {
            return Ok(());
        }
        let (name, folder) = (module_name(&self.path), folder_of(&self.path));
        let module = ModuleSource { name: &name, digest, folder: &folder };
        let config = self.config.as_deref();
        if config.is_some_and(|config| config.may_grant_import(module, import)) {
            return Ok(());
        }
        Err(not_granted(&self.named, module, import, config))
    }
}

/// Whether this host knows an import, granted or not.
#[must_use]
pub fn is_offered(import: &str) -> bool {
    OWN_IMPORTS.contains(&import)
        || import.starts_with(HTTP_PACKAGE)
        || WASI_PACKAGES.iter().any(|package| import.starts_with(package))
}

/// Reads a regular file of at most `limit` bytes. Nothing else is opened for reading: a FIFO
/// would wait for a writer, and a device may do anything.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read { path: path.into(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    // What lies there may have changed since: this open waits for nobody, and the descriptor
    // itself is looked at.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let flags = i32::try_from(flags).unwrap_or(0);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    let too_large = |size| LoadError::TooLarge { path: path.into(), size, limit };
    if found.len() > limit {
        return Err(too_large(found.len()));
    }
    let mut bytes = Vec::new();
    (&file).take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    // A mix of two versions must not be taken for one.
    let after = file.metadata().map_err(failed)?;
    if (found.len(), found.modified().ok()) != (after.len(), after.modified().ok()) {
        return Err(LoadError::Changing { path: path.into() });
    }
    let size = bytes.len() as u64;
    if size > limit { Err(too_large(size)) } else { Ok(bytes) }
}
