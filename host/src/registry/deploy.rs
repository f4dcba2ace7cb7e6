//! Path 2, all of it, for a worker: loads what is there at the start, then whatever changes.
//!
//! One module is loaded at a time, beside the loop that notices changes: what comes meanwhile
//! waits in line, once for each file, and the file is read when its turn comes. A module that
//! takes long to compile holds up deploys of others, and nothing else: when its own file changes,
//! its load is given up for the new one.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use super::choice::{Wanted, ends_hold, wanted, why_not};
use super::load::{LoadError, Loader, Module, module_name};
use super::settle::Stamp;
use super::sync::{Note, States, Sync};
use super::watch::{Change, Watch};
use super::{FolderError, Registry, Swap, files, is_module_file, kept};
use crate::config::Removal;
use crate::config::live::LiveConfig;
use crate::outage::chain;
use crate::store::versions::Choice;
use crate::store::{Store, StoreError};
use crate::text::printable;

/// Modules that are loaded at once at the start, before anything serves.
const LOADS_AT_START: usize = 4;
/// How often a file that is written to while it is read is tried again.
const READS: usize = 50;
/// The wait before that.
const READ_PAUSE: Duration = Duration::from_millis(20);
/// How often in a row a load is given up because its file changed meanwhile: a file under
/// constant change must get through, too.
const GIVE_UPS: u32 = 3;

/// Why a worker can't load its modules.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// A jobs folder can't be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// What is decided of the modules can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keeps a registry in step with the jobs folders, and with what is decided for all hosts.
pub struct Deployer {
    loader: Arc<Loader>,
    registry: Arc<Registry>,
    config: Arc<LiveConfig>,
    store: Store,
    sync: Sync,
    states: States,
    /// The files that are there, with the digest of the module that each held when it was last
    /// read; `None` for one that held none.
    files: BTreeMap<PathBuf, Option<String>>,
    line: VecDeque<Load>,
    /// How often in a row a file's load was given up.
    given_up: BTreeMap<PathBuf, u32>,
    /// The files as they were before they were loaded at the start.
    known: Vec<(PathBuf, Option<Stamp>)>,
}

/// Something to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Load {
    File(PathBuf),
    /// A version from the database, to serve or to be the canary in the place of a file.
    Kept {
        path: PathBuf,
        digest: String,
        is_canary: bool,
    },
}

/// A load that runs beside the loop.
struct Loading {
    load: Load,
    task: AbortOnDropHandle<Result<Module, Failed>>,
}

/// Why something was not loaded.
struct Failed {
    reason: String,
    /// The file is gone since: the watch tells.
    is_gone: bool,
}

impl Deployer {
    /// Loads all modules of the jobs folders. A bad file is refused, and the others serve.
    ///
    /// # Errors
    /// A folder or the database can't be read.
    pub async fn start(
        loader: Loader,
        config: Arc<LiveConfig>,
        store: Store,
    ) -> Result<Self, DeployError> {
        let (loader, registry) = (Arc::new(loader), Arc::new(Registry::default()));
        let states = store.module_states().await?;
        registry.starting(store.job_owners().await?);
        let files = files(&config.load().jobs_dirs)?;
        let known = files.iter().map(|path| (path.clone(), Stamp::of(path).ok().flatten()));
        let known = known.collect();
        let sync = Sync::start(store.clone(), registry.clone(), config.clone(), states.clone());
        let mut deployer = Self {
            loader: loader.clone(),
            registry,
            config,
            store,
            sync,
            states,
            files: BTreeMap::new(),
            line: VecDeque::new(),
            given_up: BTreeMap::new(),
            known,
        };
        let mut loads = futures_util::stream::iter(files)
            .map(|path| {
                let loader = loader.clone();
                async move { (load_file(&loader, &path).await, path) }
            })
            .buffered(LOADS_AT_START);
        while let Some((loaded, path)) = loads.next().await {
            deployer.loaded(&Load::File(path), loaded);
        }
        drop(loads);
        // What was decided for all hosts may differ from the files.
        while let Some(load) = deployer.line.pop_front() {
            let loaded = deployer.loading(load.clone()).await;
            deployer.loaded(&load, loaded);
        }
        deployer.registry.started();
        deployer.sync.note(Note::Jobs);
        Ok(deployer)
    }

    /// The registry that is kept.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    /// Loads what changes, until the worker stops.
    pub async fn run(mut self, stopping: CancellationToken) {
        let config = self.config.load();
        let (folders, options) = (&config.jobs_dirs, config.deploy.watch);
        let mut watch = Watch::new(folders, Arc::new(is_module_file), options, &self.known);
        let mut settings = self.config.changes();
        let mut running: Option<Loading> = None;
        loop {
            if running.is_none() {
                running = self.line.pop_front().map(|load| {
                    let task = AbortOnDropHandle::new(tokio::spawn(self.loading(load.clone())));
                    Loading { load, task }
                });
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                changes = watch.next() => {
                    for Change { path, is_there } in changes {
                        self.line.retain(|load| *load != Load::File(path.clone()));
                        self.give_up(&path, is_there, &mut running);
                        if is_there {
                            self.line.push_back(Load::File(path));
                        } else {
                            self.removed(&path, &mut watch);
                        }
                    }
                }
                Ok(()) = settings.changed() => {
                    // What was refused may be granted now; whether a job records may differ.
                    for refused in &self.registry.snapshot().refused {
                        watch.look_again(&refused.path);
                    }
                    self.sync.note(Note::Jobs);
                }
                states = self.sync.next() => {
                    self.states = (*states).clone();
                    let paths: Vec<PathBuf> = self.files.keys().cloned().collect();
                    let present = running.as_ref().map(|running| &running.load);
                    paths.iter().for_each(|path| self.reconcile(path, present));
                }
                (load, loaded) = finished(&mut running) => {
                    running = None;
                    if let Load::File(path) = &load {
                        self.given_up.remove(path);
                    }
                    self.loaded(&load, loaded);
                }
            }
        }
    }

    /// Stops loading what a file held before it changed or went. Of one that is gone nothing may
    /// serve.
    fn give_up(&mut self, path: &Path, is_there: bool, running: &mut Option<Loading>) {
        if !running.as_ref().is_some_and(|running| running.load == Load::File(path.into())) {
            return;
        }
        let times = self.given_up.entry(path.to_path_buf()).or_default();
        if *times < GIVE_UPS || !is_there {
            *times += 1;
            *running = None;
            debug!("`{}` changed while it was loaded; its load is given up", path.display());
        }
    }

    /// Loads one thing; the future is free of this deployer, to be run beside it.
    fn loading(&self, load: Load) -> impl Future<Output = Result<Module, Failed>> + Send + 'static {
        let (loader, store) = (self.loader.clone(), self.store.clone());
        let folder = self.config.load().data_dir.join("modules");
        async move {
            match load {
                Load::File(path) => load_file(&loader, &path).await,
                Load::Kept { path, digest, .. } => {
                    let name = module_name(&path);
                    let loaded = kept::load(&loader, &store, &folder, &path, &name, &digest).await;
                    loaded.map_err(|reason| Failed { reason, is_gone: false })
                }
            }
        }
    }

    fn loaded(&mut self, load: &Load, loaded: Result<Module, Failed>) {
        match (load, loaded) {
            (_, Err(Failed { is_gone: true, .. })) => {}
            (Load::File(path), Err(Failed { reason, .. })) => {
                self.registry.refuse(path, reason);
                self.files.insert(path.clone(), None);
                self.reconcile(path, None);
            }
            (Load::Kept { path, .. }, Err(Failed { reason, .. })) => {
                self.registry.refuse(path, reason);
            }
            (Load::File(path), Ok(module)) => self.file_loaded(path, module),
            (Load::Kept { path, digest, is_canary: false }, Ok(module)) => {
                // Another may be wanted by now.
                if self.wanted(path) == Wanted::Version(digest.clone()) {
                    self.put(module);
                    self.tell_of_file(path);
                }
            }
            (Load::Kept { path, digest, is_canary: true }, Ok(module)) => {
                let state = self.states.get(&module_name(path));
                let canary = state.and_then(|state| state.canary.as_ref());
                if let Some(canary) = canary.filter(|canary| canary.digest == *digest) {
                    self.registry.put_canary(module, canary.share);
                }
            }
        }
    }

    fn file_loaded(&mut self, path: &Path, module: Module) {
        let (name, digest) = (module.version.name.clone(), module.version.digest.clone());
        let before = self.files.insert(path.to_path_buf(), Some(digest.clone())).flatten();
        let state = self.states.entry(name.clone()).or_default();
        if ends_hold(state, &digest, before.as_deref()) {
            self.sync.note(Note::Follows { name, since: state.since });
            state.choice = Choice::Follow;
        }
        state.known.insert(digest);
        if self.wanted(path) == Wanted::File {
            self.put(module);
        } else {
            self.tell_of_file(path);
        }
        self.reconcile(path, None);
    }

    fn put(&mut self, module: Module) {
        let path = module.path.clone();
        match self.registry.put(module) {
            Swap::Serves => {
                if let Some(module) = self.registry.module_at(&path) {
                    self.sync.note(Note::Serves(module));
                }
            }
            Swap::Unchanged => debug!("`{}` holds the same module as before", path.display()),
            Swap::Refused => {
                self.files.remove(&path);
            }
        }
    }

    /// Says why a file's version does not serve, where it does not.
    fn tell_of_file(&self, path: &Path) {
        let name = module_name(path);
        let state = self.states.get(&name).cloned().unwrap_or_default();
        if let Some(Some(digest)) = self.files.get(path)
            && self.registry.serving(path).as_ref() != Some(digest)
        {
            self.registry.refuse(path, why_not(&state, &name, digest));
        }
    }

    fn wanted(&self, path: &Path) -> Wanted {
        let Some(digest) = self.files.get(path) else { return Wanted::AsBefore };
        let state = self.states.get(&module_name(path)).cloned().unwrap_or_default();
        wanted(&state, digest.as_deref())
    }

    /// Has loaded what should serve and does not. `running` is what is being loaded already.
    fn reconcile(&mut self, path: &Path, running: Option<&Load>) {
        let serving = self.registry.serving(path);
        let load = match self.wanted(path) {
            Wanted::File if serving.as_ref() != self.files.get(path).and_then(Option::as_ref) => {
                Some(Load::File(path.to_path_buf()))
            }
            Wanted::Version(digest) if serving.as_ref() != Some(&digest) => {
                Some(Load::Kept { path: path.to_path_buf(), digest, is_canary: false })
            }
            _ => None,
        };
        let state = self.states.get(&module_name(path));
        let canary = state.and_then(|state| state.canary.as_ref());
        let canary = canary.filter(|canary| serving.as_ref() != Some(&canary.digest));
        self.registry.set_canary_share(path, canary.map(|canary| canary.share));
        let present = self.registry.canary(path);
        let canary = canary.filter(|canary| present.as_ref() != Some(&canary.digest));
        let canary = canary.map(|canary| Load::Kept {
            path: path.to_path_buf(),
            digest: canary.digest.clone(),
            is_canary: true,
        });
        for load in load.into_iter().chain(canary) {
            if running != Some(&load) && !self.line.contains(&load) {
                self.line.push_back(load);
            }
        }
    }

    fn removed(&mut self, path: &Path, watch: &mut Watch) {
        self.files.remove(path);
        self.given_up.remove(path);
        match self.config.load().deploy.on_removal {
            Removal::Keep => {
                if self.registry.keep(path) {
                    let name = module_name(path);
                    info!(module = %name, "`{}` was removed; module `{}` serves on", path.display(), printable(&name));
                }
            }
            Removal::Retire => self.registry.remove(path),
        }
        self.sync.note(Note::Jobs);
        // A module of the same name in another folder may take its place.
        for refused in &self.registry.snapshot().refused {
            if refused.job.is_none() && refused.path.file_name() == path.file_name() {
                watch.look_again(&refused.path);
            }
        }
    }
}

/// Loads a file. One that is written to meanwhile is read again, so that one under constant
/// change gets through between two writes.
async fn load_file(loader: &Loader, path: &Path) -> Result<Module, Failed> {
    let mut tries = 1;
    loop {
        match loader.load(path).await {
            Err(LoadError::Changing { .. }) if tries < READS => {
                tries += 1;
                tokio::time::sleep(READ_PAUSE).await;
            }
            Ok(module) => return Ok(module),
            Err(error) => {
                let is_gone = matches!(error, LoadError::Read { .. })
                    && std::fs::symlink_metadata(path).is_err();
                return Err(Failed { reason: chain(&error), is_gone });
            }
        }
    }
}

async fn finished(running: &mut Option<Loading>) -> (Load, Result<Module, Failed>) {
    let Some(Loading { load, task }) = running else { return std::future::pending().await };
    let loaded = task
        .await
        .unwrap_or_else(|error| Err(Failed { reason: error.to_string(), is_gone: false }));
    (load.clone(), loaded)
}
