//! Path 2, step A: file events to settled paths.
//!
//! Events only say where to look; what counts is the file's state on the disk. So lost events
//! cost time, until the next look over the whole folder, and never a deploy. Anything that
//! happens in a folder beside the files themselves (a `..data` link that is switched) leads to
//! such a look at once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use super::settle::{Hint, Settling, Stamp};
use crate::outage::Outage;

/// How long events that call for a look over a folder are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// How changes become known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMode {
    /// The system tells (inotify on Linux); a look over the folder now and then finds what it
    /// did not tell.
    Events,
    /// Only looks: for network file systems, which tell nothing of what other machines do.
    Polling,
}

/// How folders are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchOptions {
    /// How changes become known.
    pub mode: WatchMode,
    /// Time between two looks when polling.
    pub poll_interval: Duration,
    /// Time between two looks beside events.
    pub rescan: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            mode: WatchMode::Events,
            poll_interval: Duration::from_millis(500),
            rescan: Duration::from_secs(10),
        }
    }
}

/// A file that changed and may be read, or is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: PathBuf,
    pub(crate) is_there: bool,
}

/// What one look found in each folder; `None` for a folder that can't be read.
type Listing = Vec<(PathBuf, Option<Vec<(PathBuf, Option<Stamp>)>>)>;

/// Which files of a folder are watched.
pub(crate) type IsWatched = Arc<dyn Fn(&Path) -> bool + Send + Sync>;

/// Watches the files of some folders.
pub(crate) struct Watch {
    folders: Vec<PathBuf>,
    is_watched: IsWatched,
    settling: Settling,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of each folder that the watcher was set on.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    every: Duration,
    next_look: Instant,
    look: Option<JoinHandle<Listing>>,
    outages: BTreeMap<PathBuf, Outage>,
}

impl Watch {
    /// Watches those files of `folders` for which `is_watched` holds. `known` are files that
    /// were read already, with their state before.
    pub(crate) fn new(
        folders: &[PathBuf],
        is_watched: IsWatched,
        options: WatchOptions,
        known: &[(PathBuf, Option<Stamp>)],
    ) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = match options.mode {
            WatchMode::Polling => None,
            WatchMode::Events => watcher(sender),
        };
        let every = if watcher.is_some() { options.rescan } else { options.poll_interval };
        let mut settling = Settling::default();
        for (path, stamp) in known {
            settling.taken(path, *stamp);
        }
        let outage = |folder: &PathBuf| {
            let activity = format!("read the folder `{}`", folder.display());
            (folder.clone(), Outage::new(&activity))
        };
        let mut watch = Self {
            folders: folders.to_vec(),
            is_watched,
            settling,
            events,
            watcher,
            watched: BTreeMap::new(),
            every,
            // At once: what changed between the first reading and this watch is found.
            next_look: Instant::now(),
            look: None,
            outages: folders.iter().map(outage).collect(),
        };
        watch.set_watches();
        watch
    }

    /// Waits for files that changed and may be read. Nothing is lost when the wait is given up.
    pub(crate) async fn next(&mut self) -> Vec<Change> {
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.take_event(event);
            }
            let due = self.settling.take_due(Instant::now(), Stamp::of);
            if !due.is_empty() {
                let change = |(path, is_there)| Change { path, is_there };
                return due.into_iter().map(change).collect();
            }
            let look = if self.look.is_none() { Some(self.next_look) } else { None };
            // A file of which nothing can be told stays due; it must not keep a thread busy.
            let settled = self.settling.next_due().map(|due| due.max(Instant::now() + GATHER / 10));
            let wake = look.into_iter().chain(settled).min();
            tokio::select! {
                Some(event) = self.events.recv(), if self.watcher.is_some() => self.take_event(event),
                listing = finished(&mut self.look) => {
                    self.look = None;
                    self.next_look = Instant::now() + self.every;
                    if let Some(listing) = listing {
                        self.take_listing(listing);
                    }
                }
                () = sleep_until(wake) => {
                    if self.look.is_none() && self.next_look <= Instant::now() {
                        self.start_look();
                    }
                }
            }
        }
    }

    /// Has a file taken once more, though it did not change.
    pub(crate) fn look_again(&mut self, path: &Path) {
        self.settling.look_again(path);
        self.look_soon();
    }

    /// Whether all files that are known are now as they were when they were taken.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.settling.is_up_to_date(Stamp::of)
    }

    fn look_soon(&mut self) {
        self.next_look = self.next_look.min(Instant::now() + GATHER);
    }

    fn take_event(&mut self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else {
            self.look_soon();
            return;
        };
        if event.need_rescan() {
            self.look_soon();
        }
        let hint = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Hint::Whole,
            EventKind::Access(_) => return,
            _ => Hint::Touched,
        };
        for path in &event.paths {
            if !(self.is_watched)(path) {
                self.look_soon();
                continue;
            }
            match Stamp::of(path) {
                Ok(stamp) => self.settling.observe(path, stamp, hint, Instant::now()),
                Err(_) => self.look_soon(),
            }
        }
    }

    fn start_look(&mut self) {
        self.set_watches();
        let (folders, is_watched) = (self.folders.clone(), self.is_watched.clone());
        // A network file system may take its time.
        self.look = Some(tokio::task::spawn_blocking(move || {
            folders
                .into_iter()
                .map(|folder| (folder.clone(), list(&folder, &*is_watched).ok()))
                .collect()
        }));
    }

    fn take_listing(&mut self, listing: Listing) {
        let now = Instant::now();
        for (folder, found) in listing {
            let outage = self.outages.get(&folder);
            let Some(found) = found else {
                // Not the same as an empty folder: what serves goes on.
                if let (Some(outage), Err(error)) = (outage, std::fs::read_dir(&folder)) {
                    outage.note(&error);
                }
                continue;
            };
            if let Some(outage) = outage {
                outage.over();
            }
            let gone: Vec<PathBuf> = self
                .settling
                .known()
                .filter(|path| path.parent() == Some(folder.as_path()))
                .filter(|path| !found.iter().any(|(other, _)| other == path))
                .map(Path::to_path_buf)
                .collect();
            for (path, stamp) in found {
                // Without a state it can't be told now, or it went just then: the next look tells.
                if stamp.is_some() {
                    self.settling.observe(&path, stamp, Hint::Looked, now);
                }
            }
            for path in gone {
                self.settling.observe(&path, None, Hint::Looked, now);
            }
        }
    }

    /// Sets the watcher on folders that are new under their name.
    fn set_watches(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in &self.folders {
            let Ok(found) = std::fs::metadata(folder) else { continue };
            let identity = (found.dev(), found.ino());
            if self.watched.get(folder) == Some(&identity) {
                continue;
            }
            // Fails only when the system has dropped the watch by itself.
            let _ = watcher.unwatch(folder);
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(folder.clone(), identity);
                }
                Err(error) => {
                    // Once for each folder: the next look tries again without a word.
                    if self.watched.insert(folder.clone(), (0, 0)).is_none() {
                        warn!(
                            "cannot watch `{}`: {error}; changes are found every {:?}; raise fs.inotify.max_user_watches, or choose watch = \"polling\"",
                            folder.display(),
                            self.every
                        );
                    }
                }
            }
        }
    }
}

fn watcher(
    sender: mpsc::UnboundedSender<notify::Result<notify::Event>>,
) -> Option<RecommendedWatcher> {
    // Fails only when the watch is gone, and nobody waits for the event.
    let tell = move |event| drop(sender.send(event));
    match notify::recommended_watcher(tell) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(
                "cannot watch folders: {error}; they are polled instead; raise fs.inotify.max_user_instances, or choose watch = \"polling\""
            );
            None
        }
    }
}

/// The watched files of a folder, each with its state where it can be told.
pub(crate) fn list(
    folder: &Path,
    is_watched: &dyn Fn(&Path) -> bool,
) -> std::io::Result<Vec<(PathBuf, Option<Stamp>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = folder.join(entry?.file_name());
        if is_watched(&path) {
            let stamp = Stamp::of(&path).ok().flatten();
            files.push((path, stamp));
        }
    }
    Ok(files)
}

async fn finished(look: &mut Option<JoinHandle<Listing>>) -> Option<Listing> {
    match look {
        Some(look) => look.await.ok(),
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
