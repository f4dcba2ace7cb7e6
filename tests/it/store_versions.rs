//! What the store promises of decisions about which version of a module serves, on SQLite and on
//! PostgreSQL alike.

use std::collections::BTreeSet;

use sqjobs::clock::Timestamp;
use sqjobs::store::Store;
use sqjobs::store::claim::ModuleVersion;
use sqjobs::store::kept::Keep;
use sqjobs::store::versions::{Canary, Choice, Decision, ModuleState, VersionRow};

use crate::store_fixtures::{Rows, on_every_database};

/// A module of which `1` and then `2` served.
async fn serve_two(store: &Store, rows: &Rows) {
    for digest in ["1", "2"] {
        let version = ModuleVersion {
            name: "m".into(),
            version: Some(format!("of {digest}")),
            digest: digest.into(),
        };
        let bytes = Some(digest.as_bytes());
        store.note_serving(&version, 1, bytes, "host", Keep::default()).await.unwrap();
        rows.write("UPDATE {p}module_versions SET served_at = served_at - 1000").await;
    }
}

async fn state(store: &Store) -> ModuleState {
    store.module_states().await.unwrap().remove("m").unwrap()
}

async fn decide(store: &Store, decision: Decision) -> bool {
    store.decide("m", &decision, "host").await.unwrap()
}

fn roll_back(from: &str, to: &str) -> Decision {
    Decision::RollBack { from: from.into(), to: to.into(), reason: "no\0 good".into() }
}

fn canary(digest: &str) -> Decision {
    Decision::Canary(digest.into(), 1000)
}

async fn version(store: &Store, digest: &str) -> VersionRow {
    let versions = store.module_versions("m").await.unwrap();
    versions.into_iter().find(|row| row.digest == digest).unwrap()
}

/// What happened last, and to which version.
async fn last_event(store: &Store) -> (String, Option<String>, Option<String>) {
    let row = store.module_history("m").await.unwrap().remove(0);
    assert_eq!(row.host, "host");
    assert_eq!(row.version, row.digest.as_ref().map(|digest| format!("of {digest}")));
    (row.event, row.digest, row.reason)
}

fn event(
    name: &str,
    digest: &str,
    reason: Option<&str>,
) -> (String, Option<String>, Option<String>) {
    (name.into(), Some(digest.into()), reason.map(str::to_owned))
}

fn set(digests: &[&str]) -> BTreeSet<String> {
    digests.iter().map(|&digest| digest.to_owned()).collect()
}

on_every_database! {
    async fn a_module_follows_its_file_until_somebody_decides_otherwise(store, rows) {
        serve_two(&store, &rows).await;
        let state = state(&store).await;
        assert_eq!((state.choice.name(), state.choice.digest()), ("follow", None));
        assert_eq!((state.serving.as_deref(), state.canary), (Some("2"), None));
        assert!(state.since.0 > 0 && state.refused.is_empty());
        let versions = store.module_versions("m").await.unwrap();
        assert_eq!(versions.iter().map(|row| row.digest.as_str()).collect::<Vec<_>>(), ["2", "1"]);
        assert!(store.module_versions("other").await.unwrap().is_empty());
        assert!(store.module_history("other").await.unwrap().is_empty());
    }

    async fn a_rollback_refuses_what_served_and_holds_another_version(store, rows) {
        serve_two(&store, &rows).await;
        assert!(decide(&store, roll_back("2", "1")).await);
        let held = state(&store).await;
        assert_eq!((held.choice.name(), held.choice.digest()), ("held", Some("1")));
        assert_eq!((held.refused, held.known), (set(&["2"]), set(&["1", "2"])));
        let reason = Some("no\u{fffd} good");
        assert_eq!(version(&store, "2").await.refused.as_deref(), reason);
        assert_eq!(version(&store, "1").await.refused, None);
        assert_eq!(last_event(&store).await, event("rolled-back", "1", reason));

        assert!(decide(&store, roll_back("1", "2")).await, "by name, it may serve again");
        assert_eq!(state(&store).await.refused, set(&["1"]));
    }

    async fn a_held_module_is_followed_again_when_another_file_appears(store, rows) {
        serve_two(&store, &rows).await;
        assert!(decide(&store, roll_back("2", "1")).await);
        let since = state(&store).await.since;
        store.follow_file("m", Timestamp(since.0 - 1)).await.unwrap();
        store.follow_file("other", since).await.unwrap();
        assert_eq!(state(&store).await.choice.name(), "held", "that was decided later");
        store.follow_file("m", since).await.unwrap();
        let followed = state(&store).await;
        assert_eq!((followed.choice, followed.refused), (Choice::Follow, set(&["2"])));
    }

    async fn a_pinned_version_serves_whatever_appears_until_it_is_unpinned(store, rows) {
        serve_two(&store, &rows).await;
        assert!(decide(&store, roll_back("2", "1")).await);
        assert!(decide(&store, Decision::Pin("2".into())).await);
        let pinned = state(&store).await;
        assert_eq!((pinned.choice.name(), pinned.choice.digest()), ("pinned", Some("2")));
        assert!(pinned.refused.is_empty(), "whoever pins it wants it to serve");
        assert_eq!(last_event(&store).await, event("pinned", "2", None));
        store.follow_file("m", pinned.since).await.unwrap();
        assert_eq!(state(&store).await.choice.name(), "pinned");

        assert!(decide(&store, Decision::Unpin).await);
        assert_eq!(state(&store).await.choice, Choice::Follow);
        assert_eq!(last_event(&store).await, ("unpinned".into(), None, None));
        let told = store.module_history("m").await.unwrap().len();
        assert!(!decide(&store, Decision::Unpin).await, "it follows its file already");
        assert_eq!(store.module_history("m").await.unwrap().len(), told);
    }

    async fn a_canary_takes_its_share_and_counts_from_its_begin(store, rows) {
        serve_two(&store, &rows).await;
        let counted = [("1".to_owned(), 5, 2), ("2".to_owned(), 7, 0)];
        store.count_runs("m", &counted).await.unwrap();
        store.count_runs("m", &counted).await.unwrap();
        store.count_runs("other", &counted).await.unwrap();
        let row = version(&store, "1").await;
        assert_eq!((row.runs, row.failures), (10, 4));
        assert!(decide(&store, roll_back("1", "2")).await);
        assert!(decide(&store, canary("1")).await);
        assert_eq!(last_event(&store).await, event("canary", "1", None));
        let begun = state(&store).await;
        let Some(Canary { digest, share, since }) = begun.canary else { panic!("{begun:?}") };
        assert_eq!((digest.as_str(), share), ("1", 1000));
        assert!(since.0 > 0 && begun.refused.is_empty());
        assert_eq!(begun.choice.digest(), Some("2"), "what serves goes on");
        for digest in ["1", "2"] {
            let row = version(&store, digest).await;
            assert_eq!((row.runs, row.failures), (0, 0), "{digest}");
        }
    }

    async fn only_the_canary_is_promoted_and_then_held(store, rows) {
        serve_two(&store, &rows).await;
        assert!(!decide(&store, Decision::Promote("1".into())).await, "there is none");
        assert!(decide(&store, canary("1")).await);
        assert!(!decide(&store, Decision::Promote("2".into())).await);
        assert!(decide(&store, Decision::Promote("1".into())).await);
        let promoted = state(&store).await;
        assert_eq!((promoted.choice, promoted.canary), (Choice::Held("1".into()), None));
        assert_eq!(last_event(&store).await, event("promoted", "1", None));
    }

    async fn a_canary_that_failed_is_refused_and_one_that_was_ended_is_not(store, rows) {
        serve_two(&store, &rows).await;
        assert!(decide(&store, canary("1")).await);
        assert!(decide(&store, Decision::EndCanary("1".into(), None)).await);
        let ended = state(&store).await;
        assert_eq!((ended.choice, ended.canary), (Choice::Follow, None));
        assert!(ended.refused.is_empty());
        assert_eq!(last_event(&store).await, event("canary-ended", "1", None));

        assert!(decide(&store, canary("1")).await);
        let failed = Decision::EndCanary("1".into(), Some("it fails".into()));
        assert!(decide(&store, failed.clone()).await);
        let failed_state = state(&store).await;
        assert_eq!((failed_state.canary, failed_state.refused), (None, set(&["1"])));
        assert_eq!(last_event(&store).await, event("canary-failed", "1", Some("it fails")));
        let told = store.module_history("m").await.unwrap().len();
        assert!(!decide(&store, failed).await, "another host was first");
        assert_eq!(store.module_history("m").await.unwrap().len(), told);
    }

    /// A host found that the canary fails while somebody promoted it, or ended it by hand.
    async fn a_decision_that_comes_too_late_changes_nothing(store, rows) {
        serve_two(&store, &rows).await;
        for end in [Decision::Promote("1".into()), Decision::EndCanary("1".into(), None)] {
            assert!(decide(&store, canary("1")).await);
            assert!(decide(&store, end).await);
            let before = (state(&store).await, version(&store, "1").await);
            let late = Decision::EndCanary("1".into(), Some("it fails".into()));
            assert!(!decide(&store, late).await);
            assert_eq!((state(&store).await, version(&store, "1").await), before);
        }
        assert!(!store.decide("other", &Decision::Pin("1".into()), "host").await.unwrap());
        assert!(store.module_history("other").await.unwrap().is_empty());
    }
}
