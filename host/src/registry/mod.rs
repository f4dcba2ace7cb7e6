//! Path 1, step 5, and path 2, step D: job name to the module that serves it.
//!
//! Readers take a snapshot; a change is one atomic store of a new one. An attempt keeps the
//! module that it began with, whatever is deployed meanwhile.

pub mod cache;
pub mod definition;
pub mod load;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{info, warn};

use crate::outage::chain;
use crate::store::unique::UniqueRules;
use crate::text::printable;
use definition::Definition;
use load::{Loader, Module};

/// A job that can be run.
#[derive(Clone)]
pub struct Served {
    /// The module that holds it.
    pub module: Arc<Module>,
    /// What the module says of it.
    pub definition: Definition,
}

/// A file, or a job in it, that does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// The job that another file serves already; `None` where the whole file does not serve.
    pub job: Option<String>,
    /// Why.
    pub reason: String,
}

/// What is deployed at one moment.
#[derive(Default)]
pub struct Snapshot {
    /// By job name.
    pub jobs: BTreeMap<String, Served>,
    /// The modules, in the order of their files' names.
    pub modules: Vec<Arc<Module>>,
    /// What does not serve, and why.
    pub refused: Vec<Refused>,
    /// Which calls of each job count as the same.
    pub unique: Arc<UniqueRules>,
}

/// The modules of a host.
pub struct Registry {
    current: ArcSwap<Snapshot>,
}

/// A jobs folder can't be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the jobs folder `{}`; make it and copy modules (*.wasm) into it, or choose another with --jobs-dir",
    path.display()
)]
pub struct FolderError {
    path: PathBuf,
    source: std::io::Error,
}

impl Registry {
    /// Loads all `*.wasm` of the folders. A bad file is refused, and the others serve.
    ///
    /// # Errors
    /// A folder can't be read.
    pub async fn load(loader: &Loader, folders: &[PathBuf]) -> Result<Self, FolderError> {
        Self::read(loader, folders, true).await
    }

    /// As [`Self::load`], without a log line for each module: for a command that is about one job.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_silently(loader: &Loader, folders: &[PathBuf]) -> Result<Self, FolderError> {
        Self::read(loader, folders, false).await
    }

    async fn read(
        loader: &Loader,
        folders: &[PathBuf],
        is_told: bool,
    ) -> Result<Self, FolderError> {
        let mut snapshot = Snapshot::default();
        for path in files(folders)? {
            let before = snapshot.refused.len();
            match loader.load(&path).await {
                Ok(module) => {
                    let module = snapshot.add(module);
                    if is_told {
                        module.tell();
                    }
                }
                Err(error) => {
                    let reason = chain(&error);
                    snapshot.refused.push(Refused { path, job: None, reason });
                }
            }
            if is_told {
                snapshot.refused[before..].iter().for_each(Refused::tell);
            }
        }
        Ok(Self { current: ArcSwap::from_pointee(snapshot) })
    }

    /// A registry of one module.
    #[must_use]
    pub fn of(module: Module) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.add(module);
        Self { current: ArcSwap::from_pointee(snapshot) }
    }

    /// Logs what keeps modules from serving this job: who else claims it, and if nobody holds it,
    /// all that was refused.
    pub fn tell_refused_of(&self, job: &str) {
        let snapshot = self.snapshot();
        let is_served = snapshot.jobs.contains_key(job);
        let concerns = |refused: &&Refused| !is_served || refused.job.as_deref() == Some(job);
        snapshot.refused.iter().filter(concerns).for_each(Refused::tell);
    }

    /// The job's current module and definition.
    #[must_use]
    pub fn current(&self, job: &str) -> Option<Served> {
        self.current.load().jobs.get(job).cloned()
    }

    /// All that is deployed now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}

impl Refused {
    fn tell(&self) {
        let module = load::module_name(&self.path);
        let reason = printable(&self.reason);
        match self.job {
            None => warn!(%module, "refused a module: {reason}"),
            Some(_) => warn!(%module, "`{}`: {reason}", self.path.display()),
        }
    }
}

impl Module {
    fn tell(&self) {
        let names: Vec<&str> = self.jobs.iter().map(|job| job.name.as_str()).collect();
        info!(
            module = %self.version.name, module.digest = %self.version.digest,
            "module `{}` serves {}", self.version.name, printable(&names.join(", "))
        );
    }
}

impl Snapshot {
    fn add(&mut self, module: Module) -> Arc<Module> {
        let module = Arc::new(module);
        for definition in &module.jobs {
            if let Some(holder) = self.jobs.get(&definition.name) {
                let reason = format!(
                    "the job `{}` is served by `{}` already; remove it from one of the two",
                    definition.name,
                    holder.module.path.display()
                );
                let job = Some(definition.name.clone());
                self.refused.push(Refused { path: module.path.clone(), job, reason });
                continue;
            }
            let rule = (definition.name.clone(), definition.unique.clone());
            Arc::make_mut(&mut self.unique).extend([rule]);
            let served = Served { module: module.clone(), definition: definition.clone() };
            self.jobs.insert(definition.name.clone(), served);
        }
        self.modules.push(module.clone());
        module
    }
}

/// All `*.wasm` of the folders, by file name, so that who serves a job name that two files claim
/// does not depend on the file system's order.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>, FolderError> {
    let mut files = Vec::new();
    for folder in folders {
        let failed = |source| FolderError { path: folder.clone(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if is_module_file(&path) {
                files.push(path);
            }
        }
    }
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()).then_with(|| a.cmp(b)));
    Ok(files)
}

fn is_module_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".wasm") && !name.starts_with('.')
}
