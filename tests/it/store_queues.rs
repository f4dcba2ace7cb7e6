//! What the store promises of queues that are paused and polled, on SQLite and on PostgreSQL alike.

use std::collections::BTreeSet;

use sqjobs::store::workers::WorkerRow;

use crate::store_fixtures::{LEASE, on_every_database, worker};

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

on_every_database! {
    async fn a_queue_is_paused_until_it_is_resumed_and_the_others_are_not(store) {
        assert!(store.paused_queues().await.unwrap().is_empty());
        assert!(store.pause_queue("orders").await.unwrap());
        assert!(!store.pause_queue("orders").await.unwrap(), "it was paused already");
        assert!(store.pause_queue("mails").await.unwrap());
        assert_eq!(store.paused_queues().await.unwrap(), names(&["mails", "orders"]));
        assert!(store.resume_queue("orders").await.unwrap());
        assert!(!store.resume_queue("orders").await.unwrap(), "it was not paused");
        assert_eq!(store.paused_queues().await.unwrap(), names(&["mails"]));
    }

    async fn the_queues_that_are_polled_are_those_of_all_workers(store) {
        assert!(store.polled_queues().await.unwrap().is_empty());
        for (id, queues) in [("w1", "orders,mails"), ("w2", "mails,invoices.fifo"), ("w3", "")] {
            let worker = WorkerRow { queues: queues.into(), ..worker(id, LEASE) };
            store.renew_worker(&worker).await.unwrap();
        }
        let polled = store.polled_queues().await.unwrap();
        assert_eq!(polled, names(&["invoices.fifo", "mails", "orders"]));
        store.remove_worker("w2").await.unwrap();
        assert_eq!(store.polled_queues().await.unwrap(), names(&["mails", "orders"]));
    }
}
