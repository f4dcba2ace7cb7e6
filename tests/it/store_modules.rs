//! What the store promises of the jobs that are deployed and of the components that it keeps, on
//! SQLite and on PostgreSQL alike.

use std::collections::BTreeMap;
use std::time::Duration;

use sqjobs::store::Store;
use sqjobs::store::claim::ModuleVersion;
use sqjobs::store::kept::Keep;
use sqjobs::store::modules::DeployedJob;
use sqjobs::store::versions::Decision;

use crate::store_fixtures::{Rows, on_every_database};

const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: i64 = 3_600_000;

fn version(digest: &str) -> ModuleVersion {
    ModuleVersion { name: "m".into(), version: Some(format!("of {digest}")), digest: digest.into() }
}

/// A host takes a version of 100 bytes into service.
async fn serve(store: &Store, digest: &str, keep: Keep) {
    let bytes = Some(digest.as_bytes());
    store.note_serving(&version(digest), 100, bytes, "host", keep).await.unwrap();
}

/// The versions whose components are kept.
async fn kept(store: &Store, digests: &[&str]) -> String {
    let mut kept = String::new();
    for digest in digests {
        let bytes = store.module_bytes("m", digest).await.unwrap();
        assert!(bytes.is_none() || bytes.as_deref() == Some(digest.as_bytes()));
        assert_eq!(store.keeps_module_bytes("m", digest).await.unwrap(), bytes.is_some());
        if bytes.is_some() {
            kept.push_str(digest);
        }
    }
    kept
}

/// Moves all that happened to the versions into the past.
async fn age(rows: &Rows, ms: i64) {
    rows.write(&format!(
        "UPDATE {{p}}module_versions SET first_seen_at = first_seen_at - {ms}, \
         served_at = served_at - {ms}"
    ))
    .await;
    rows.write(&format!("UPDATE {{p}}module_history SET at = at - {ms}")).await;
}

async fn events(store: &Store) -> Vec<(String, Option<String>)> {
    let history = store.module_history("m").await.unwrap();
    history.into_iter().map(|row| (row.event, row.digest)).collect()
}

on_every_database! {
    async fn a_deployed_job_is_what_the_last_worker_said_of_it(store) {
        assert_eq!(store.deployed_job("adder_job").await.unwrap(), None);
        let first = DeployedJob {
            name: "adder_job".into(),
            module: ModuleVersion { name: "adder".into(), version: None, digest: "1".into() },
            queue: None,
            records_result: true,
            description: r#"{"a":  1}"#.into(),
        };
        let other = DeployedJob { name: "other".into(), ..first.clone() };
        store.register_jobs(&[first.clone(), other.clone()]).await.unwrap();
        assert_eq!(store.deployed_job("adder_job").await.unwrap(), Some(first));
        let last = DeployedJob {
            name: "adder_job".into(),
            module: version("2"),
            queue: Some("orders".into()),
            records_result: false,
            description: "{}".into(),
        };
        store.register_jobs(std::slice::from_ref(&last)).await.unwrap();
        assert_eq!(store.deployed_job("adder_job").await.unwrap(), Some(last));
        assert_eq!(store.deployed_job("other").await.unwrap(), Some(other));
    }

    async fn a_job_name_is_held_by_the_module_that_was_noted_last(store) {
        let owners = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|&(job, module)| (job.to_owned(), module.to_owned())).collect()
        };
        assert!(store.job_owners().await.unwrap().is_empty());
        store.set_job_owners(&owners(&[("a", "m1"), ("b", "m1")])).await.unwrap();
        store.set_job_owners(&owners(&[("b", "m2"), ("c", "m2")])).await.unwrap();
        let now = owners(&[("a", "m1"), ("b", "m2"), ("c", "m2")]);
        assert_eq!(store.job_owners().await.unwrap(), now);
    }

    async fn a_version_s_component_is_kept_as_it_was_seen_first(store) {
        let keep = Keep::default();
        assert_eq!(store.module_bytes("m", "1").await.unwrap(), None);
        store.note_serving(&version("1"), 100, None, "host", keep).await.unwrap();
        assert_eq!(kept(&store, &["1"]).await, "", "its bytes were not at hand");
        store.note_version(&version("1"), 100, b"1").await.unwrap();
        store.note_version(&version("1"), 100, b"other").await.unwrap();
        store.note_serving(&version("1"), 100, None, "host", keep).await.unwrap();
        assert_eq!(kept(&store, &["1"]).await, "1");
        assert_eq!(store.module_bytes("other", "1").await.unwrap(), None);
        assert!(!store.keeps_module_bytes("other", "1").await.unwrap());
    }

    async fn a_version_that_is_noted_does_not_serve_yet(store) {
        store.note_version(&version("1"), 100, b"1").await.unwrap();
        let rows = store.module_versions("m").await.unwrap();
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.digest.as_str(), row.version.as_deref(), row.size), ("1", Some("of 1"), 100));
        assert_eq!((row.served_at, &row.refused, row.is_kept), (None, &None, true));
        assert!(events(&store).await.is_empty());
        assert_eq!(store.module_states().await.unwrap()["m"].serving, None);

        serve(&store, "1", Keep::default()).await;
        assert!(store.module_versions("m").await.unwrap()[0].served_at.is_some());
        assert_eq!(store.module_states().await.unwrap()["m"].serving.as_deref(), Some("1"));
    }

    async fn the_history_tells_each_version_that_serves_once(store) {
        for digest in ["1", "1", "2", "2", "1"] {
            serve(&store, digest, Keep::default()).await;
        }
        let serves = |digest: &str| ("serves".to_owned(), Some(digest.to_owned()));
        assert_eq!(events(&store).await, [serves("1"), serves("2"), serves("1")]);
        let history = store.module_history("m").await.unwrap();
        assert_eq!(history[1].version.as_deref(), Some("of 2"));
        assert_eq!((history[1].host.as_str(), &history[1].reason), ("host", &None));
    }

    /// 10 versions, of 90 days, of 256 MiB.
    async fn of_a_module_so_many_versions_are_kept_those_that_served_last(store, rows) {
        let usual = Keep { count: 10, age: 90 * 24 * HOUR, bytes: 268_435_456 };
        assert_eq!(Keep::default(), usual);
        for digest in ["1", "2", "3"] {
            serve(&store, digest, Keep { count: 3, ..usual }).await;
            age(&rows, 1000).await;
        }
        assert_eq!(kept(&store, &["1", "2", "3"]).await, "123");
        serve(&store, "1", Keep { count: 2, ..usual }).await;
        assert_eq!(kept(&store, &["1", "2", "3"]).await, "13");
        assert_eq!(store.module_versions("m").await.unwrap().len(), 3, "its row stays");
    }

    async fn versions_are_kept_up_to_so_many_bytes_together(store, rows) {
        for digest in ["1", "2", "3"] {
            serve(&store, digest, Keep { bytes: 300, ..Keep::default() }).await;
            age(&rows, 1000).await;
        }
        assert_eq!(kept(&store, &["1", "2", "3"]).await, "123");
        serve(&store, "3", Keep { bytes: 299, ..Keep::default() }).await;
        assert_eq!(kept(&store, &["1", "2", "3"]).await, "23");
    }

    /// Long after, the row goes too, and what is told of that time.
    async fn versions_are_kept_for_so_long_since_they_served(store, rows) {
        let keep = Keep { age: HOUR, ..Keep::default() };
        serve(&store, "1", keep).await;
        store.note_version(&version("2"), 100, b"2").await.unwrap();
        age(&rows, HOUR_MS / 2).await;
        serve(&store, "3", keep).await;
        assert_eq!(kept(&store, &["1", "2", "3"]).await, "123");
        age(&rows, HOUR_MS / 2 + 1000).await;
        serve(&store, "4", keep).await;
        assert_eq!(kept(&store, &["1", "2", "3", "4"]).await, "34");
        let versions = store.module_versions("m").await.unwrap();
        assert_eq!(versions.iter().map(|row| row.digest.as_str()).collect::<Vec<_>>(), ["4", "3"]);
        assert_eq!(events(&store).await.len(), 2);
    }

    async fn what_was_refused_stays_refused_when_it_is_long_gone(store, rows) {
        let keep = Keep { age: HOUR, ..Keep::default() };
        serve(&store, "1", keep).await;
        serve(&store, "2", keep).await;
        let back = Decision::RollBack { from: "2".into(), to: "1".into(), reason: "bad".into() };
        assert!(store.decide("m", &back, "host").await.unwrap());
        age(&rows, 2 * HOUR_MS).await;
        serve(&store, "3", keep).await;
        assert_eq!(kept(&store, &["1", "2", "3"]).await, "13", "1 is still the one chosen");
        assert!(store.module_states().await.unwrap()["m"].refused.contains("2"));
    }

    async fn what_serves_is_pinned_or_is_a_canary_is_always_kept(store, rows) {
        for digest in ["1", "2", "3", "4"] {
            serve(&store, digest, Keep::default()).await;
            age(&rows, HOUR_MS).await;
        }
        assert!(store.decide("m", &Decision::Pin("1".into()), "host").await.unwrap());
        assert!(store.decide("m", &Decision::Canary("2".into(), 100), "host").await.unwrap());
        let nothing = Keep { count: 0, age: Duration::ZERO, bytes: 0 };
        serve(&store, "3", nothing).await;
        assert_eq!(kept(&store, &["1", "2", "3", "4"]).await, "123");
    }
}
