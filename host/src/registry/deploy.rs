//! Path 2, all of it, for a worker: loads what is there at the start, then whatever changes.
//!
//! One module is loaded at a time, beside the loop that notices changes: what comes meanwhile
//! waits in line, once for each file, and the file is read when its turn comes. A module that
//! takes long to compile holds up deploys, and nothing else.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::load::{LoadError, Loader, Module, module_name};
use super::settle::Stamp;
use super::watch::{Change, Watch};
use super::{FolderError, Registry, Swap, files, is_module_file};
use crate::config::Removal;
use crate::config::live::LiveConfig;
use crate::outage::{Backoff, Outage, chain};
use crate::store::Store;
use crate::text::printable;

/// Modules that are loaded at once at the start, before anything serves.
const LOADS_AT_START: usize = 4;
/// How often a file that is written to while it is read is tried again.
const READS: usize = 50;
/// The wait before that.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// Keeps a registry in step with the jobs folders.
pub struct Deployer {
    loader: Arc<Loader>,
    registry: Arc<Registry>,
    config: Arc<LiveConfig>,
    store: Store,
    /// The files as they were before they were loaded.
    known: Vec<(PathBuf, Option<Stamp>)>,
}

impl Deployer {
    /// Loads all modules of the jobs folders. A bad file is refused, and the others serve.
    ///
    /// # Errors
    /// A folder can't be read.
    pub async fn start(
        loader: Loader,
        config: Arc<LiveConfig>,
        store: Store,
    ) -> Result<Self, FolderError> {
        let (loader, registry) = (Arc::new(loader), Arc::new(Registry::default()));
        let files = files(&config.load().jobs_dirs)?;
        let known = files.iter().map(|path| (path.clone(), Stamp::of(path).ok().flatten()));
        let known = known.collect();
        let mut loads = futures_util::stream::iter(files)
            .map(|path| {
                let loader = loader.clone();
                async move { (load(&loader, &path).await, path) }
            })
            .buffered(LOADS_AT_START);
        while let Some((loaded, path)) = loads.next().await {
            match loaded {
                Ok(module) => drop(registry.put(module)),
                Err(error) => registry.refuse(&path, chain(&error)),
            }
        }
        drop(loads);
        Ok(Self { loader, registry, config, store, known })
    }

    /// The registry that is kept.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    /// Loads what changes, until the worker stops.
    pub async fn run(self, stopping: CancellationToken) {
        let config = self.config.load();
        let (folders, options) = (&config.jobs_dirs, config.deploy.watch);
        let mut watch = Watch::new(folders, Arc::new(is_module_file), options, &self.known);
        let mut settings = self.config.changes();
        let changed = Arc::new(Notify::new());
        let announcer = tokio::spawn(announce(
            self.store.clone(),
            self.registry.clone(),
            self.config.clone(),
            changed.clone(),
        ));
        let mut line: VecDeque<PathBuf> = VecDeque::new();
        let mut loading: Option<Loading> = None;
        loop {
            if loading.is_none() {
                loading = line.pop_front().map(|path| Loading::start(&self.loader, path));
            }
            tokio::select! {
                () = stopping.cancelled() => break,
                changes = watch.next() => {
                    for Change { path, is_there } in changes {
                        line.retain(|other| *other != path);
                        if is_there {
                            line.push_back(path);
                        } else {
                            self.removed(&path, &mut watch);
                            changed.notify_one();
                        }
                    }
                }
                Ok(()) = settings.changed() => {
                    // What was refused may be granted now; whether a job records may differ.
                    for refused in &self.registry.snapshot().refused {
                        watch.look_again(&refused.path);
                    }
                    changed.notify_one();
                }
                (path, loaded) = finished(&mut loading) => {
                    loading = None;
                    if self.loaded(&path, loaded) {
                        changed.notify_one();
                    }
                }
            }
        }
        announcer.abort();
    }

    /// Takes a loaded file into service; tells whether anything changed by it.
    fn loaded(&self, path: &Path, loaded: Result<Module, LoadError>) -> bool {
        match loaded {
            Ok(module) => match self.registry.put(module) {
                Swap::Serves => true,
                Swap::Unchanged => {
                    debug!("`{}` holds the same module as before", path.display());
                    false
                }
                Swap::Refused => false,
            },
            // Gone since: the watch tells.
            Err(LoadError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound
                    && std::fs::symlink_metadata(path).is_err() =>
            {
                false
            }
            Err(error) => {
                self.registry.refuse(path, chain(&error));
                false
            }
        }
    }

    fn removed(&self, path: &Path, watch: &mut Watch) {
        match self.config.load().deploy.on_removal {
            Removal::Keep => {
                if self.registry.keep(path) {
                    let name = module_name(path);
                    info!(module = %name, "`{}` was removed; module `{}` serves on", path.display(), printable(&name));
                }
            }
            Removal::Retire => self.registry.remove(path),
        }
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
async fn load(loader: &Loader, path: &Path) -> Result<Module, LoadError> {
    let mut tries = 1;
    loop {
        match loader.load(path).await {
            Err(LoadError::Changing { .. }) if tries < READS => {
                tries += 1;
                tokio::time::sleep(READ_PAUSE).await;
            }
            loaded => return loaded,
        }
    }
}

/// A file that is being loaded.
struct Loading {
    path: PathBuf,
    module: JoinHandle<Result<Module, LoadError>>,
}

impl Loading {
    fn start(loader: &Arc<Loader>, path: PathBuf) -> Self {
        let (loader, file) = (loader.clone(), path.clone());
        Self { path, module: tokio::spawn(async move { load(&loader, &file).await }) }
    }
}

async fn finished(loading: &mut Option<Loading>) -> (PathBuf, Result<Module, LoadError>) {
    let Some(Loading { path, module }) = loading else { return std::future::pending().await };
    let loaded = module.await.unwrap_or_else(|error| {
        Err(LoadError::NotAComponent { path: path.clone(), reason: error.to_string() })
    });
    (path.clone(), loaded)
}

/// Tells the database what is served, for those who add jobs, whenever that changed.
async fn announce(
    store: Store,
    registry: Arc<Registry>,
    config: Arc<LiveConfig>,
    changed: Arc<Notify>,
) {
    let outage = Outage::new("note the deployed jobs");
    loop {
        changed.notified().await;
        let mut backoff = Backoff::default();
        loop {
            let jobs = registry.snapshot().deployed_jobs(&config.load());
            let Err(error) = store.register_jobs(&jobs).await else { break };
            outage.note(&error);
            tokio::time::sleep(backoff.next()).await;
        }
        outage.over();
    }
}
