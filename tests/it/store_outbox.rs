//! What the store promises of what is to be sent, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::payload::Job;
use sqjobs::store::dead::{DeadKind, DeadMessage};
use sqjobs::store::enqueue::{Enqueued, NewJob, Start};
use sqjobs::store::finish::{Ending, FinishRequest};
use sqjobs::store::lost::LostFilter;
use sqjobs::store::outbox::OutboxRow;

use crate::store_fixtures::{begin, dead, end, finish, job, new_job, on_every_database};

on_every_database! {
    async fn what_an_attempt_added_is_sent_only_if_it_was_stored(store) {
        let (parent, child) = (job("parent"), job("child"));
        let _ = begin(&store, &parent, "t").await;
        let new = NewJob {
            job: child,
            queue: "q".into(),
            queue_url: None,
            group: None,
            start: Start::Now,
            parent_id: Some("parent".into()),
            generation: 1,
            unique: None,
        };
        let with_child = |token| FinishRequest {
            children: vec![new.clone()],
            ..finish(&parent, token, 1, Ending::Success)
        };
        assert!(!end(&store, with_child("wrong")).await);
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
        assert!(end(&store, with_child("t")).await);
        let rows = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].job.id.as_str(), rows[0].send_number), ("child", 1));
        let row = store.status("child").await.unwrap().unwrap();
        assert_eq!(row.parent_id.as_deref(), Some("parent"));
    }

    async fn an_outbox_row_is_one_sender_s_until_it_is_sent_or_has_failed(store) {
        let new = NewJob {
            job: job("a"),
            queue: "q".into(),
            queue_url: Some("http://h/q".into()),
            group: Some("g".into()),
            start: Start::Now,
            parent_id: None,
            generation: 0,
            unique: None,
        };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else { panic!() };
        assert_eq!(store.enqueue(&new).await.unwrap(), Enqueued::Existing);
        let other = NewJob { job: Job { args: "[]".into(), ..job("a") }, ..new.clone() };
        assert_eq!(store.enqueue(&other).await.unwrap(), Enqueued::Conflict);
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty(), "its adder sends it");

        store.outbox_failed(outbox_id, "no way", 0).await.unwrap();
        let rows = store.take_outbox(10, 0).await.unwrap();
        assert_eq!((rows[0].id, rows[0].queue.as_str()), (outbox_id, "http://h/q"));
        assert_eq!(rows[0].group.as_deref(), Some("g"));
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty(), "another sender has it");
        store.outbox_sent(&[outbox_id]).await.unwrap();
        store.outbox_failed(outbox_id, "too late", 0).await.unwrap();
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
    }

    async fn a_row_with_a_delay_of_minutes_leaves_at_once_and_tells_what_is_left(store) {
        let after = |id: &str, secs| NewJob {
            job: job(id),
            start: Start::After(Duration::from_secs(secs)),
            ..new_job()
        };
        for (id, secs) in [("soon", 600), ("later", 901)] {
            let _ = store.enqueue_for_sweep(&after(id, secs)).await.unwrap();
        }
        let rows = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].job.id, "soon");
        let (delay, most) = (rows[0].delay(), Duration::from_secs(600));
        assert!(delay <= most && delay > most / 2, "{delay:?}");
        // The queue can't hold it back.
        store.outbox_waits(rows[0].id).await.unwrap();
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
        let rows = store.take_outbox(10, 600_000).await.unwrap();
        assert_eq!((rows.len(), rows[0].tries), (1, 1));
    }

    /// It waits on the queue, which is as good as empty for those who look.
    async fn a_delayed_job_is_not_overdue_before_it_is_due(store, rows) {
        let lost = LostFilter { queue: "q".into(), overdue: Duration::ZERO, sent_before: None };
        let new = NewJob { start: Start::After(Duration::from_secs(600)), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else { panic!() };
        store.outbox_sent(&[outbox_id]).await.unwrap();
        rows.age_jobs(5).await;
        assert!(!store.has_overdue(&lost).await.unwrap());
        let soon = NewJob { job: job("soon"), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&soon).await.unwrap() else { panic!() };
        store.outbox_sent(&[outbox_id]).await.unwrap();
        rows.age_jobs(5).await;
        assert_eq!(store.give_up_lost(&lost, "gone").await.unwrap(), ["soon"]);
    }

    async fn a_row_that_can_t_be_sent_fails_its_job_and_is_kept(store) {
        let new = NewJob { job: job("a"), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else { panic!() };
        let undeliverable = DeadMessage { kind: DeadKind::Undeliverable, ..dead("a") };
        store.outbox_undeliverable(outbox_id, &undeliverable).await.unwrap();
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.error_kind.as_deref()), ("FAILURE", Some("undeliverable")));
        assert_eq!(store.dead("a").await.unwrap().unwrap().kind, "undeliverable");
    }

    /// Its message came another way: nothing is left to send.
    async fn a_row_that_can_t_be_sent_of_a_job_that_runs_or_has_ended_is_dropped(store) {
        let undeliverable = |id| DeadMessage { kind: DeadKind::Undeliverable, ..dead(id) };
        for (id, ends) in [("runs", false), ("ended", true)] {
            let new = NewJob { job: job(id), ..new_job() };
            let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else { panic!() };
            let _ = begin(&store, &job(id), id).await;
            if ends {
                assert!(end(&store, finish(&job(id), id, 1, Ending::Success)).await);
            }
            store.outbox_undeliverable(outbox_id, &undeliverable(id)).await.unwrap();
            let expected = if ends { "SUCCESS" } else { "RUNNING" };
            assert_eq!(store.status(id).await.unwrap().unwrap().status, expected);
            assert!(store.dead(id).await.unwrap().is_none());
        }
    }

    async fn what_was_taken_and_not_tried_is_given_back(store) {
        for (id, queue) in [("a", "q"), ("b", "closed"), ("c", "q")] {
            let new = NewJob { job: job(id), queue: queue.into(), ..new_job() };
            store.enqueue_for_sweep(&new).await.unwrap();
        }
        let closed = ["closed".to_owned(), "other".to_owned()];
        let taken = store.take_outbox_but(10, 0, &closed).await.unwrap();
        let ids = |rows: &[OutboxRow]| {
            rows.iter().map(|row| row.job.id.clone()).collect::<Vec<_>>().concat()
        };
        assert_eq!(ids(&taken), "ac");
        store.outbox_released(&[]).await.unwrap();
        store.outbox_released(&[taken[0].id]).await.unwrap();
        let again = store.take_outbox_but(10, 0, &closed).await.unwrap();
        assert_eq!((ids(&again), again[0].tries), ("a".to_owned(), taken[0].tries));
        assert_eq!(ids(&store.take_outbox(10, 0).await.unwrap()), "b");
    }

    async fn a_row_whose_queue_can_t_hold_it_back_waits_until_its_job_is_due(store) {
        let new = NewJob { start: Start::After(Duration::from_secs(600)), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else { panic!() };
        store.outbox_waits(outbox_id).await.unwrap();
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
        let rows = store.take_outbox(10, 600_000).await.unwrap();
        assert_eq!((rows.len(), rows[0].tries), (1, 1));
        assert!(rows[0].delay() > Duration::from_secs(300), "{:?}", rows[0].due);
    }
}
