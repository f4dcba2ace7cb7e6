//! Settings that change while a worker or a beater runs: its file is read again when it changes,
//! and on SIGHUP. Settings and grants are one swap; a fault in either leaves the old ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Config, ConfigError, Flags};
use crate::registry::watch::Watch;
use crate::text::printable;

/// The settings as they are now.
///
/// Whoever takes them keeps what it took: an attempt runs to its end under the settings that it
/// began with.
#[derive(Debug)]
pub struct LiveConfig {
    current: ArcSwap<Config>,
    flags: Flags,
    /// A beater runs no job: what is granted need not be there on its machine.
    opens_grants: bool,
    changed: watch::Sender<()>,
}

impl LiveConfig {
    /// Settings that were read with `flags`, and will be read so again. Grants are opened by
    /// then: see [`Config::with_grants`].
    #[must_use]
    pub fn new(config: Arc<Config>, flags: Flags) -> Self {
        Self::followed(config, flags, true)
    }

    /// The settings of a beater, which opens no grants.
    #[must_use]
    pub fn without_grants(config: Arc<Config>, flags: Flags) -> Self {
        Self::followed(config, flags, false)
    }

    fn followed(config: Arc<Config>, mut flags: Flags, opens_grants: bool) -> Self {
        // Always this file: were it gone, the next one above would silently be another.
        if let Some(file) = &config.file {
            flags.values.insert("config", vec![file.to_string_lossy().into_owned()]);
        }
        Self { current: ArcSwap::new(config), flags, opens_grants, changed: watch::channel(()).0 }
    }

    /// The settings as they are now.
    #[must_use]
    pub fn load(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Tells of every later change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Reads the settings again; returns those keys that changed and need a restart.
    ///
    /// # Errors
    /// All that is wrong with them, or can't be granted; the old ones stay.
    pub fn reload(&self) -> Result<Vec<&'static str>, ConfigError> {
        let (config, fixed) = self.read_again()?;
        self.adopt(config);
        Ok(fixed)
    }

    fn read_again(&self) -> Result<(Config, Vec<&'static str>), ConfigError> {
        let (config, fixed) = self.load().followed_by(Config::load(&self.flags)?);
        let config = if self.opens_grants { config.with_grants()? } else { config };
        Ok((config, fixed))
    }

    fn adopt(&self, config: Config) {
        self.current.store(Arc::new(config));
        self.changed.send_replace(());
    }

    /// What was read while the file changed once more is dropped without a word: it may be half
    /// of a file that is being written, and half of it may be valid. Whoever watches the file
    /// takes it again.
    fn reload_unless(&self, has_changed: impl FnOnce() -> bool) {
        let read = self.read_again();
        if has_changed() {
            return;
        }
        match read {
            Ok((config, fixed)) => {
                self.adopt(config);
                let from_now_on = if self.opens_grants {
                    "; it holds for attempts that begin from now on"
                } else {
                    ""
                };
                info!("read the configuration again{from_now_on}");
                for key in fixed {
                    warn!("`{key}` changed in the configuration; it needs a restart");
                }
            }
            Err(ConfigError(faults)) => {
                for fault in faults {
                    warn!(
                        "the configuration has a fault, and the old one stays: {}",
                        printable(&fault)
                    );
                }
            }
        }
    }

    /// Reads the settings again whenever their file changes or a SIGHUP comes, until the process
    /// stops.
    pub async fn follow(self: Arc<Self>, mut hangups: Hangups, stopping: CancellationToken) {
        let config = self.load();
        let mut watch = config.file.as_deref().map(|file| watch_file(file, &config));
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = hangups.0.recv() => self.reload_unless(|| false),
                () = changed(&mut watch) => {
                    self.reload_unless(|| watch.as_ref().is_some_and(|watch| !watch.is_up_to_date()));
                }
            }
        }
    }
}

/// Ears for SIGHUP. Without them it ends the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Listens from now on.
    ///
    /// # Errors
    /// The process may not listen for signals.
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

fn watch_file(file: &Path, config: &Config) -> Watch {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let name = file.file_name().unwrap_or_default().to_owned();
    let is_watched = Arc::new(move |path: &Path| path.file_name() == Some(&name));
    let file = folder.join(file.file_name().unwrap_or_default());
    Watch::new(&[folder], is_watched, config.deploy.watch, &[(file, config.file_stamp)])
}

/// Waits until a watched file is there and changed.
async fn changed(watch: &mut Option<Watch>) {
    let Some(watch) = watch else { return std::future::pending().await };
    while !watch.next().await.iter().any(|change| change.is_there) {}
}

impl Config {
    /// The settings after `next` was read: what may change while a worker runs is `next`'s, the
    /// rest stays. Returns also the keys of the rest that changed.
    fn followed_by(&self, next: Self) -> (Self, Vec<&'static str>) {
        let changed = [
            ("data-dir", self.data_dir != next.data_dir),
            ("broker", self.chosen_broker != next.chosen_broker),
            ("jobs-dir", self.jobs_dirs != next.jobs_dirs),
            ("concurrency", self.concurrency != next.concurrency),
            ("lease", self.lease != next.lease),
            ("grace", self.grace != next.grace),
            ("strict", self.strict != next.strict),
            ("keep", self.keep != next.keep),
            ("keep-count", self.keep_count != next.keep_count),
            ("listen", self.listen != next.listen),
            ("migrate", self.migrate != next.migrate),
            ("output", self.output != next.output),
            ("log-format", self.log_format != next.log_format),
            ("log-level", self.log_level != next.log_level),
            ("database", self.database != next.database),
            ("compile", self.compile != next.compile),
            ("watch", self.deploy.watch != next.deploy.watch),
            ("cache-size", self.deploy.cache_bytes != next.deploy.cache_bytes),
        ];
        let changed = changed.into_iter().filter(|(_, is)| *is).map(|(key, _)| key).collect();
        let mut config = Self {
            file: self.file.clone(),
            file_stamp: next.file_stamp,
            data_dir: self.data_dir.clone(),
            chosen_broker: self.chosen_broker,
            jobs_dirs: self.jobs_dirs.clone(),
            concurrency: self.concurrency,
            lease: self.lease,
            grace: self.grace,
            strict: self.strict,
            keep: self.keep,
            keep_count: self.keep_count,
            listen: self.listen,
            migrate: self.migrate,
            output: self.output,
            log_format: self.log_format,
            log_level: self.log_level,
            database: self.database.clone(),
            compile: self.compile,
            aws_endpoint: self.aws_endpoint,
            // Everything else: whatever is added later may change, unless it is named here.
            ..next
        };
        config.deploy.watch = self.deploy.watch;
        config.deploy.cache_bytes = self.deploy.cache_bytes;
        (config, changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, folder: &Path) -> Config {
        std::fs::write(folder.join(crate::config::FILE_NAME), text).unwrap();
        Config::read(&Flags::default(), &|_| None, folder).unwrap()
    }

    #[test]
    fn jobs_queues_and_defaults_change_and_the_rest_needs_a_restart() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let old = read("concurrency = 4\n[jobs.a]\nrecord = false\n", &folder);
        let text = "concurrency = 5\nlease = \"9s\"\n[jobs.b]\nrecord = false\n[queues.q]\nconcurrency = 1\n[deploy]\nwatch = \"polling\"\non-removal = \"keep\"\n";
        let (config, fixed) = old.followed_by(read(text, &folder));
        assert_eq!(fixed, ["concurrency", "lease", "watch"]);
        assert_eq!(config.concurrency, 4);
        assert_eq!(config.deploy.watch, old.deploy.watch);
        assert_ne!(config.deploy.on_removal, old.deploy.on_removal);
        assert_eq!(config.jobs.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(config.queues["q"].concurrency, Some(1));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
