//! What the store promises of parked jobs and of the order within a message group, on SQLite and on
//! PostgreSQL alike.

use std::time::Duration;

use sqjobs::broker::Attributes;
use sqjobs::clock::Timestamp;
use sqjobs::payload::Job;
use sqjobs::store::claim::{Claim, ClaimRequest};
use sqjobs::store::enqueue::{Enqueued, NewJob};
use sqjobs::store::finish::{Ending, FinishRequest};
use sqjobs::store::park::Seen;

use crate::store_fixtures::{
    LEASE, begin, claim, end, finish, job, new_job, on_every_database, park, worker,
};

on_every_database! {
    async fn a_parked_job_is_sent_again_with_what_its_message_had(store) {
        let attributes = Attributes::from([("tenant".to_owned(), "acme".into())]);
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        let request = FinishRequest {
            is_parked: true,
            group: Some("g".into()),
            address: "http://h/q".into(),
            attributes: attributes.clone(),
            ..finish(&job, "t", 1, Ending::Retry(Duration::ZERO))
        };
        assert!(end(&store, request).await);
        let rows = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].queue.as_str(), &rows[0].attributes), ("http://h/q", &attributes));
        assert_eq!(rows[0].group.as_deref(), Some("g"));
        assert_eq!(rows[0].job.enqueued_at, Some(Timestamp(1_700_000_000_000)));
    }

    async fn a_parked_job_is_not_sent_before_its_time(store) {
        let _ = begin(&store, &job("a"), "t").await;
        let request =
            FinishRequest { is_parked: true, ..finish(&job("a"), "t", 1, Ending::Retry(LEASE)) };
        assert!(end(&store, request).await);
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
        assert_eq!(store.take_outbox(10, 600_000).await.unwrap().len(), 1);
    }

    async fn a_message_that_has_not_begun_is_parked_once(store) {
        let request = park(&job("a"), "q", None);
        store.park_message(&request).await.unwrap();
        store.park_message(&request).await.unwrap();
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "PENDING");
        assert_eq!(store.take_outbox(10, 0).await.unwrap().len(), 1);
    }

    /// Messages one, two and three of a group; the first is parked, the others come meanwhile.
    async fn what_is_parked_keeps_its_place_in_its_group(store) {
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        let of = |id: &str, token: &str| ClaimRequest {
            group: Some("g".into()),
            is_ordered: true,
            ..claim(&job(id), "w", token)
        };
        let ask = |request: ClaimRequest| {
            let store = store.clone();
            async move { store.claim(&[request]).await.unwrap().remove(0) }
        };
        let fail = |token: &str| FinishRequest {
            is_parked: true,
            is_ordered: true,
            group: Some("g".into()),
            address: "q.fifo".into(),
            ..finish(&job("one"), token, 1, Ending::Retry(Duration::ZERO))
        };
        assert!(matches!(ask(of("one", "1")).await, Claim::Begun(_)));
        assert!(end(&store, fail("1")).await);
        assert_eq!(ask(of("two", "2")).await, Claim::Behind);
        store.park_message(&park(&job("two"), "q.fifo", Some("g"))).await.unwrap();

        let sent = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(sent.len(), 1, "one of the group at a time");
        assert_eq!(sent[0].job.id, "one");
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty(), "until it is sent");
        store.outbox_sent(&[sent[0].id]).await.unwrap();

        // It comes, and is parked once more: still the first of its group.
        assert!(matches!(ask(of("one", "3")).await, Claim::Begun(_)));
        assert!(end(&store, fail("3")).await);
        assert_eq!(ask(of("three", "4")).await, Claim::Behind);
        store.park_message(&park(&job("three"), "q.fifo", Some("g"))).await.unwrap();
        let mut order = Vec::new();
        while let Some(row) = store.take_outbox(10, 0).await.unwrap().pop() {
            order.push(row.job.id.clone());
            store.outbox_sent(&[row.id]).await.unwrap();
        }
        assert_eq!(order, ["one", "two", "three"]);
        assert!(matches!(ask(of("one", "5")).await, Claim::Begun(_)));
        assert!(end(&store, finish(&job("one"), "5", 3, Ending::Success)).await);
        assert!(matches!(ask(of("two", "6")).await, Claim::Begun(_)));
    }

    /// It was received, put back, and sent again behind what had been sent after it.
    async fn a_job_that_went_back_behind_a_later_one_of_its_group_is_not_taken_for_lost(store, aged) {
        let of = |id: &str, token: &str| ClaimRequest {
            group: Some("g".into()),
            is_ordered: true,
            ..claim(&job(id), "w", token)
        };
        let park = |id: &str| {
            let (store, request) = (store.clone(), park(&job(id), "q.fifo", Some("g")));
            async move { store.park_message(&request).await.unwrap() }
        };
        let send_next = || async {
            let rows = store.take_outbox(1, 0).await.unwrap();
            aged.age_jobs(3).await;
            store.outbox_sent(&[rows[0].id]).await.unwrap();
            rows[0].job.id.clone()
        };
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        park("one").await;
        park("two").await;
        assert_eq!([send_next().await, send_next().await], ["one", "two"]);
        park("one").await;
        assert_eq!(send_next().await, "one");

        assert_eq!(store.claim(&[of("two", "1")]).await.unwrap(), [Claim::Behind]);
        assert_eq!(store.status("one").await.unwrap().unwrap().status, "PENDING");
        park("two").await;
        assert_eq!(send_next().await, "two");
        // Now the queue would have brought the other one first.
        assert!(matches!(store.claim(&[of("two", "2")]).await.unwrap()[..], [Claim::Begun(_)]));
        assert_eq!(store.status("one").await.unwrap().unwrap().error_kind.as_deref(), Some("lost"));
    }

    /// One host is given the queue's name, another its URL.
    async fn the_order_of_a_group_holds_whether_rows_name_their_queue_or_its_url(store) {
        let new = |id: &str, queue: &str, url: Option<&str>| NewJob {
            job: job(id),
            queue: queue.into(),
            queue_url: url.map(Into::into),
            group: Some("g".into()),
            ..new_job()
        };
        let url = "http://h:1/2/q_1.fifo";
        let jobs = [
            (new("a", "q_1.fifo", None), true),
            (new("b", "q_1.fifo", Some(url)), false),
            (new("c", "q_1.fifo", None), false),
            (new("d", "qx1.fifo", Some("http://h:1/2/qx1.fifo")), true),
        ];
        for (new, expected) in jobs {
            let Enqueued::Added { is_next, .. } = store.enqueue_for_sweep(&new).await.unwrap()
            else { panic!() };
            assert_eq!(is_next, expected, "{}", new.job.id);
        }
        let mut order = Vec::new();
        loop {
            let rows = store.take_outbox(10, 0).await.unwrap();
            if rows.is_empty() {
                break;
            }
            order.push(rows.iter().map(|row| row.job.id.clone()).collect::<Vec<_>>().join(" "));
            store.outbox_sent(&rows.iter().map(|row| row.id).collect::<Vec<_>>()).await.unwrap();
        }
        assert_eq!(order, ["a d", "b", "c"]);
    }

    /// One and two were parked and sent again in their order; the message of one gets lost.
    async fn a_message_that_is_gone_holds_its_group_up_only_while_its_attempt_lives(store, aged) {
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        let ask = |id: &'static str, token: &'static str| {
            let request = ClaimRequest {
                group: Some("g".into()),
                is_ordered: true,
                ..claim(&job(id), "w", token)
            };
            let store = store.clone();
            async move { store.claim(&[request]).await.unwrap().remove(0) }
        };
        for id in ["one", "two"] {
            store.park_message(&park(&job(id), "q.fifo", Some("g"))).await.unwrap();
            let sent = store.take_outbox(10, 0).await.unwrap();
            aged.age_jobs(3).await;
            store.outbox_sent(&[sent[0].id]).await.unwrap();
        }
        assert!(matches!(ask("one", "1").await, Claim::Begun(_)));
        let behind = ask("two", "2").await;
        assert!(matches!(behind, Claim::Held(wait) if wait <= LEASE && wait > LEASE / 2), "{behind:?}");
        assert_eq!(ask("three", "3").await, Claim::Behind, "it has no place yet");
        assert_eq!(store.status("one").await.unwrap().unwrap().status, "RUNNING");
        store.let_go("one", "1").await.unwrap();
        assert!(matches!(ask("two", "4").await, Claim::Begun(_)));
        let row = store.status("one").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.error_kind.as_deref()), ("FAILURE", Some("lost")));
    }

    async fn of_one_group_of_a_fifo_queue_one_row_is_sent_at_a_time(store) {
        let new = |id: &str, group: &str| NewJob {
            job: job(id),
            queue: "q.fifo".into(),
            group: Some(group.into()),
            ..new_job()
        };
        let add = |id: &'static str, group: &'static str| {
            let (store, new) = (store.clone(), new(id, group));
            async move { store.enqueue_for_sweep(&new).await.unwrap() }
        };
        assert!(matches!(add("a", "g").await, Enqueued::Added { is_next: true, .. }));
        assert!(matches!(add("b", "g").await, Enqueued::Added { is_next: false, .. }));
        assert!(matches!(add("c", "h").await, Enqueued::Added { is_next: true, .. }));
        let taken = |rows: &[sqjobs::store::outbox::OutboxRow]| {
            rows.iter().map(|row| row.job.id.clone()).collect::<Vec<_>>()
        };
        let first = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(taken(&first), ["a", "c"]);
        store.outbox_failed(first[0].id, "not now", 60_000).await.unwrap();
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty(), "b waits for a");
        store.outbox_sent(&[first[0].id]).await.unwrap();
        assert_eq!(taken(&store.take_outbox(10, 0).await.unwrap()), ["b"]);
    }

    async fn a_job_that_no_module_holds_waits_since_it_was_received_first(store, rows) {
        let request = |id: &str| park(&job(id), "q", None);
        let seen = store.note_unknown(&request("a")).await.unwrap();
        assert!(matches!(seen, Seen::Waiting { age } if age < LEASE), "{seen:?}");
        let back = 2 * LEASE.as_millis();
        rows.write(&format!("UPDATE {{p}}jobs SET unknown_since = unknown_since - {back}")).await;
        let seen = store.note_unknown(&request("a")).await.unwrap();
        assert!(matches!(seen, Seen::Waiting { age } if age >= 2 * LEASE), "{seen:?}");
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "PENDING");

        let mut other = request("a");
        other.job.args = "[7]".into();
        assert_eq!(store.note_unknown(&other).await.unwrap(), Seen::Other);
        other.job = Job { name: "other".into(), ..job("a") };
        assert_eq!(store.note_unknown(&other).await.unwrap(), Seen::Other);
        let _ = begin(&store, &job("a"), "t").await;
        assert!(end(&store, finish(&job("a"), "t", 1, Ending::Success)).await);
        assert_eq!(store.note_unknown(&request("a")).await.unwrap(), Seen::Finished);
        let failed = "status = 'FAILURE', error_kind = 'lost'";
        rows.write(&format!("UPDATE {{p}}jobs SET {failed} WHERE id = 'a'")).await;
        let seen = store.note_unknown(&request("a")).await.unwrap();
        assert!(matches!(seen, Seen::Waiting { .. }), "its message came all the same");
    }
}
