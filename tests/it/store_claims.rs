//! What the store promises of claims and outcomes, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::clock::Timestamp;
use sqjobs::payload::Job;
use sqjobs::store::claim::{Claim, ClaimRequest};
use sqjobs::store::dead::{DeadKind, DeadMessage};
use sqjobs::store::enqueue::{Enqueued, NewJob};
use sqjobs::store::finish::{Ending, FinishRequest};

use crate::store_fixtures::{
    LEASE, begin, claim, crash, dead, end, finish, job, new_job, on_every_database, worker,
};

on_every_database! {
    async fn a_result_and_arguments_are_kept_as_the_text_they_were(store) {
        let job = job("a");
        let begun = begin(&store, &job, "t").await;
        assert_eq!((begun.attempt, begun.spent, begun.crashes), (1, 0, 0));
        assert_eq!(begun.enqueued_at, Timestamp(1_700_000_000_000));
        assert!(end(&store, finish(&job, "t", 1, Ending::Success)).await);
        let row = store.status("a").await.unwrap().unwrap();
        assert!(row.is_final() && row.status == "SUCCESS");
        assert_eq!(row.result.as_deref(), Some(r#"{"z":1.50,  "a":"\u0000"}"#));
        assert_eq!(row.args, Some(job.args));
        assert_eq!(row.kwargs, Some(job.kwargs));
        assert_eq!((row.attempts, row.duration_ms), (1, Some(7)));
        assert!(row.started_at.is_some() && row.finished_at.is_some());
    }

    async fn a_job_that_succeeded_is_not_begun_again(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Success)).await);
        let again = store.claim(&[claim(&job, "w", "t2")]).await.unwrap();
        assert_eq!(again, [Claim::Finished("SUCCESS".into())]);
        assert!(!end(&store, finish(&job, "t", 1, Ending::Retry(LEASE))).await, "success stays");
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "SUCCESS");
    }

    /// The database committed and the connection broke: the caller asks once more.
    async fn a_claim_that_is_repeated_is_made_once(store) {
        let job = job("a");
        let first = begin(&store, &job, "t").await;
        assert_eq!(begin(&store, &job, "t").await, first);
        assert_eq!(store.status("a").await.unwrap().unwrap().attempts, 1);
        let other = store.claim(&[claim(&job, "w", "t2")]).await.unwrap().remove(0);
        assert!(matches!(other, Claim::Held(_)), "{other:?}");
    }

    async fn an_outcome_that_is_repeated_is_told_as_stored_and_done_once(store) {
        let parent = job("a");
        let _ = begin(&store, &parent, "t").await;
        let mut request = finish(&parent, "t", 1, Ending::Retry(Duration::ZERO));
        request.children = vec![new_job()];
        assert!(end(&store, request.clone()).await);
        let once = store.status("a").await.unwrap().unwrap();
        assert!(end(&store, request.clone()).await);
        assert_eq!(store.status("a").await.unwrap().unwrap(), once);
        assert_eq!(store.take_outbox(10, 0).await.unwrap().len(), 1);
        let _ = begin(&store, &parent, "t2").await;
        assert!(end(&store, request).await, "also while the next attempt runs");
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "RUNNING");
    }

    async fn a_claim_that_is_let_go_is_free_at_once_and_only_its_owner_lets_it_go(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        store.let_go("a", "other").await.unwrap();
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "RUNNING");
        store.let_go("a", "t").await.unwrap();
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "PENDING");
        assert!(!end(&store, finish(&job, "t", 1, Ending::Success)).await);
        let again = begin(&store, &job, "t2").await;
        assert_eq!((again.attempt, again.spent, again.crashes), (2, 0, 0));
        let attempts = store.attempts("a").await.unwrap();
        let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
        assert_eq!(outcomes, ["lease-lost", "running"]);
    }

    async fn a_living_claim_holds_others_off_for_the_rest_of_its_lease(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        let other = store.claim(&[claim(&job, "other", "t2")]).await.unwrap().remove(0);
        let Claim::Held(wait) = other else { panic!("{other:?}") };
        assert!(wait <= LEASE && wait > LEASE / 2, "{wait:?}");
    }

    /// The worker's row is gone, as after its lease: whoever comes takes over, and what the old
    /// attempt brings later is dropped.
    async fn a_dead_claim_is_taken_over_and_the_old_attempt_stores_nothing(store) {
        let job = job("a");
        let _ = begin(&store, &job, "old").await;
        store.remove_worker("w").await.unwrap();
        store.renew_worker(&worker("w2", LEASE)).await.unwrap();
        let claims = store.claim(&[claim(&job, "w2", "new")]).await.unwrap();
        let Claim::Begun(begun) = &claims[0] else { panic!("{claims:?}") };
        assert_eq!((begun.attempt, begun.crashes, begun.spent), (2, 1, 0));
        assert!(!end(&store, finish(&job, "old", 1, Ending::Success)).await);
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "RUNNING");
        assert!(end(&store, finish(&job, "new", 2, Ending::Success)).await);
        let attempts = store.attempts("a").await.unwrap();
        let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
        assert_eq!(outcomes, ["crashed", "success"]);
    }

    /// Its worker's row is still there, as after a kill.
    async fn a_claim_ends_with_its_worker_s_lease(store) {
        store.renew_worker(&worker("w0", Duration::ZERO)).await.unwrap();
        let claims = store.claim(&[claim(&job("a"), "w0", "old")]).await.unwrap();
        assert!(matches!(claims[0], Claim::Begun(_)), "{claims:?}");
        assert_eq!(begin(&store, &job("a"), "new").await.crashes, 1);
    }

    async fn a_failed_job_waits_for_its_time_and_has_spent_an_attempt(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Retry(LEASE))).await);
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.error.as_deref()), ("RETRY", Some("no way")));
        assert!(row.retry_at.is_some() && !row.is_final());
        let early = store.claim(&[claim(&job, "w", "t2")]).await.unwrap().remove(0);
        assert!(matches!(early, Claim::Held(wait) if wait <= LEASE && wait > LEASE / 2), "{early:?}");

        let due = Job { id: "b".into(), ..job };
        let _ = begin(&store, &due, "u").await;
        assert!(end(&store, finish(&due, "u", 1, Ending::Retry(Duration::ZERO))).await);
        let begun = begin(&store, &due, "u2").await;
        assert_eq!((begun.attempt, begun.spent), (2, 1));
    }

    async fn an_interrupted_attempt_is_begun_again_and_not_spent(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Released)).await);
        assert_eq!(store.status("a").await.unwrap().unwrap().status, "PENDING");
        let begun = begin(&store, &job, "t2").await;
        assert_eq!((begun.attempt, begun.spent, begun.crashes), (2, 0, 0));
    }

    async fn a_known_id_with_another_name_or_other_arguments_is_a_conflict(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        let other_name = Job { name: "other".into(), ..job.clone() };
        let other_args = Job { args: "[2]".into(), ..job.clone() };
        for other in [other_name, other_args] {
            let claims = store.claim(&[claim(&other, "w", "t2")]).await.unwrap();
            assert!(matches!(claims[0], Claim::Conflict(_)), "{claims:?}");
        }
        let respelled = Job { args: job.args.replace(", ", ","), ..job };
        let claims = store.claim(&[claim(&respelled, "w", "t3")]).await.unwrap();
        assert!(matches!(claims[0], Claim::Held(_)), "{claims:?}");
    }

    async fn of_two_deliveries_in_one_group_one_begins(store) {
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        let (a, b) = (job("a"), job("b"));
        let requests = [claim(&b, "w", "1"), claim(&a, "w", "2"), claim(&a, "w", "3")];
        let claims = store.claim(&requests).await.unwrap();
        assert!(matches!(claims[0], Claim::Begun(_)));
        assert!(matches!(claims[1], Claim::Begun(_)));
        assert!(matches!(claims[2], Claim::Held(wait) if wait <= Duration::from_secs(30)));
        let stored = store
            .finish(&[
                finish(&a, "3", 1, Ending::Success),
                finish(&a, "2", 1, Ending::Success),
                finish(&b, "1", 1, Ending::Success),
            ])
            .await
            .unwrap();
        assert_eq!(stored, [false, true, true]);
    }

    async fn an_attempt_without_a_claim_leaves_the_first_row_or_none(store) {
        let job = job("a");
        let unclaimed = |token| FinishRequest {
            is_claimed: false,
            ..finish(&job, token, 1, Ending::Retry(Duration::ZERO))
        };
        assert!(end(&store, unclaimed("t")).await);
        assert_eq!(store.attempts("a").await.unwrap()[0].outcome, "transient");
        assert!(!end(&store, unclaimed("t2")).await, "another delivery has written the row");
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.attempts), ("RETRY", 1));
        assert_eq!(store.attempts("a").await.unwrap().len(), 1);
        assert_eq!(begin(&store, &job, "t3").await.spent, 1);
    }

    async fn a_job_that_took_two_workers_down_runs_alone_and_only_a_crash_alone_puts_it_aside(store) {
        let job = job("a");
        crash(&store, &job, "w0").await;
        crash(&store, &job, "w1").await;
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        let beside = store.claim(&[claim(&job, "w", "t2")]).await.unwrap();
        assert_eq!(beside, [Claim::OnlyAlone]);
        assert_eq!(store.status("a").await.unwrap().unwrap().attempts, 2, "nothing was begun");
        let alone = ClaimRequest { is_alone: true, ..claim(&job, "w", "t3") };
        let claims = store.claim(std::slice::from_ref(&alone)).await.unwrap();
        assert!(matches!(&claims[0], Claim::Begun(begun) if begun.crashes == 2), "{claims:?}");
        store.remove_worker("w").await.unwrap();
        store.renew_worker(&worker("w4", LEASE)).await.unwrap();
        let claims = store.claim(&[claim(&job, "w4", "t4")]).await.unwrap();
        let Claim::Crashed(reason) = &claims[0] else { panic!("{claims:?}") };
        let message = DeadMessage { kind: DeadKind::Crashed, reason: reason.clone(), ..dead("a") };
        assert!(store.put_aside(&message, Some(&job), None).await.unwrap());
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.error_kind.as_deref()), ("FAILURE", Some("crashed")));
        let attempts = store.attempts("a").await.unwrap();
        assert!(attempts.iter().all(|attempt| attempt.outcome == "crashed"), "{attempts:?}");
    }

    async fn a_job_that_ended_alone_is_no_crash_of_a_later_attempt_alone(store) {
        let job = job("a");
        crash(&store, &job, "w0").await;
        crash(&store, &job, "w1").await;
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        let alone = |token| ClaimRequest { is_alone: true, ..claim(&job, "w", token) };
        let claims = store.claim(&[alone("t2")]).await.unwrap();
        assert!(matches!(claims[0], Claim::Begun(_)), "{claims:?}");
        assert!(end(&store, finish(&job, "t2", 3, Ending::Retry(Duration::ZERO))).await);
        let claims = store.claim(&[claim(&job, "w", "t3")]).await.unwrap();
        assert_eq!(claims, [Claim::OnlyAlone]);
        let claims = store.claim(&[alone("t4")]).await.unwrap();
        assert!(matches!(claims[0], Claim::Begun(_)), "{claims:?}");
    }

    /// Each of two workers has a delivery of the same message.
    async fn of_two_claims_at_once_one_is_made_and_the_other_held(store) {
        for id in ["w1", "w2"] {
            store.renew_worker(&worker(id, LEASE)).await.unwrap();
        }
        for number in 0..50 {
            let job = job(&format!("job-{number}"));
            assert!(matches!(
                store.enqueue(&NewJob { job: job.clone(), ..new_job() }).await.unwrap(),
                Enqueued::Added { .. }
            ));
            let claims = ["w1", "w2"].map(|id| {
                let (store, request) = (store.clone(), claim(&job, id, &format!("{id}-{number}")));
                tokio::spawn(async move { store.claim(&[request]).await.unwrap().remove(0) })
            });
            let mut found = Vec::new();
            for claim in claims {
                found.push(claim.await.unwrap());
            }
            let begun = found.iter().filter(|claim| matches!(claim, Claim::Begun(_))).count();
            let held = found.iter().filter(|claim| matches!(claim, Claim::Held(_))).count();
            assert_eq!((begun, held), (1, 1), "{found:?}");
        }
    }

    async fn progress_is_written_by_the_owner_only(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        store.set_progress("a", "t", 0.25, Some("a quarter")).await.unwrap();
        store.set_progress("a", "another", 0.75, None).await.unwrap();
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.progress, row.progress_message.as_deref()), (Some(0.25), Some("a quarter")));
    }
}
