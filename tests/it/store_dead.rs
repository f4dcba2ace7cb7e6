//! What the store promises of the dead list, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::clock::Timestamp;
use sqjobs::payload::Job;
use sqjobs::store::StoreError;
use sqjobs::store::claim::{Claim, ClaimRequest};
use sqjobs::store::dead::{DeadFilter, DeadKind, DeadMessage};
use sqjobs::store::enqueue::NewJob;
use sqjobs::store::finish::{Ending, FinishRequest};
use sqjobs::store::lost::LostFilter;

use crate::store_fixtures::{
    LEASE, begin, claim, dead, end, finish, job, new_job, on_every_database,
};

on_every_database! {
    async fn a_job_that_failed_for_good_is_in_the_dead_list_with_its_exact_body(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Failure(Box::new(dead("a"))))).await);
        let entry = store.dead("a").await.unwrap().unwrap();
        assert_eq!(entry.body, b"body \0 as it was");
        assert_eq!(entry.reason, "no\u{fffd} way", "PostgreSQL's text takes no U+0000");
        assert!(store.put_aside(&dead("a"), None, None).await.unwrap());
        let mut count = 0;
        store
            .each_dead(&DeadFilter::default(), None, |_| {
                count += 1;
                Ok::<(), StoreError>(())
            })
            .await
            .unwrap();
        assert_eq!(count, 1, "put aside twice, kept once");
    }

    /// Two producers may use one id for jobs that nobody holds.
    async fn of_two_messages_put_aside_under_one_id_both_are_kept(store) {
        let unknown = |body: &str, message: &str| DeadMessage {
            kind: DeadKind::UnknownJob,
            body: body.into(),
            message_id: Some(message.into()),
            ..dead("1")
        };
        assert!(store.put_aside(&unknown("one", "m1"), None, None).await.unwrap());
        assert!(store.put_aside(&unknown("two", "m2"), None, None).await.unwrap());
        assert!(store.put_aside(&unknown("two", "m2"), None, None).await.unwrap());
        assert_eq!(store.dead("1").await.unwrap().unwrap().body, b"one");
        assert_eq!(store.dead("m2").await.unwrap().unwrap().body, b"two");
    }

    async fn a_copy_for_the_dead_letter_queue_is_the_exact_body(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        let message = DeadMessage { body: "exactly  this".into(), ..dead("a") };
        let request = FinishRequest {
            dead_letter_queue: Some("http://h/dead".into()),
            ..finish(&job, "t", 1, Ending::Failure(Box::new(message)))
        };
        assert!(end(&store, request).await);
        let rows = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].queue, "http://h/dead");
        assert_eq!(rows[0].body.as_deref(), Some("exactly  this"));
        store.outbox_sent(&[rows[0].id]).await.unwrap();
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "FAILURE");
    }

    async fn what_is_put_aside_fails_its_own_job_and_no_other(store) {
        let unknown = |id: &str| DeadMessage { kind: DeadKind::UnknownJob, ..dead(id) };
        let new = |id: &str| NewJob { job: job(id), ..new_job() };
        for id in ["waits", "other", "done"] {
            store.enqueue(&new(id)).await.unwrap();
        }
        let _ = begin(&store, &job("done"), "t").await;
        assert!(end(&store, finish(&job("done"), "t", 1, Ending::Success)).await);
        let _ = begin(&store, &job("runs"), "t2").await;
        let another = Job { args: "[]".into(), ..job("other") };
        for (id, job) in
            [("waits", job("waits")), ("other", another), ("done", job("done")), ("runs", job("runs"))]
        {
            assert!(store.put_aside(&unknown(id), Some(&job), None).await.unwrap());
        }
        for (id, status) in
            [("waits", "FAILURE"), ("other", "PENDING"), ("done", "SUCCESS"), ("runs", "RUNNING")]
        {
            assert_eq!(store.status(id).await.unwrap().unwrap().status, status, "{id}");
        }
        let row = store.status("waits").await.unwrap().unwrap();
        assert_eq!(row.error_kind.as_deref(), Some("unknown-job"));
    }

    async fn malformed_bodies_take_no_more_space_than_their_queue_may_have(store) {
        let malformed = |id: &str, queue: &str| DeadMessage {
            kind: DeadKind::Malformed,
            body: "x".repeat(40),
            queue: queue.into(),
            job_id: None,
            ..dead(id)
        };
        let put = |message: DeadMessage| {
            let store = store.clone();
            async move { store.put_aside(&message, None, Some(100)).await.unwrap() }
        };
        assert!(put(malformed("1", "q")).await);
        assert!(put(malformed("2", "q")).await);
        assert!(put(malformed("2", "q")).await, "the same message takes no more");
        assert!(!put(malformed("3", "q")).await, "120 bytes are more than 100");
        assert!(store.dead("3").await.unwrap().is_none());
        assert!(put(malformed("4", "other")).await);
        assert!(!store.put_aside(&malformed("5", "third"), None, Some(39)).await.unwrap());
    }

    async fn a_job_whose_message_is_gone_is_given_up_and_runs_if_it_comes_all_the_same(store, rows) {
        let lost = LostFilter { queue: "q".into(), overdue: Duration::ZERO, sent_before: None };
        let _ = begin(&store, &job("runs"), "t").await;
        let _ = begin(&store, &job("retries"), "t2").await;
        assert!(end(&store, finish(&job("retries"), "t2", 1, Ending::Retry(Duration::ZERO))).await);
        let parked = FinishRequest {
            is_parked: true,
            ..finish(&job("parked"), "t3", 1, Ending::Retry(Duration::ZERO))
        };
        let _ = begin(&store, &job("parked"), "t3").await;
        assert!(end(&store, parked).await);
        rows.age_jobs(5).await;
        let patient = LostFilter { overdue: LEASE, ..lost.clone() };
        assert!(!store.has_overdue(&patient).await.unwrap());
        assert!(store.has_overdue(&lost).await.unwrap());
        assert_eq!(store.give_up_lost(&lost, "gone").await.unwrap(), ["retries"]);
        assert_eq!(store.dead("retries").await.unwrap().unwrap().kind, "lost");
        store.remove_worker("w").await.unwrap();
        assert_eq!(store.give_up_lost(&lost, "gone").await.unwrap(), ["runs"]);
        assert!(store.give_up_lost(&lost, "gone").await.unwrap().is_empty(), "the parked one waits");

        let begun = begin(&store, &job("retries"), "t4").await;
        assert_eq!((begun.attempt, begun.spent), (2, 0));
        assert!(store.dead("retries").await.unwrap().is_none());
    }

    async fn a_dead_job_runs_again_when_its_copy_is_moved_back(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Failure(Box::new(dead("a"))))).await);
        let again = store.claim(&[claim(&job, "w", "t2")]).await.unwrap();
        assert_eq!(again, [Claim::Finished("FAILURE".into())], "its own message, once more");
        let moved = Job { is_revived: true, ..job };
        let other = Job { args: "[]".into(), ..moved.clone() };
        let claims = store.claim(&[claim(&other, "w", "t3")]).await.unwrap();
        assert!(matches!(claims[0], Claim::Conflict(_)), "{claims:?}");
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "FAILURE");
        let begun = begin(&store, &moved, "t3").await;
        assert_eq!((begun.attempt, begun.spent), (2, 0));
        assert!(store.dead("a").await.unwrap().is_none());

        // It fails once more, and that message comes once more.
        assert!(end(&store, finish(&moved, "t3", 2, Ending::Failure(Box::new(dead("a"))))).await);
        let again = store.claim(&[claim(&moved, "w", "t4")]).await.unwrap();
        assert_eq!(again, [Claim::Finished("FAILURE".into())]);
        let another = ClaimRequest { message_id: "m2".into(), ..claim(&moved, "w", "t5") };
        assert!(matches!(store.claim(&[another]).await.unwrap()[..], [Claim::Begun(_)]));
        assert!(end(&store, finish(&moved, "t5", 3, Ending::Success)).await);
        let again = store.claim(&[claim(&moved, "w", "t6")]).await.unwrap();
        assert_eq!(again, [Claim::Finished("SUCCESS".into())]);
    }

    async fn a_child_under_another_jobs_id_is_kept_in_the_dead_list(store) {
        let (parent, taken) = (job("parent"), job("taken"));
        let _ = begin(&store, &taken, "t").await;
        let _ = begin(&store, &parent, "t2").await;
        let child = NewJob { job: Job { args: "[7]".into(), ..taken }, ..new_job() };
        let request = FinishRequest {
            children: vec![child],
            ..finish(&parent, "t2", 1, Ending::Success)
        };
        assert!(end(&store, request).await);
        let mut kinds = Vec::new();
        let each = |entry: sqjobs::store::dead::DeadEntry| {
            kinds.push((entry.kind, entry.job_id));
            Ok::<(), StoreError>(())
        };
        store.each_dead(&DeadFilter::default(), None, each).await.unwrap();
        assert_eq!(kinds, [("id-conflict".to_owned(), Some("taken".to_owned()))]);
    }

    async fn a_dead_entry_that_is_sent_again_keeps_attributes_group_and_exact_bytes(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        let attributes = r#"{"n": {"type": "Number", "text": "1.50"}}"#;
        let failed = DeadMessage { attributes: attributes.into(), group: Some("g".into()), ..dead("a") };
        assert!(end(&store, finish(&job, "t", 1, Ending::Failure(Box::new(failed)))).await);
        let malformed = DeadMessage {
            kind: DeadKind::Malformed,
            job: None,
            job_id: None,
            group: Some("h".into()),
            ..dead("m")
        };
        assert!(store.put_aside(&malformed, None, Some(1000)).await.unwrap());
        let batch = store.retry_dead(&DeadFilter::default(), None).await.unwrap();
        assert_eq!((batch.entries, batch.sent, batch.next), (2, 2, None));
        let mut rows = store.take_outbox(10, 0).await.unwrap();
        rows.sort_by(|a, b| a.job.id.cmp(&b.job.id));
        assert_eq!((rows[0].job.id.as_str(), rows[0].group.as_deref(), rows[0].aside), ("a", Some("g"), None));
        assert_eq!((&rows[0].job.args, &rows[0].body), (&job.args, &None));
        assert_eq!(rows[0].attributes["n"].data_type, "Number");
        assert_eq!((rows[1].body.as_deref(), rows[1].group.as_deref()), (Some("body \0 as it was"), Some("h")));
        assert_eq!(rows[1].aside, Some(DeadKind::Malformed));
        assert_eq!(store.status("a").await.unwrap().unwrap().retries, 1);
        store.outbox_sent(&[rows[0].id, rows[1].id]).await.unwrap();
        let batch = store.retry_dead(&DeadFilter::default(), None).await.unwrap();
        assert_eq!((batch.entries, batch.sent), (0, 0));
    }

    async fn a_message_under_a_failed_jobs_id_is_not_sent_again_as_that_job(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        let failed = Ending::Failure(Box::new(DeadMessage { id: "other".into(), ..dead("a") }));
        assert!(end(&store, finish(&job, "t", 1, failed)).await);
        let unknown = DeadMessage { kind: DeadKind::UnknownJob, ..dead("a") };
        let of_other = Job { name: "nobody".into(), ..job };
        assert!(store.put_aside(&unknown, Some(&of_other), None).await.unwrap());
        let only = DeadFilter { kind: Some("unknown-job".into()), ..DeadFilter::default() };
        assert_eq!(store.retry_dead(&only, None).await.unwrap().sent, 1);
        let rows = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(rows[0].body.as_deref(), Some("body \0 as it was"));
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "FAILURE");
    }

    async fn the_dead_list_is_counted_and_shown_by_every_filter(store, rows) {
        let _ = begin(&store, &job("a"), "t").await;
        assert!(end(&store, finish(&job("a"), "t", 1, Ending::Failure(Box::new(dead("a"))))).await);
        let other = DeadMessage {
            kind: DeadKind::UnknownJob,
            queue: "r".into(),
            job: Some("nobody".into()),
            reason: "100% unknown".into(),
            ..dead("b")
        };
        assert!(store.put_aside(&other, None, None).await.unwrap());
        rows.write("UPDATE {p}dead SET received_at = CASE id WHEN 'a' THEN 1000 ELSE 2000 END").await;
        let (all, some) = (DeadFilter::default(), |text: &str| Some(text.to_owned()));
        for (filter, found) in [
            (all.clone(), "ba"),
            (DeadFilter { ids: vec!["a".into(), "x".into()], ..all.clone() }, "a"),
            (DeadFilter { kind: some("unknown-job"), queue: some("r"), ..all.clone() }, "b"),
            (DeadFilter { queue: some("q"), ids: vec!["b".into()], ..all.clone() }, ""),
            (DeadFilter { job: some("adder_job"), ..all.clone() }, "a"),
            (DeadFilter { reason: some("0% u"), ..all.clone() }, "b"),
            (DeadFilter { reason: some("0_"), ..all.clone() }, ""),
            (DeadFilter { error: some("no way"), ..all.clone() }, "a"),
            (DeadFilter { since: Some(Timestamp(2000)), ..all.clone() }, "b"),
            (DeadFilter { until: Some(Timestamp(2000)), ..all.clone() }, "a"),
        ] {
            let mut shown = String::new();
            let each = |entry: sqjobs::store::dead::DeadEntry| {
                shown.push_str(&entry.id);
                Ok::<(), StoreError>(())
            };
            store.each_dead(&filter, None, each).await.unwrap();
            assert_eq!(shown, found, "{filter:?}");
            let count = u64::try_from(found.len()).unwrap();
            assert_eq!(store.count_dead(&filter).await.unwrap(), count, "{filter:?}");
        }
        let mut shown = 0;
        let each = |_| { shown += 1; Ok::<(), StoreError>(()) };
        store.each_dead(&all, Some(1), each).await.unwrap();
        assert_eq!(shown, 1);
    }

    /// The space of a malformed one is free again.
    async fn what_is_discarded_leaves_the_list_and_its_job_as_it_is(store) {
        let _ = begin(&store, &job("a"), "t").await;
        assert!(end(&store, finish(&job("a"), "t", 1, Ending::Failure(Box::new(dead("a"))))).await);
        let malformed = |id: &str| DeadMessage {
            kind: DeadKind::Malformed, job: None, job_id: None, ..dead(id)
        };
        let space = Some(u64::try_from(malformed("m").body.len()).unwrap());
        assert!(store.put_aside(&malformed("m"), None, space).await.unwrap());
        assert!(!store.put_aside(&malformed("n"), None, space).await.unwrap());
        let only = DeadFilter { kind: Some("malformed".into()), ..DeadFilter::default() };
        let batch = store.discard_dead(&only, None).await.unwrap();
        assert_eq!((batch.entries, batch.sent, batch.next), (1, 0, None));
        assert!(store.put_aside(&malformed("n"), None, space).await.unwrap());
        let batch = store.discard_dead(&DeadFilter::default(), None).await.unwrap();
        assert_eq!(batch.entries, 2);
        assert_eq!(store.count_dead(&DeadFilter::default()).await.unwrap(), 0);
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "FAILURE");
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
    }

    async fn the_dead_list_is_emptied_in_batches_of_500_oldest_first(store, rows) {
        rows.write(
            "INSERT INTO {p}dead (id, kind, queue, reason, body, body_bytes, received_at) \
             WITH RECURSIVE n (i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) \
             SELECT CAST(i AS text), 'malformed', 'q', 'r', '', 0, i / 2 FROM n",
        ).await;
        let all = DeadFilter::default();
        let first = store.discard_dead(&all, None).await.unwrap();
        let place = (Timestamp(749), "1499".to_owned());
        assert_eq!((first.entries, first.next.as_ref()), (500, Some(&place)));
        let last = store.retry_dead(&all, Some(&place)).await.unwrap();
        assert_eq!((last.entries, last.sent, last.next), (1, 1, None));
    }
}
