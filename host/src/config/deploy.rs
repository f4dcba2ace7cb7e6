//! The table `[deploy]`: how module files are watched, and what becomes of removed ones.

use std::time::Duration;

use super::read::Place;
use crate::registry::cache::DEFAULT_MAX_BYTES;
use crate::registry::watch::{WatchMode, WatchOptions};
use crate::store::kept::Keep;

/// What becomes of the module of a removed file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Removal {
    /// Its jobs wait: their messages return with a growing delay until a module holds them.
    #[default]
    Retire,
    /// It serves until the host stops.
    Keep,
}

/// How module files are deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeploySettings {
    /// How the jobs folders are watched.
    pub watch: WatchOptions,
    /// What becomes of the module of a removed file.
    pub on_removal: Removal,
    /// Most bytes of compiled code that are kept on disk.
    pub cache_bytes: u64,
    /// Which versions the database keeps.
    pub keep: Keep,
}

impl Default for DeploySettings {
    fn default() -> Self {
        Self {
            watch: WatchOptions::default(),
            on_removal: Removal::default(),
            cache_bytes: DEFAULT_MAX_BYTES,
            keep: Keep::default(),
        }
    }
}

/// Reads the keys of `[deploy]`; returns also what is wrong with them.
pub(super) fn deploy_settings(place: &mut Place) -> (DeploySettings, Vec<String>) {
    place.check_keys(&[
        "watch",
        "poll-interval",
        "rescan",
        "on-removal",
        "cache-size",
        "keep-versions",
        "keep-age",
        "keep-size",
    ]);
    let default = DeploySettings::default();
    let (least, most) = (Duration::from_millis(50), Duration::from_secs(3600));
    let modes = [("events", WatchMode::Events), ("polling", WatchMode::Polling)];
    let removals = [("retire", Removal::Retire), ("keep", Removal::Keep)];
    let watch = WatchOptions {
        mode: place.choice("watch", &modes).unwrap_or(default.watch.mode),
        poll_interval: place
            .duration("poll-interval", least, most)
            .unwrap_or(default.watch.poll_interval),
        rescan: place.duration("rescan", least, most).unwrap_or(default.watch.rescan),
    };
    let on_removal = place.choice("on-removal", &removals).unwrap_or(default.on_removal);
    let cache_bytes = place
        .bytes("cache-size", 1 << 20, 1 << 40)
        .map_or(default.cache_bytes, |bytes| bytes as u64);
    let keep = Keep {
        count: place
            .number("keep-versions", 1, 1000)
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(default.keep.count),
        age: place.duration("keep-age", least, Duration::MAX).unwrap_or(default.keep.age),
        bytes: place
            .bytes("keep-size", 1 << 20, 1 << 40)
            .map_or(default.keep.bytes, |bytes| bytes as u64),
    };
    (DeploySettings { watch, on_removal, cache_bytes, keep }, std::mem::take(&mut place.faults))
}
