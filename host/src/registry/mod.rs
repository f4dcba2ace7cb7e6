//! Path 1, step 5, and path 2, step D: job name to the module that serves it.
//!
//! Readers take a snapshot; a change is one atomic store of a new one. An attempt keeps the
//! module that it began with, whatever is deployed meanwhile; a module that nothing serves and
//! no attempt runs is freed.

pub mod cache;
pub mod canary;
mod choice;
pub mod compile;
pub mod definition;
pub mod deploy;
mod kept;
pub mod load;
mod measure;
pub(crate) mod settle;
mod snapshot;
mod sync;
pub mod tally;
pub mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch as signal;
use tracing::{debug, info, warn};

use crate::metrics;
use crate::outage::chain;
use crate::text::printable;
use load::{Loader, Module, module_name};
use snapshot::{Deployment, Version, place};
pub use snapshot::{Refused, Served, Snapshot};

/// The modules of a host.
#[derive(Default)]
pub struct Registry {
    current: ArcSwap<Snapshot>,
    /// What the snapshot is made from. Only those who change it wait for it.
    deployment: Mutex<Deployment>,
    changed: signal::Sender<()>,
    /// Whether nothing is logged: for a command that is about one job.
    is_silent: bool,
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

/// What a loaded module led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// It serves from now on.
    Serves,
    /// The same bytes served already.
    Unchanged,
    /// It can't serve; what served goes on.
    Refused,
}

impl Registry {
    /// Loads all `*.wasm` of the folders. A bad file is refused, and the others serve.
    ///
    /// # Errors
    /// A folder can't be read.
    pub async fn load(loader: &Loader, folders: &[PathBuf]) -> Result<Self, FolderError> {
        Self::default().read(loader, folders).await
    }

    /// As [`Self::load`], without a log line for each module: for a command that is about one job.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_silently(loader: &Loader, folders: &[PathBuf]) -> Result<Self, FolderError> {
        Self { is_silent: true, ..Self::default() }.read(loader, folders).await
    }

    async fn read(self, loader: &Loader, folders: &[PathBuf]) -> Result<Self, FolderError> {
        for path in files(folders)? {
            match loader.load(&path).await {
                Ok(module) => drop(self.put(module)),
                Err(error) => self.refuse(&path, chain(&error)),
            }
        }
        Ok(self)
    }

    /// A registry of one module.
    #[must_use]
    pub fn of(module: Module) -> Self {
        let registry = Self::default();
        registry.put(module);
        registry
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

    /// The module and definition for the attempts of one job: the current one, or the canary.
    #[must_use]
    pub fn choose(&self, job: &str, job_id: &str) -> Option<Served> {
        let current = self.current.load();
        let served = current.jobs.get(job)?;
        let canary = current
            .canaries
            .get(job)
            .filter(|(canary, share)| canary::takes(job_id, &canary.module.version.digest, *share));
        Some(canary.map_or(served, |(canary, _)| canary).clone())
    }

    /// All that is deployed now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Each job that is served, with the digest of its module.
    pub(crate) fn serving_jobs(&self) -> Vec<(String, String)> {
        let snapshot = self.snapshot();
        let jobs = snapshot.jobs.iter();
        jobs.map(|(name, served)| (name.clone(), served.module.version.digest.clone())).collect()
    }

    /// Tells of every later change of what is deployed.
    #[must_use]
    pub fn changes(&self) -> signal::Receiver<()> {
        self.changed.subscribe()
    }

    /// Has a module serve in the place of what its file held before.
    pub fn put(&self, module: Module) -> Swap {
        let version = Version::new(module);
        let module = version.module.clone();
        let mut deployment = self.deployment();
        let name = &module.version.name;
        let other = deployment.module(name).filter(|other| other.path != module.path);
        if let Some(other) = other {
            let reason = format!(
                "the module `{}` is deployed from `{}` already; rename one of the two",
                printable(name),
                other.path.display()
            );
            drop(deployment);
            self.refuse(&module.path, reason);
            return Swap::Refused;
        }
        let file = deployment.files.entry(place(&module.path)).or_default();
        file.problem = None;
        let before = file.serving.as_ref().map(|before| before.module.version.digest.clone());
        if before.as_ref() == Some(&module.version.digest) {
            self.publish(deployment);
            return Swap::Unchanged;
        }
        file.serving = Some(version);
        let before =
            before.map_or_else(String::new, |before| format!(" instead of {:.12}", before));
        let names: Vec<&str> = module.jobs.iter().map(|job| job.name.as_str()).collect();
        let digest = &module.version.digest;
        if !self.is_silent {
            info!(
                module = %name, module.digest = %digest,
                "module `{name}` serves {}{before}", printable(&names.join(", "))
            );
        }
        self.publish(deployment);
        Swap::Serves
    }

    /// Notes why a file as it is now does not serve. What it held before goes on.
    pub fn refuse(&self, path: &Path, reason: String) {
        let mut deployment = self.deployment();
        let file = deployment.files.entry(place(path)).or_default();
        let still = match &file.serving {
            Some(version) => format!("; {:.12} serves on", version.module.version.digest),
            None => String::new(),
        };
        let text = format!("refused a module: {}{still}", printable(&reason));
        // A file that is written again and again says the same again and again.
        if file.problem.as_ref() == Some(&reason) || self.is_silent {
            debug!(module = %module_name(path), "{text}");
        } else {
            warn!(module = %module_name(path), "{text}");
            metrics::module_refused(module_name(path));
        }
        file.problem = Some(reason);
        self.publish(deployment);
    }

    /// Takes a file's module out of service. What runs goes on to its end.
    pub fn remove(&self, path: &Path) {
        let mut deployment = self.deployment();
        let removed = deployment.files.remove(&place(path));
        if let Some(Version { module, .. }) = removed.and_then(|file| file.serving) {
            info!(
                module = %module.version.name, module.digest = %module.version.digest,
                "module `{}` was removed; its jobs wait until a module holds them", module.version.name
            );
        }
        self.publish(deployment);
    }

    /// Forgets why a removed file was refused; what it served before goes on. Tells whether it
    /// did serve.
    pub fn keep(&self, path: &Path) -> bool {
        let mut deployment = self.deployment();
        let key = place(path);
        let serving = deployment.files.get_mut(&key).map(|file| {
            file.problem = None;
            file.serving.is_some()
        });
        if serving == Some(false) {
            deployment.files.remove(&key);
        }
        self.publish(deployment);
        serving == Some(true)
    }

    /// What a file's place serves.
    pub(crate) fn module_at(&self, path: &Path) -> Option<Arc<Module>> {
        let deployment = self.deployment();
        let serving = deployment.files.get(&place(path)).and_then(|file| file.serving.as_ref());
        serving.map(|version| version.module.clone())
    }

    /// The digest of what a file's place serves.
    pub(crate) fn serving(&self, path: &Path) -> Option<String> {
        self.module_at(path).map(|module| module.version.digest.clone())
    }

    /// The digest of a file's canary.
    pub(crate) fn canary(&self, path: &Path) -> Option<String> {
        let deployment = self.deployment();
        let canary = deployment.files.get(&place(path)).and_then(|file| file.canary.as_ref());
        canary.map(|(version, _)| version.module.version.digest.clone())
    }

    /// Has a share (of 10,000) of a file's attempts take this module.
    pub(crate) fn put_canary(&self, module: Module, share: u32) {
        let mut deployment = self.deployment();
        let file = deployment.files.entry(place(&module.path)).or_default();
        info!(
            module = %module.version.name, module.digest = %module.version.digest,
            "module `{}`: {:.12} is tried on {} % of its jobs",
            module.version.name, module.version.digest, f64::from(share) / 100.0
        );
        file.canary = Some((Version::new(module), share));
        self.publish(deployment);
    }

    /// Sets the share of a file's canary; `None` ends it.
    pub(crate) fn set_canary_share(&self, path: &Path, share: Option<u32>) {
        let mut deployment = self.deployment();
        let Some(file) = deployment.files.get_mut(&place(path)) else { return };
        match (&mut file.canary, share) {
            (None, _) => return,
            (Some((_, present)), Some(share)) if *present == share => return,
            (Some((_, present)), Some(share)) => *present = share,
            (canary @ Some(_), None) => *canary = None,
        }
        self.publish(deployment);
    }

    /// Takes what was counted of a module's versions: digest, runs, failures.
    pub(crate) fn take_tallies(&self, module: &str) -> Vec<(Arc<tally::Tally>, String, u64, u64)> {
        let deployment = self.deployment();
        let versions = deployment.files.values().flat_map(|file| {
            file.serving.iter().chain(file.canary.as_ref().map(|(canary, _)| canary))
        });
        versions
            .filter(|version| version.module.version.name == module)
            .map(|version| {
                let (runs, failures) = version.tally.take();
                (version.tally.clone(), version.module.version.digest.clone(), runs, failures)
            })
            .collect()
    }

    /// Who holds which job name: job to module.
    #[must_use]
    pub fn owners(&self) -> BTreeMap<String, String> {
        self.deployment().owners.clone()
    }

    /// Begins with who holds which job name, as it was settled before. Nothing serves until
    /// [`Self::started`].
    pub fn starting(&self, owners: BTreeMap<String, String>) {
        let mut deployment = self.deployment();
        deployment.owners = owners;
        deployment.is_starting = true;
    }

    /// Has serve all that was put meanwhile.
    pub fn started(&self) {
        let mut deployment = self.deployment();
        deployment.is_starting = false;
        self.publish(deployment);
    }

    fn deployment(&self) -> MutexGuard<'_, Deployment> {
        self.deployment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a changed deployment current, and says which job names are refused by it.
    fn publish(&self, mut deployment: MutexGuard<'_, Deployment>) {
        if deployment.is_starting {
            return;
        }
        let next = deployment.snapshot();
        let before = self.current.load();
        for refused in next.refused.iter().filter(|refused| refused.job.is_some()) {
            if !before.refused.contains(refused) && !self.is_silent {
                refused.tell();
            }
        }
        self.current.store(Arc::new(next));
        self.changed.send_replace(());
    }
}

impl Refused {
    fn tell(&self) {
        let module = module_name(&self.path);
        let reason = printable(&self.reason);
        match self.job {
            None => warn!(%module, "refused a module: {reason}"),
            Some(_) => warn!(%module, "`{}`: {reason}", self.path.display()),
        }
    }
}

/// All `*.wasm` of the folders, in the order in which they claim job names.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>, FolderError> {
    let mut files = Vec::new();
    for folder in folders {
        let failed = |source| FolderError { path: folder.clone(), source };
        let found = watch::list(folder, &is_module_file).map_err(failed)?;
        files.extend(found.into_iter().map(|(path, _)| path));
    }
    files.sort_by_cached_key(|path| place(path));
    Ok(files)
}

/// Whether a file of a jobs folder is meant to be a module.
pub(crate) fn is_module_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".wasm") && !name.starts_with('.')
}
