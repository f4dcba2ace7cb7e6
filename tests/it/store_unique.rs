//! What the store promises of unique keys, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::store::dead::{DeadKind, DeadMessage};
use sqjobs::store::enqueue::{Enqueued, NewJob};
use sqjobs::store::finish::Ending;
use sqjobs::store::unique::UniqueRule;

use crate::store_fixtures::{begin, dead, end, finish, job, new_job, on_every_database};

on_every_database! {
    async fn a_key_is_free_once_its_job_is_done_and_its_window_has_ended(store) {
        let rule = |secs| UniqueRule::named("k", Duration::from_secs(secs)).unwrap();
        let new = |id: &str, secs| NewJob { job: job(id), unique: Some(rule(secs)), ..new_job() };
        let held = |id: &str| Enqueued::Held(id.to_owned());
        assert!(matches!(store.enqueue(&new("a", 0)).await.unwrap(), Enqueued::Added { .. }));
        assert_eq!(store.enqueue(&new("a", 0)).await.unwrap(), Enqueued::Existing);
        assert_eq!(store.enqueue(&new("b", 0)).await.unwrap(), held("a"));
        let _ = begin(&store, &job("a"), "t").await;
        assert_eq!(store.enqueue(&new("b", 0)).await.unwrap(), held("a"), "it runs");
        assert!(end(&store, finish(&job("a"), "t", 1, Ending::Success)).await);
        assert_eq!(store.key_holder("key:k").await.unwrap(), None);
        assert_eq!(store.enqueue(&new("a", 3600)).await.unwrap(), Enqueued::Existing, "takes no key");
        assert!(matches!(store.enqueue(&new("b", 3600)).await.unwrap(), Enqueued::Added { .. }));
        let _ = begin(&store, &job("b"), "t2").await;
        assert!(end(&store, finish(&job("b"), "t2", 1, Ending::Success)).await);
        assert_eq!(store.enqueue(&new("c", 0)).await.unwrap(), held("b"), "its window has not ended");
        assert!(store.status("c").await.unwrap().is_none());
        store.sweep_keys().await.unwrap();
        assert_eq!(store.key_holder("key:k").await.unwrap().as_deref(), Some("b"));
    }

    async fn of_many_adds_of_a_key_at_once_one_adds_a_job(store) {
        let rule = UniqueRule::named("k", Duration::ZERO).unwrap();
        let adds = (0..100).map(|number| {
            let new = NewJob { job: job(&format!("{number}")), unique: Some(rule.clone()), ..new_job() };
            let store = store.clone();
            tokio::spawn(async move { store.enqueue(&new).await.unwrap() })
        });
        let mut added = 0;
        for add in adds.collect::<Vec<_>>() {
            added += usize::from(matches!(add.await.unwrap(), Enqueued::Added { .. }));
        }
        assert_eq!(added, 1);
        assert_eq!(store.take_outbox(100, 0).await.unwrap().len(), 0, "its adder has it");
    }

    /// A job that can't be sent was never there for those who share its key.
    async fn what_can_t_be_sent_gives_its_key_back_and_old_keys_are_swept(store, rows) {
        let rule = |key: &str| UniqueRule::named(key, Duration::from_secs(3600)).ok();
        for id in ["gone", "old", "waits"] {
            let new = NewJob { job: job(id), unique: rule(id), ..new_job() };
            let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else {
                panic!()
            };
            if id == "gone" {
                let message = DeadMessage { kind: DeadKind::Undeliverable, ..dead(id) };
                store.outbox_undeliverable(outbox_id, &message).await.unwrap();
            }
        }
        assert_eq!(store.key_holder("key:gone").await.unwrap(), None);
        let _ = begin(&store, &job("old"), "t").await;
        assert!(end(&store, finish(&job("old"), "t", 1, Ending::Success)).await);
        rows.write("UPDATE {p}unique_keys SET held_until = held_until - 7201000").await;
        store.sweep_keys().await.unwrap();
        assert_eq!(rows.texts("SELECT key FROM {p}unique_keys").await, ["key:waits"]);
        assert_eq!(store.key_holder("key:waits").await.unwrap().as_deref(), Some("waits"));
    }
}
