//! How many attempts of one queue may run at once, changed while they run.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::Config;
use crate::config::live::LiveConfig;

/// Most attempts of a queue at once, as the settings have it.
pub(super) fn limit(config: &Config, queue: &str) -> usize {
    let limit = config.queues.get(queue).and_then(|settings| settings.concurrency);
    limit.unwrap_or(config.concurrency).min(config.concurrency)
}

/// Gives a queue more slots, or takes free ones away, whenever the settings change. What runs
/// keeps its slot. `given` is how many there are at first.
pub(super) async fn follow(
    live: Arc<LiveConfig>,
    queue: String,
    slots: Arc<Semaphore>,
    mut given: usize,
) {
    let mut changes = live.changes();
    loop {
        let wanted = limit(&live.load(), &queue);
        if wanted > given {
            slots.add_permits(wanted - given);
            given = wanted;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // Never closed: the semaphore lives as long as this task.
            Ok(slot) = slots.acquire(), if wanted < given => {
                slot.forget();
                given -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;
    use std::path::Path;

    fn config(text: &str, folder: &Path) -> Config {
        std::fs::write(folder.join(crate::config::FILE_NAME), text).unwrap();
        Config::read(&Flags::default(), &|_| None, folder).unwrap()
    }

    #[tokio::test]
    async fn slots_follow_the_settings_and_what_runs_keeps_its_own() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let first = config("[queues.q]\nconcurrency = 3\n", &folder);
        let slots = Arc::new(Semaphore::new(limit(&first, "q")));
        let live = Arc::new(LiveConfig::new(Arc::new(first), Flags::default()));
        let running = slots.clone().acquire_many_owned(3).await.unwrap();
        let task = tokio::spawn(follow(live.clone(), "q".into(), slots.clone(), 3));
        config("[queues.q]\nconcurrency = 1\n", &folder);
        live.reload().unwrap();
        tokio::task::yield_now().await;
        drop(running);
        while slots.available_permits() != 1 {
            tokio::task::yield_now().await;
        }
        config("[queues.q]\nconcurrency = 5\n", &folder);
        live.reload().unwrap();
        while slots.available_permits() != 5 {
            tokio::task::yield_now().await;
        }
        task.abort();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
