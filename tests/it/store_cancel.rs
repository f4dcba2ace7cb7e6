//! What the store promises of cancelled jobs, on SQLite and on PostgreSQL alike.

use sqjobs::store::cancel::{CancelFilter, Cancelled, CancelledBatch, ToStop};
use sqjobs::store::claim::Claim;
use sqjobs::store::enqueue::NewJob;
use sqjobs::store::finish::Ending;

use crate::store_fixtures::{
    LEASE, begin, claim, crash, end, finish, job, new_job, on_every_database,
};

on_every_database! {
    async fn a_job_that_was_cancelled_while_it_ran_succeeds_or_does_not_come_again(store) {
        let status = |id: &'static str| {
            let store = store.clone();
            async move { store.status(id).await.unwrap().unwrap() }
        };
        for (id, ending, word) in [
            ("success", Ending::Success, "SUCCESS"),
            ("retry", Ending::Retry(LEASE), "CANCELLED"),
            ("released", Ending::Released, "CANCELLED"),
        ] {
            let _ = begin(&store, &job(id), id).await;
            assert_eq!(store.cancel(id).await.unwrap(), Cancelled::Stopping);
            let stopped = ToStop { job_id: id.into(), token: id.into() };
            assert_eq!(store.to_stop("w").await.unwrap(), [stopped]);
            assert!(end(&store, finish(&job(id), id, 1, ending)).await);
            let row = status(id).await;
            assert_eq!((row.status.as_str(), row.retry_at), (word, None), "{id}");
            assert!(row.finished_at.is_some());
            assert!(store.to_stop("w").await.unwrap().is_empty(), "{id}");
            assert_eq!(store.cancel(id).await.unwrap(), Cancelled::Final(word.into()));
        }
        let _ = begin(&store, &job("lost"), "lost").await;
        assert_eq!(store.cancel("lost").await.unwrap(), Cancelled::Stopping);
        store.let_go("lost", "lost").await.unwrap();
        assert_eq!(status("lost").await.status, "CANCELLED");
        let _ = begin(&store, &job("died"), "died").await;
        assert_eq!(store.cancel("died").await.unwrap(), Cancelled::Stopping);
        store.remove_worker("w").await.unwrap();
        let claims = store.claim(&[claim(&job("died"), "w2", "t")]).await.unwrap();
        assert_eq!(claims, [Claim::Finished("CANCELLED".into())]);
        assert_eq!(store.attempts("died").await.unwrap()[0].outcome, "crashed");
        assert_eq!(status("died").await.status, "CANCELLED");
    }

    async fn a_job_that_waits_or_whose_worker_died_is_cancelled_at_once_and_never_runs(store) {
        store.enqueue_for_sweep(&NewJob { job: job("waits"), ..new_job() }).await.unwrap();
        store.enqueue_for_sweep(&NewJob { job: job("other"), ..new_job() }).await.unwrap();
        crash(&store, &job("died"), "w0").await;
        for id in ["waits", "died"] {
            assert_eq!(store.cancel(id).await.unwrap(), Cancelled::Done, "{id}");
            let claims = store.claim(&[claim(&job(id), "w", "t")]).await.unwrap();
            assert_eq!(claims, [Claim::Finished("CANCELLED".into())]);
        }
        assert_eq!(store.attempts("died").await.unwrap()[0].outcome, "crashed");
        let sent = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(sent.iter().map(|row| row.job.id.as_str()).collect::<Vec<_>>(), ["other"]);
        assert_eq!(store.cancel("nobody").await.unwrap(), Cancelled::Unknown);
    }

    async fn a_cancel_by_filter_leaves_what_does_not_match_and_what_is_done(store) {
        for (id, queue) in [("a", "q"), ("b", "r"), ("c", "q")] {
            let new = NewJob { job: job(id), queue: queue.into(), ..new_job() };
            store.enqueue(&new).await.unwrap();
        }
        let _ = begin(&store, &job("c"), "t").await;
        let _ = begin(&store, &job("done"), "u").await;
        assert!(end(&store, finish(&job("done"), "u", 1, Ending::Success)).await);
        let all = CancelFilter::default();
        let some = |text: &str| Some(text.to_owned());
        for (filter, count) in [
            (all.clone(), 3),
            (CancelFilter { only_waiting: true, ..all.clone() }, 2),
            (CancelFilter { status: some("RUNNING"), ..all.clone() }, 1),
            (CancelFilter { status: some("SUCCESS"), ..all.clone() }, 0),
            (CancelFilter { queue: some("q"), job: some("adder_job"), ..all.clone() }, 2),
            (CancelFilter { job: some("other"), ..all.clone() }, 0),
        ] {
            assert_eq!(store.count_to_cancel(&filter).await.unwrap(), count, "{filter:?}");
        }
        let now = store.now().await.unwrap().0 + 1000;
        assert_eq!(store.cancel_some(&all, 0, "").await.unwrap(), CancelledBatch::default());
        let waiting = CancelFilter { only_waiting: true, queue: some("q"), ..all.clone() };
        let batch = |done: &[&str], stopping: &[&str]| CancelledBatch {
            done: done.iter().map(|&id| id.to_owned()).collect(),
            stopping: stopping.iter().map(|&id| id.to_owned()).collect(),
            next: None,
        };
        assert_eq!(store.cancel_some(&waiting, now, "").await.unwrap(), batch(&["a"], &[]));
        assert_eq!(store.cancel_some(&all, now, "b").await.unwrap(), batch(&[], &["c"]));
        assert_eq!(store.cancel_some(&all, now, "").await.unwrap(), batch(&["b"], &[]));
        assert_eq!(store.count_to_cancel(&all).await.unwrap(), 0, "c is being stopped");
        assert_eq!(store.status("done").await.unwrap().unwrap().status, "SUCCESS");
    }

    async fn jobs_are_cancelled_in_batches_of_200(store, rows) {
        rows.write(
            "INSERT INTO {p}jobs (id, name, queue, fingerprint, created_at, enqueued_at, \
             updated_at) WITH RECURSIVE n (i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n \
             WHERE i < 1200) SELECT CAST(i AS text), 'adder_job', 'q', 'f', 0, 0, 0 FROM n",
        ).await;
        let all = CancelFilter::default();
        let first = store.cancel_some(&all, 1, "").await.unwrap();
        assert_eq!((first.done.len(), first.next.as_deref()), (200, Some("1199")));
        let last = store.cancel_some(&all, 1, "1199").await.unwrap();
        assert_eq!((last.done, last.next), (vec!["1200".to_owned()], None));
    }
}
