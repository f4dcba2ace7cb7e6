//! What modules and the configuration file say of periodic entries, brought to the database, so
//! that beaters need neither.

use std::time::UNIX_EPOCH;

use tracing::{info, warn};

use super::definition::digest;
use crate::config::Config;
use crate::registry::Registry;
use crate::store::periodic::{DefineError, Defined, Seen, Source};
use crate::store::{Store, StoreError};
use crate::text::printable;

/// Notes which jobs a worker's modules hold, and defines the entries that they describe. An entry
/// has its job's name.
///
/// # Errors
/// The database failed.
pub async fn modules(
    store: &Store,
    worker_id: &str,
    registry: &Registry,
) -> Result<(), StoreError> {
    let snapshot = registry.snapshot();
    let queues = snapshot.jobs.values().filter_map(|served| served.definition.queue.clone());
    store.note_queues(&queues.collect::<Vec<_>>()).await?;
    let names: Vec<String> = snapshot.jobs.keys().cloned().collect();
    store.worker_holds(worker_id, &names).await?;
    let seen = snapshot.jobs.values().filter_map(|served| {
        Some(Seen {
            name: served.definition.name.clone(),
            source: Source::Module,
            digest: served.module.version.digest.clone(),
            definition: served.definition.periodic.clone()?,
        })
    });
    define(store, seen).await
}

/// Defines the entries of the configuration file, and notes its queues and those that are served
/// beside it.
///
/// # Errors
/// The database failed.
pub async fn config(store: &Store, config: &Config, queues: &[String]) -> Result<(), StoreError> {
    let queues: Vec<String> = config.queues.keys().chain(queues).cloned().collect();
    store.note_queues(&queues).await?;
    // A file that is changed back to what it said before is newer than both.
    let changed = config.file.as_ref().and_then(|file| file.metadata().ok()?.modified().ok());
    let revision = changed
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, crate::clock::millis);
    let seen = config.periodic.iter().map(|(name, definition)| Seen {
        name: name.clone(),
        source: Source::Config,
        digest: digest(definition, revision),
        definition: definition.clone(),
    });
    define(store, seen).await
}

async fn define(store: &Store, seen: impl Iterator<Item = Seen>) -> Result<(), StoreError> {
    for seen in seen {
        let (name, by) = (printable(&seen.name).into_owned(), seen.source.word());
        match store.define_periodic(&seen).await {
            Ok(Defined::Added) => info!("the periodic entry `{name}` is new, by {by}"),
            Ok(Defined::Changed) => info!("the periodic entry `{name}` is defined anew, by {by}"),
            Ok(Defined::Known) => {}
            Err(DefineError::Store(error)) => return Err(error),
            Err(error) => warn!("{error}"),
        }
    }
    Ok(())
}
