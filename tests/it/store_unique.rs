//! What the store promises of unique keys, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::store::enqueue::{Enqueued, NewJob};
use sqjobs::store::finish::Ending;
use sqjobs::store::unique::UniqueRule;

use crate::store_fixtures::{begin, end, finish, job, new_job, on_every_database};

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
}
