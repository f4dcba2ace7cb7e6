//! What the store promises of periodic entries, on SQLite and on PostgreSQL alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqjobs::beater::definition::Definition;
use sqjobs::store::periodic::{Beat, DefineError, Defined, Seen, Source};
use sqjobs::store::{Database, Store};
use support::servers::{self, RUNTIME};

/// After so long a test that waits for something gives it up.
const HUNG: Duration = Duration::from_secs(30);

/// Runs a rule on an empty store of each database.
fn on_each<F: Future<Output = ()>>(holds: impl Fn(Store) -> F) {
    let folder = std::env::temp_dir().join(servers::unique("store"));
    let path = folder.join("test.db");
    let url = servers::database_url().parse().unwrap();
    let schema = servers::unique("schema");
    for database in
        [Database::Sqlite { path, is_durable: true }, Database::Postgres { url, schema }]
    {
        RUNTIME.block_on(async {
            let store = Store::open(&database).await.unwrap();
            store.migrate().await.unwrap();
            holds(store).await;
        });
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn seen(name: &str, source: Source, digest: &str, schedule: &str) -> Seen {
    let definition = Definition {
        job: Some("adder_job".into()),
        queue: Some("q".into()),
        schedule: Some(schedule.into()),
        timezone: Some("UTC".into()),
        ..Definition::default()
    };
    Seen { name: name.into(), source, digest: digest.into(), definition }
}

async fn schedule(store: &Store, name: &str) -> String {
    let entry = store.periodic_entries(Some(name)).await.unwrap().remove(0);
    entry.definition.schedule.unwrap()
}

#[test]
fn an_older_host_that_starts_again_turns_nothing_back_and_a_rollback_does() {
    on_each(|store| async move {
        let old = seen("n", Source::Module, "old", "1 0 * * *");
        let new = seen("n", Source::Module, "new", "2 0 * * *");
        assert_eq!(store.define_periodic(&old).await.unwrap(), Defined::Added);
        assert_eq!(store.define_periodic(&new).await.unwrap(), Defined::Changed);
        assert_eq!(store.define_periodic(&old).await.unwrap(), Defined::Known);
        assert_eq!(schedule(&store, "n").await, "2 0 * * *");
        assert_eq!(store.module_seen_again("old").await.unwrap(), ["n"]);
        assert_eq!(schedule(&store, "n").await, "1 0 * * *");
        assert_eq!(store.define_periodic(&new).await.unwrap(), Defined::Known);
        assert_eq!(schedule(&store, "n").await, "1 0 * * *");
    });
}

#[test]
fn a_command_stands_over_the_file_and_that_over_the_module() {
    on_each(|store| async move {
        for (source, digest, at) in [
            (Source::Command, "c", "3 0 * * *"),
            (Source::Config, "f", "2 0 * * *"),
            (Source::Module, "m", "1 0 * * *"),
        ] {
            store.define_periodic(&seen("n", source, digest, at)).await.unwrap();
            assert_eq!(schedule(&store, "n").await, "3 0 * * *");
        }
        store.edit_periodic("n", None).await.unwrap();
        assert_eq!(schedule(&store, "n").await, "2 0 * * *");
        let again = store.add_periodic(&seen("n", Source::Command, "d", "4 0 * * *")).await;
        assert!(matches!(again, Err(DefineError::Exists(_))));
        let wrong = seen("n", Source::Config, "g", "61 0 * * *");
        let wrong = store.define_periodic(&wrong).await;
        assert!(matches!(wrong, Err(DefineError::Invalid { .. })));
        assert_eq!(schedule(&store, "n").await, "2 0 * * *");
    });
}

/// Side by side, with fewer entries in a transaction than are due.
#[test]
fn many_claims_at_once_deal_with_each_entry_once() {
    on_each(|store| async move {
        let entries = 300;
        for number in 0..entries {
            let mut entry = seen(&format!("e{number}"), Source::Command, "d", "* * * * *");
            entry.definition = Definition {
                job: Some("adder_job".into()),
                queue: Some("q".into()),
                every_ms: Some(1000),
                end_at: Some(store.now().await.unwrap().0 + 60_000),
                overlap: Some("skip".into()),
                ..Definition::default()
            };
            store.define_periodic(&entry).await.unwrap();
        }
        let (queued, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
        let claim = |number: usize| {
            let (store, queued) = (store.clone(), queued.clone());
            tokio::spawn(async move {
                let beat = Beat { beater: number.to_string(), queues: vec![], limit: 40 };
                // A claim that finds nothing for so long will find nothing.
                while queued.load(Ordering::SeqCst) < entries && begun.elapsed() < HUNG {
                    let claimed = store.claim_ticks(&beat).await.unwrap();
                    queued.fetch_add(claimed.queued, Ordering::SeqCst);
                }
            })
        };
        let beaters: Vec<_> = (0..6).map(claim).collect();
        for beater in beaters {
            beater.await.unwrap();
        }
        // By the overlap rule each entry has one job, since none of them runs.
        for number in 0..entries {
            let ticks = store.periodic_ticks(&format!("e{number}"), 1000).await.unwrap();
            let of_entry = ticks.iter().filter(|tick| tick.outcome == "queued").count();
            assert_eq!(of_entry, 1, "{ticks:?}");
        }
        assert_eq!(queued.load(Ordering::SeqCst), entries);
    });
}
