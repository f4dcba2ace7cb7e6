//! What the store promises, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::broker::Attributes;
use sqjobs::clock::Timestamp;
use sqjobs::payload::Job;
use sqjobs::store::cancel::{Cancelled, ToStop};
use sqjobs::store::claim::{Begun, Claim, ClaimRequest, ModuleVersion};
use sqjobs::store::dead::{DeadFilter, DeadKind, DeadMessage};
use sqjobs::store::enqueue::{Enqueued, NewJob, Start};
use sqjobs::store::finish::{Ending, FinishRequest};
use sqjobs::store::list::JobFilter;
use sqjobs::store::lost::LostFilter;
use sqjobs::store::park::ParkRequest;
use sqjobs::store::unique::UniqueRule;
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
        is_revived: false,
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
        message_id: "m".into(),
        token: token.into(),
        worker_id: worker.into(),
        module: version(),
        is_alone: false,
        is_ordered: false,
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
        address: "q".into(),
        attributes: Attributes::new(),
        is_ordered: false,
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

fn new_job() -> NewJob {
    NewJob {
        job: job("new"),
        queue: "q".into(),
        queue_url: None,
        group: None,
        start: Start::Now,
        parent_id: None,
        generation: 0,
        unique: None,
    }
}

fn park(job: &Job, address: &str, group: Option<&str>) -> ParkRequest {
    ParkRequest {
        job: job.clone(),
        queue: "q".into(),
        address: address.into(),
        group: group.map(str::to_owned),
        attributes: Attributes::new(),
        wait: Duration::ZERO,
        is_ordered: group.is_some(),
    }
}

const LEASE: Duration = Duration::from_secs(600);

async fn begin(store: &Store, job: &Job, token: &str) -> Begun {
    store.renew_worker(&worker("w", LEASE)).await.unwrap();
    match store.claim(&[claim(job, "w", token)]).await.unwrap().remove(0) {
        Claim::Begun(begun) => begun,
        other => panic!("{other:?}"),
    }
}

/// A worker begins the job and dies.
async fn crash(store: &Store, job: &Job, id: &str) {
    store.renew_worker(&worker(id, LEASE)).await.unwrap();
    let claims = store.claim(&[claim(job, id, id)]).await.unwrap();
    assert!(matches!(claims[0], Claim::Begun(_)), "{claims:?}");
    store.remove_worker(id).await.unwrap();
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
        assert!(row.retry_at.is_some());
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
    async fn a_delayed_job_is_not_overdue_before_it_is_due(store) {
        let lost = LostFilter { queue: "q".into(), overdue: Duration::ZERO, sent_before: None };
        let new = NewJob { start: Start::After(Duration::from_secs(600)), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&new).await.unwrap() else { panic!() };
        store.outbox_sent(&[outbox_id]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await; // a clock that shows milliseconds
        assert!(!store.has_overdue(&lost).await.unwrap());
        let soon = NewJob { job: job("soon"), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&soon).await.unwrap() else { panic!() };
        store.outbox_sent(&[outbox_id]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(store.give_up_lost(&lost, "gone").await.unwrap(), ["soon"]);
    }

    async fn a_row_that_can_t_be_sent_fails_its_job_and_is_kept(store) {
        let new = NewJob {
            job: job("a"),
            queue: "q".into(),
            queue_url: None,
            group: None,
            start: Start::Now,
            parent_id: None,
            generation: 0,
            unique: None,
        };
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
    async fn a_job_that_went_back_behind_a_later_one_of_its_group_is_not_taken_for_lost(store) {
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
            tokio::time::sleep(Duration::from_millis(3)).await; // a clock that shows milliseconds
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
    async fn a_message_that_is_gone_holds_its_group_up_only_while_its_attempt_lives(store) {
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
            tokio::time::sleep(Duration::from_millis(3)).await; // a clock that shows milliseconds
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

    async fn a_job_whose_message_is_gone_is_given_up_and_runs_if_it_comes_all_the_same(store) {
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
        tokio::time::sleep(Duration::from_millis(5)).await; // a clock that shows milliseconds
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
