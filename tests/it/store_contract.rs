//! What the store promises, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::clock::Timestamp;
use sqjobs::payload::Job;
use sqjobs::store::claim::{Begun, Claim, ClaimRequest, ModuleVersion};
use sqjobs::store::dead::{DeadFilter, DeadKind, DeadMessage};
use sqjobs::store::enqueue::{Enqueued, NewJob};
use sqjobs::store::finish::{Ending, FinishRequest};
use sqjobs::store::read::JobFilter;
use sqjobs::store::workers::WorkerRow;
use sqjobs::store::{Database, Store, StoreError};
use support::servers::{self, RUNTIME};

/// Makes of each function a test per database. The function is given an empty store.
macro_rules! on_every_database {
    ($($(#[doc = $doc:literal])* async fn $rule:ident($store:ident) $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $rule {
            #[allow(unused_imports, reason = "not every rule needs all of the file's imports")]
            use super::*;

            async fn holds($store: Store) $body

            #[test]
            fn sqlite() {
                let folder = std::env::temp_dir().join(servers::unique("store"));
                RUNTIME.block_on(async {
                    let path = folder.join("test.db");
                    holds(open(&Database::Sqlite { path, is_durable: true }).await).await;
                });
                std::fs::remove_dir_all(folder).unwrap();
            }

            #[test]
            fn postgres() {
                RUNTIME.block_on(async {
                    let url = servers::database_url().parse().unwrap();
                    holds(open(&Database::Postgres { url, schema: servers::unique("schema") }).await).await;
                });
            }
        }
    )+};
}

async fn open(database: &Database) -> Store {
    let store = Store::open(database).await.unwrap();
    assert!(matches!(store.check_schema().await, Err(StoreError::MigrationDue { found: 0, .. })));
    store.migrate().await.unwrap();
    store.check_schema().await.unwrap();
    store
}

fn job(id: &str) -> Job {
    Job {
        id: id.into(),
        name: "adder_job".into(),
        args: r#"[1, 123456789012345678901234567890, "\u0000"]"#.into(),
        kwargs: r#"{"b": 1, "a": 2}"#.into(),
        enqueued_at: Some(Timestamp(1_700_000_000_000)),
        is_tracked: false,
    }
}

fn version() -> ModuleVersion {
    ModuleVersion { name: "adder".into(), version: None, digest: "d".repeat(64) }
}

fn claim(job: &Job, worker: &str, token: &str) -> ClaimRequest {
    ClaimRequest {
        job: job.clone(),
        queue: "q".into(),
        group: None,
        sent_at: None,
        token: token.into(),
        worker_id: worker.into(),
        module: version(),
    }
}

fn finish(job: &Job, token: &str, attempt: u32, ending: Ending) -> FinishRequest {
    let is_success = ending == Ending::Success;
    FinishRequest {
        job: job.clone(),
        queue: "q".into(),
        group: None,
        token: token.into(),
        worker_id: "w".into(),
        module: version(),
        attempt,
        is_claimed: true,
        is_spent: !matches!(ending, Ending::Released),
        outcome: if is_success { "success" } else { "transient" },
        result: is_success.then(|| r#"{"z":1.50,  "a":"\u0000"}"#.to_owned()),
        failure: (!is_success).then(|| ("run".to_owned(), "no way".to_owned(), None)),
        ending,
        logs: String::new(),
        warnings: String::new(),
        duration: Duration::from_millis(7),
        children: Vec::new(),
        is_parked: false,
        dead_letter_queue: None,
    }
}

fn dead(id: &str) -> DeadMessage {
    DeadMessage {
        id: id.into(),
        kind: DeadKind::Failed,
        queue: "q".into(),
        job: Some("adder_job".into()),
        job_id: Some(id.into()),
        message_id: None,
        reason: "no\0 way".into(),
        body: "body \0 as it was".into(),
        attributes: "{}".into(),
        group: None,
    }
}

fn worker(id: &str, lease: Duration) -> WorkerRow {
    WorkerRow { id: id.into(), host: "h".into(), pid: 1, queues: "q".into(), lease }
}

const LEASE: Duration = Duration::from_secs(600);

async fn begin(store: &Store, job: &Job, token: &str) -> Begun {
    store.renew_worker(&worker("w", LEASE)).await.unwrap();
    match store.claim(&[claim(job, "w", token)]).await.unwrap().remove(0) {
        Claim::Begun(begun) => begun,
        other => panic!("{other:?}"),
    }
}

async fn end(store: &Store, request: FinishRequest) -> bool {
    store.finish(&[request]).await.unwrap()[0]
}

on_every_database! {
    async fn a_result_and_arguments_are_kept_as_the_text_they_were(store) {
        let job = job("a");
        let begun = begin(&store, &job, "t").await;
        assert_eq!((begun.attempt, begun.spent, begun.crashes), (1, 0, 0));
        assert_eq!(begun.enqueued_at, Timestamp(1_700_000_000_000));
        assert!(end(&store, finish(&job, "t", 1, Ending::Success)).await);
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!(row.status, "SUCCESS");
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

    async fn a_failed_job_waits_for_its_time_and_has_spent_an_attempt(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Retry(LEASE))).await);
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.error.as_deref()), ("RETRY", Some("no way")));
        assert!(row.retry_at.is_some());
        let early = store.claim(&[claim(&job, "w", "t2")]).await.unwrap().remove(0);
        assert!(matches!(early, Claim::Held(wait) if wait > LEASE / 2), "{early:?}");

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
        assert!(matches!(claims[2], Claim::Held(_)));
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
        assert!(!end(&store, unclaimed("t2")).await, "another delivery has written the row");
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.attempts), ("RETRY", 1));
        assert_eq!(store.attempts("a").await.unwrap().len(), 1);
        assert_eq!(begin(&store, &job, "t3").await.spent, 1);
    }

    async fn a_job_that_failed_for_good_is_in_the_dead_list_with_its_exact_body(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        assert!(end(&store, finish(&job, "t", 1, Ending::Failure(Box::new(dead("a"))))).await);
        let entry = store.dead("a").await.unwrap().unwrap();
        assert_eq!(entry.body, b"body \0 as it was");
        assert_eq!(entry.reason, "no\u{fffd} way", "PostgreSQL's text takes no U+0000");
        store.put_aside(&dead("a")).await.unwrap();
        let mut count = 0;
        store
            .each_dead(&DeadFilter::default(), |_| {
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
        store.put_aside(&unknown("one", "m1")).await.unwrap();
        store.put_aside(&unknown("two", "m2")).await.unwrap();
        store.put_aside(&unknown("two", "m2")).await.unwrap();
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

    async fn what_an_attempt_added_is_sent_only_if_it_was_stored(store) {
        let (parent, child) = (job("parent"), job("child"));
        let _ = begin(&store, &parent, "t").await;
        let new = NewJob {
            job: child,
            queue: "q".into(),
            queue_url: None,
            group: None,
            not_before: None,
            parent_id: Some("parent".into()),
            generation: 1,
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
            not_before: None,
            parent_id: None,
            generation: 0,
        };
        let Enqueued::Added { outbox_id } = store.enqueue(&new).await.unwrap() else { panic!() };
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

    async fn a_row_that_can_t_be_sent_fails_its_job_and_is_kept(store) {
        let new = NewJob {
            job: job("a"),
            queue: "q".into(),
            queue_url: None,
            group: None,
            not_before: None,
            parent_id: None,
            generation: 0,
        };
        let Enqueued::Added { outbox_id } = store.enqueue(&new).await.unwrap() else { panic!() };
        let undeliverable = DeadMessage { kind: DeadKind::Undeliverable, ..dead("a") };
        store.outbox_undeliverable(outbox_id, &undeliverable).await.unwrap();
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.status.as_str(), row.error_kind.as_deref()), ("FAILURE", Some("undeliverable")));
        assert_eq!(store.dead("a").await.unwrap().unwrap().kind, "undeliverable");
    }

    async fn progress_is_written_by_the_owner_only(store) {
        let job = job("a");
        let _ = begin(&store, &job, "t").await;
        store.set_progress("a", "t", 0.25, Some("a quarter")).await.unwrap();
        store.set_progress("a", "another", 0.75, None).await.unwrap();
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.progress, row.progress_message.as_deref()), (Some(0.25), Some("a quarter")));
    }

    async fn jobs_are_listed_newest_first_by_filter_and_limit(store) {
        for id in ["a", "b", "c"] {
            let _ = begin(&store, &job(id), id).await;
            tokio::time::sleep(Duration::from_millis(2)).await; // the order is that of creation
        }
        assert!(end(&store, finish(&job("b"), "b", 1, Ending::Success)).await);
        let list = |filter: JobFilter| {
            let store = store.clone();
            async move {
                let mut ids = String::new();
                let each = |job: sqjobs::store::read::JobStatus| {
                    ids.push_str(&job.id);
                    Ok::<(), StoreError>(())
                };
                store.each_job(&filter, each).await.unwrap();
                ids
            }
        };
        let all = JobFilter { limit: 100, ..JobFilter::default() };
        assert_eq!(list(all.clone()).await, "cba");
        assert_eq!(list(JobFilter { limit: 2, ..all.clone() }).await, "cb");
        let running = JobFilter { status: Some("RUNNING".into()), queue: Some("q".into()), ..all.clone() };
        assert_eq!(list(running).await, "ca");
        assert_eq!(list(JobFilter { job: Some("other".into()), ..all }).await, "");
    }
}
