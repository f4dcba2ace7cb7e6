//! Path 1, step 5, and path 2, step D: job name to the module that serves it.
//!
//! Readers take a snapshot; a change is one atomic store of a new one. An attempt keeps the
//! module that it began with, whatever is deployed meanwhile.

pub mod cache;
pub mod compile;
pub mod definition;
pub mod load;
mod measure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{info, warn};

use crate::outage::chain;
use crate::text::printable;
use definition::Definition;
use load::{LoadError, Loader, Module};

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
        let mut snapshot = Snapshot::default();
        for path in files(folders)? {
            match loader.load(&path).await {
                Ok(module) => snapshot.add(module),
                Err(error) => snapshot.refuse(path, &error),
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

impl Snapshot {
    fn add(&mut self, module: Module) {
        let module = Arc::new(module);
        for definition in &module.jobs {
            if let Some(holder) = self.jobs.get(&definition.name) {
                let reason = format!(
                    "the job `{}` is served by `{}` already; remove it from one of the two",
                    printable(&definition.name),
                    holder.module.path.display()
                );
                warn!(module = %module.version.name, "`{}`: {reason}", module.path.display());
                self.refused.push(Refused { path: module.path.clone(), reason });
                continue;
            }
            let served = Served { module: module.clone(), definition: definition.clone() };
            self.jobs.insert(definition.name.clone(), served);
        }
        let names: Vec<&str> = module.jobs.iter().map(|job| job.name.as_str()).collect();
        info!(
            module = %module.version.name, module.digest = %module.version.digest,
            "module `{}` serves {}", module.version.name, printable(&names.join(", "))
        );
        self.modules.push(module);
    }

    fn refuse(&mut self, path: PathBuf, error: &LoadError) {
        let reason = chain(error);
        warn!(module = %load::module_name(&path), "refused a module: {}", printable(&reason));
        self.refused.push(Refused { path, reason });
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
