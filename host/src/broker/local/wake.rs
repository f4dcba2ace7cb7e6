//! Wakes receivers when a message arrives, without polling.
//!
//! Within the process a [`Notify`] per queue does. For other processes a sender touches a small
//! file per queue, and the kernel tells those who watch the folder. A receiver looks again
//! every [`RECHECK`] besides: file events can be lost (the kernel's event queue is finite, some
//! file systems tell none), and a message that another process received and let go has no event.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tracing::warn;

/// How long a waiting receiver goes at most without looking. One look is one indexed read of
/// about 0.1 ms, so an idle queue costs far less than a thousandth of a core.
const RECHECK: Duration = Duration::from_secs(2);
/// The same where files can't be watched and looking is all there is.
const RECHECK_UNWATCHED: Duration = Duration::from_millis(200);

/// Who waits for which queue, and the files that wake other processes.
#[derive(Debug)]
pub(super) struct Wake {
    folder: PathBuf,
    /// Open files, so that a touch is one system call.
    files: Mutex<HashMap<String, File>>,
    queues: Arc<Queues>,
    /// Made by the first receiver that waits; none where the system refused.
    watcher: OnceLock<Option<RecommendedWatcher>>,
    touch_failed: OnceLock<()>,
}

#[derive(Debug, Default)]
struct Queues(Mutex<HashMap<String, Arc<Notify>>>);

impl Queues {
    fn of(&self, queue: &str) -> Arc<Notify> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = queues.get(queue) {
            return notify.clone();
        }
        queues.entry(queue.to_owned()).or_default().clone()
    }

    /// Wakes those who wait for the queue; whoever doesn't wait looks anyway.
    fn wake(&self, queue: &str) {
        let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = queues.get(queue) {
            notify.notify_waiters();
        }
    }

    fn wake_all(&self) {
        let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.values().for_each(|notify| notify.notify_waiters());
    }
}

impl Wake {
    /// Uses `folder` for the files, and makes it for its owner only.
    pub(super) fn in_folder(folder: &Path) -> std::io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            files: Mutex::default(),
            queues: Arc::default(),
            watcher: OnceLock::new(),
            touch_failed: OnceLock::new(),
        })
    }

    /// What to wait on for the queue, and how long at most. To miss nothing, enable the waiting
    /// before looking into the queue.
    pub(super) fn waiting(&self, queue: &str) -> (Arc<Notify>, Duration) {
        let watcher = self.watcher.get_or_init(|| {
            let watcher = watch(&self.folder, self.queues.clone());
            let failed = |error| warn!("cannot watch `{}` for messages of other processes: {error}; looking every {} ms instead", self.folder.display(), RECHECK_UNWATCHED.as_millis());
            watcher.map_err(failed).ok()
        });
        let recheck = if watcher.is_some() { RECHECK } else { RECHECK_UNWATCHED };
        (self.queues.of(queue), recheck)
    }

    /// Tells everybody that waits for the queue, in any process, to look again.
    pub(super) fn wake(&self, queue: &str) {
        self.queues.wake(queue);
        if let Err(error) = self.touch(queue) {
            // Receivers elsewhere find the message a little later, so once is enough.
            self.touch_failed.get_or_init(|| {
                warn!(
                    "cannot touch a file in `{}` to wake other processes: {error}",
                    self.folder.display()
                );
            });
        }
    }

    fn touch(&self, queue: &str) -> std::io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(queue) {
            // A queue's name holds no path separator: see `limits::check_queue_name`.
            let path = self.folder.join(queue);
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            files.insert(queue.to_owned(), file);
        }
        files[queue].set_modified(SystemTime::now())
    }
}

fn watch(folder: &Path, queues: Arc<Queues>) -> notify::Result<RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| match event {
        Ok(event) if event.need_rescan() => queues.wake_all(),
        Ok(event) if event.kind.is_access() => {}
        Ok(event) => {
            for name in event.paths.iter().filter_map(|path| path.file_name()?.to_str()) {
                queues.wake(name);
            }
        }
        Err(_) => queues.wake_all(),
    };
    let mut watcher = notify::recommended_watcher(tell)?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
