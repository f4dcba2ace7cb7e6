//! What the store promises of cancelled jobs, on SQLite and on PostgreSQL alike.

use sqjobs::store::cancel::{Cancelled, ToStop};
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
}
