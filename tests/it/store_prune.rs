//! What the store promises of pruning, on SQLite and on PostgreSQL alike.

use std::time::Duration;

use sqjobs::store::Store;
use sqjobs::store::claim::Claim;
use sqjobs::store::finish::Ending;
use sqjobs::store::prune::{Keep, LONGEST_RETENTION};

use crate::store_fixtures::{
    Rows, begin, claim, dead, end, finish, job, new_job, on_every_database,
};

const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A job that succeeded so many milliseconds ago.
struct Ended<'a> {
    id: &'a str,
    queue: &'a str,
    ago: i64,
    /// When its message was last sent.
    sent_ago: Option<i64>,
    /// Only its fence is left.
    is_pruned: bool,
}

async fn insert(store: &Store, rows: &Rows, jobs: &[Ended<'_>]) {
    let now = store.now().await.unwrap().0;
    let values: Vec<String> = jobs
        .iter()
        .map(|Ended { id, queue, ago, sent_ago, is_pruned }| {
            let sent = sent_ago.map_or("NULL".to_owned(), |ago| (now - ago).to_string());
            let (ended, pruned) = (now - ago, i64::from(*is_pruned));
            format!(
                "('{id}', 'adder_job', '{queue}', 'SUCCESS', '[]', 'f', 0, 0, {ended}, {ended}, \
                 {sent}, {pruned})"
            )
        })
        .collect();
    rows.write(&format!(
        "INSERT INTO {{p}}jobs (id, name, queue, status, args, fingerprint, created_at, \
         enqueued_at, updated_at, finished_at, sent_at, pruned) VALUES {}",
        values.join(", ")
    ))
    .await;
}

fn whole(id: &str, ago: i64) -> Ended<'_> {
    Ended { id, queue: "q", ago, sent_ago: None, is_pruned: false }
}

fn fence<'a>(id: &'a str, queue: &'a str, ago: i64) -> Ended<'a> {
    Ended { queue, is_pruned: true, ..whole(id, ago) }
}

/// Prunes to the end; tells what is left whole of the jobs that are done.
async fn prune(store: &Store, rows: &Rows, keep: Keep) -> Vec<String> {
    if let Some(until) = store.prune_until(keep).await.unwrap() {
        let mut place = None;
        while let (_, Some(next)) = store.prune_some(place.as_ref(), &until).await.unwrap() {
            place = Some(next);
        }
    }
    rows.texts("SELECT id FROM {p}jobs WHERE pruned = 0 AND finished_at IS NOT NULL ORDER BY id")
        .await
}

async fn ids(rows: &Rows) -> Vec<String> {
    rows.texts("SELECT id FROM {p}jobs ORDER BY id").await
}

on_every_database! {
    async fn jobs_are_kept_for_so_long_after_their_end(store, rows) {
        insert(&store, &rows, &[
            whole("old", 2 * HOUR_MS), whole("older", 3 * HOUR_MS), whole("young", HOUR_MS / 2),
        ]).await;
        let _ = begin(&store, &job("runs"), "t").await;
        store.enqueue(&new_job()).await.unwrap();
        assert_eq!(prune(&store, &rows, Keep::default()).await, ["old", "older", "young"]);
        let keep = Keep { time: Some(HOUR), count: None };
        assert_eq!(prune(&store, &rows, keep).await, ["young"]);
        assert_eq!(rows.number("SELECT count(*) FROM {p}jobs WHERE pruned = 1").await, 2);
        assert_eq!(store.status("runs").await.unwrap().unwrap().args, Some(job("runs").args));
        assert_eq!(store.status("new").await.unwrap().unwrap().args, Some(job("new").args));
    }

    async fn so_many_jobs_are_kept_the_last_ones(store, rows) {
        let jobs = [whole("a", 4000), whole("b", 3000), whole("c", 3000), whole("d", 2000)];
        insert(&store, &rows, &jobs).await;
        let count = |count| Keep { time: None, count: Some(count) };
        assert_eq!(store.prune_until(count(4)).await.unwrap(), None);
        assert_eq!(prune(&store, &rows, count(3)).await, ["b", "c", "d"]);
        assert_eq!(prune(&store, &rows, count(2)).await, ["c", "d"], "those pruned do not count");
        assert!(prune(&store, &rows, count(0)).await.is_empty());
    }

    async fn what_either_of_time_and_count_does_not_keep_is_pruned(store, rows) {
        insert(&store, &rows, &[
            whole("a", 3 * HOUR_MS), whole("b", 2 * HOUR_MS), whole("c", 2000), whole("d", 1000),
        ]).await;
        let keep = Keep { time: Some(HOUR), count: Some(3) };
        assert_eq!(prune(&store, &rows, keep).await, ["c", "d"]);
        assert_eq!(prune(&store, &rows, Keep { count: Some(1), ..keep }).await, ["d"]);
    }

    async fn a_pruned_job_keeps_what_holds_a_late_copy_of_its_message_off(store, rows) {
        let _ = begin(&store, &job("a"), "t").await;
        assert!(end(&store, finish(&job("a"), "t", 1, Ending::Success)).await);
        let _ = begin(&store, &job("b"), "u").await;
        let told = "error = 'e', error_stage = 'run', backtrace = 'b', progress_message = 'p'";
        rows.write(&format!("UPDATE {{p}}jobs SET {told}")).await;
        rows.age_jobs(1000).await;
        assert!(prune(&store, &rows, Keep { time: Some(Duration::ZERO), count: None }).await.is_empty());

        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.name.as_str(), row.status.as_str()), ("adder_job", "SUCCESS"));
        assert_eq!((row.args, row.kwargs, row.result, row.error), (None, None, None, None));
        assert_eq!((row.error_stage, row.backtrace, row.progress_message), (None, None, None));
        assert!(store.attempts("a").await.unwrap().is_empty());
        assert_eq!(store.attempts("b").await.unwrap().len(), 1);
        let again = store.claim(&[claim(&job("a"), "w", "t2")]).await.unwrap();
        assert_eq!(again, [Claim::Finished("SUCCESS".into())]);
        let mut other = claim(&job("a"), "w", "t3");
        other.job.args = "[2]".into();
        assert!(matches!(store.claim(&[other]).await.unwrap()[0], Claim::Conflict(_)));
    }

    async fn what_the_dead_list_holds_is_not_pruned(store, rows) {
        let _ = begin(&store, &job("a"), "t").await;
        assert!(end(&store, finish(&job("a"), "t", 1, Ending::Failure(Box::new(dead("a"))))).await);
        insert(&store, &rows, &[whole("b", 0)]).await;
        rows.age_jobs(1000).await;
        let until = store.prune_until(Keep { time: None, count: Some(0) }).await.unwrap().unwrap();
        let (pruned, place) = store.prune_some(None, &until).await.unwrap();
        assert_eq!((pruned, place.is_some()), (1, true));
        assert_eq!(store.attempts("a").await.unwrap().len(), 1);
        let row = store.status("a").await.unwrap().unwrap();
        assert_eq!((row.args, row.error.as_deref()), (Some(job("a").args), Some("no way")));
    }

    async fn jobs_are_pruned_in_batches_of_200(store, rows) {
        let names: Vec<String> = (0..201).map(|number| format!("{number:03}")).collect();
        let jobs: Vec<_> = names.iter().map(|name| whole(name, 5000)).collect();
        insert(&store, &rows, &jobs).await;
        let until = store.prune_until(Keep { time: None, count: Some(0) }).await.unwrap().unwrap();
        let (pruned, place) = store.prune_some(None, &until).await.unwrap();
        assert_eq!((pruned, place.is_some()), (200, true));
        let left = "SELECT id FROM {p}jobs WHERE pruned = 0";
        assert_eq!(rows.texts(left).await, ["200"]);
        let (pruned, place) = store.prune_some(place.as_ref(), &until).await.unwrap();
        assert_eq!((pruned, place.is_some()), (1, true));
        assert_eq!(store.prune_some(place.as_ref(), &until).await.unwrap(), (0, None));
    }

    /// Counted from its end and from when it was last sent.
    async fn a_fence_goes_when_no_queue_can_hold_its_message(store, rows) {
        let known = [("short".to_owned(), HOUR), ("long".to_owned(), 2 * HOUR)];
        let minutes = HOUR_MS / 60;
        let sent = |id, ago, sent_ago| Ended { sent_ago: Some(sent_ago), ..fence(id, "short", ago) };
        insert(&store, &rows, &[
            fence("ended", "short", 61 * minutes),
            fence("ended-now", "short", 59 * minutes),
            sent("sent", 70 * minutes, 61 * minutes),
            sent("sent-now", 70 * minutes, 59 * minutes),
            fence("long", "long", 121 * minutes),
            fence("long-now", "long", 119 * minutes),
            fence("unknown", "other", 14 * DAY_MS + minutes),
            fence("unknown-now", "other", 14 * DAY_MS - minutes),
            fence("dead", "short", 2 * HOUR_MS),
            fence("waits", "short", 2 * HOUR_MS),
            Ended { is_pruned: false, ..fence("whole", "short", 15 * DAY_MS) },
        ]).await;
        assert!(store.put_aside(&dead("dead"), None, None).await.unwrap());
        rows.write(
            "INSERT INTO {p}outbox (job_id, job_name, queue, enqueued_at) \
             VALUES ('waits', 'adder_job', 'short', 0)",
        ).await;
        let (removed, place) = store.remove_fences(&known, None).await.unwrap();
        assert_eq!((removed, place.is_some()), (4, true));
        let left = ["dead", "ended-now", "long-now", "sent-now", "unknown-now", "waits", "whole"];
        assert_eq!(ids(&rows).await, left);
        assert_eq!(store.remove_fences(&known, place.as_ref()).await.unwrap(), (0, None));
    }

    async fn of_an_unknown_queue_a_fence_stays_for_the_longest_retention(store, rows) {
        assert_eq!(LONGEST_RETENTION, 14 * 24 * HOUR);
        let (long, minute) = (14 * DAY_MS, HOUR_MS / 60);
        insert(&store, &rows, &[
            fence("gone", "q", long + minute),
            fence("stays", "q", long - minute),
            Ended { sent_ago: Some(long - minute), ..fence("sent", "q", long + minute) },
        ]).await;
        assert_eq!(store.remove_fences(&[], None).await.unwrap().0, 1);
        assert_eq!(ids(&rows).await, ["sent", "stays"]);
    }

    async fn fences_go_in_batches_of_200(store, rows) {
        let names: Vec<String> = (0..201).map(|number| format!("{number:03}")).collect();
        let jobs: Vec<_> = names.iter().map(|name| fence(name, "q", 15 * DAY_MS)).collect();
        insert(&store, &rows, &jobs).await;
        let (removed, place) = store.remove_fences(&[], None).await.unwrap();
        assert_eq!((removed, place.is_some()), (200, true));
        assert_eq!(ids(&rows).await, ["200"]);
        let (removed, place) = store.remove_fences(&[], place.as_ref()).await.unwrap();
        assert_eq!((removed, place.is_some()), (1, true));
        assert_eq!(store.remove_fences(&[], place.as_ref()).await.unwrap(), (0, None));
    }
}
