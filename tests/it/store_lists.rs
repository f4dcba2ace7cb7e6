//! What the store promises of lists, on SQLite and on PostgreSQL alike.

use sqjobs::clock::Timestamp;
use sqjobs::store::finish::Ending;
use sqjobs::store::list::JobFilter;
use sqjobs::store::read::JobStatus;
use sqjobs::store::{Store, StoreError};

use crate::store_fixtures::{Rows, begin, end, finish, job, on_every_database};

/// The ids that a list shows, in its order.
async fn list(store: &Store, filter: &JobFilter) -> String {
    let mut ids = String::new();
    let each = |job: JobStatus| {
        ids.push_str(&job.id);
        Ok::<(), StoreError>(())
    };
    store.each_job(filter, each).await.unwrap();
    ids
}

async fn changes(store: &Store, filter: &JobFilter, since: i64) -> String {
    let mut ids = String::new();
    let each = |job: JobStatus| {
        ids.push_str(&job.id);
        Ok::<(), StoreError>(())
    };
    store.each_change(filter, Timestamp(since), each).await.unwrap();
    ids
}

fn all() -> JobFilter {
    JobFilter { limit: 100, ..JobFilter::default() }
}

/// Four jobs that run: `a` is the oldest, `b` and `c` were written in one millisecond.
async fn four(store: &Store, rows: &Rows) {
    for (id, created_at) in [("a", 1000), ("b", 2000), ("c", 2000), ("d", 3000)] {
        let _ = begin(store, &job(id), id).await;
        let update = "UPDATE {p}jobs SET created_at =";
        rows.write(&format!("{update} {created_at} WHERE id = '{id}'")).await;
    }
}

on_every_database! {
    async fn jobs_are_listed_newest_first_by_filter_and_limit(store, rows) {
        four(&store, &rows).await;
        assert!(end(&store, finish(&job("b"), "b", 1, Ending::Success)).await);
        rows.write("UPDATE {p}jobs SET queue = 'other' WHERE id = 'd'").await;
        assert_eq!(list(&store, &all()).await, "dcba");
        assert_eq!(list(&store, &JobFilter { limit: 2, ..all() }).await, "dc");
        let queue = JobFilter { queue: Some("q".into()), ..all() };
        assert_eq!(list(&store, &queue).await, "cba");
        let running = JobFilter { status: Some("RUNNING".into()), ..queue.clone() };
        assert_eq!(list(&store, &running).await, "ca");
        let ended = JobFilter { status: Some("SUCCESS".into()), ..all() };
        assert_eq!(list(&store, &ended).await, "b");
        let job = JobFilter { job: Some("adder_job".into()), ..queue.clone() };
        assert_eq!(list(&store, &job).await, "cba");
        assert_eq!(list(&store, &JobFilter { job: Some("other".into()), ..queue }).await, "");
        let late = JobFilter { since: Some(Timestamp(2000)), ..all() };
        assert_eq!(list(&store, &late).await, "dcb");
        let early = JobFilter { until: Some(Timestamp(2000)), ..all() };
        assert_eq!(list(&store, &early).await, "a");
    }

    async fn a_page_goes_on_behind_the_last_job_of_the_one_before(store, rows) {
        four(&store, &rows).await;
        let behind = |at, id: &str| JobFilter { after: Some((Timestamp(at), id.into())), ..all() };
        assert_eq!(list(&store, &behind(3000, "d")).await, "cba");
        assert_eq!(list(&store, &behind(2000, "c")).await, "ba");
        assert_eq!(list(&store, &behind(1000, "a")).await, "");
        let filtered = JobFilter {
            job: Some("adder_job".into()),
            queue: Some("q".into()),
            status: Some("RUNNING".into()),
            limit: 1,
            ..behind(2000, "c")
        };
        assert_eq!(list(&store, &filtered).await, "b");
    }

    async fn an_error_is_found_by_a_part_of_it_in_whatever_case(store, rows) {
        four(&store, &rows).await;
        for (id, error) in [("a", "Ärger: 50% of X_Y"), ("b", "Ärger: 500 of XxY"), ("c", r"C:\x")] {
            rows.write(&format!("UPDATE {{p}}jobs SET error = '{error}' WHERE id = '{id}'")).await;
        }
        for (text, found) in
            [("OF x", "ba"), ("50%", "a"), ("x_y", "a"), (r"c:\X", "c"), ("Ärger", "ba"), ("d", "")]
        {
            let filter = JobFilter { error: Some(text.into()), ..all() };
            assert_eq!(list(&store, &filter).await, found, "{text}");
        }
    }

    /// A job that ended changes no more; what was pruned is not shown again for it.
    async fn changes_are_told_in_their_order_from_an_instant_on(store, rows) {
        four(&store, &rows).await;
        for id in ["b", "d"] {
            assert!(end(&store, finish(&job(id), id, 1, Ending::Success)).await);
        }
        let set = "UPDATE {p}jobs SET updated_at = CASE id WHEN 'a' THEN 3000 WHEN 'b' THEN 2000 \
                   WHEN 'c' THEN 1000 ELSE 4000 END";
        rows.write(set).await;
        rows.write("UPDATE {p}jobs SET finished_at = updated_at WHERE status = 'SUCCESS'").await;
        assert_eq!(changes(&store, &all(), 1000).await, "cbad");
        assert_eq!(changes(&store, &all(), 1001).await, "bad");
        assert_eq!(changes(&store, &all(), 2001).await, "ad");
        assert_eq!(changes(&store, &all(), 4001).await, "");
        let ended = JobFilter { status: Some("SUCCESS".into()), ..all() };
        assert_eq!(changes(&store, &ended, 0).await, "bd");
        let running = JobFilter { status: Some("RUNNING".into()), queue: Some("q".into()), ..all() };
        assert_eq!(changes(&store, &running, 0).await, "ca");
        assert_eq!(changes(&store, &JobFilter { job: Some("x".into()), ..all() }, 0).await, "");
        rows.write("UPDATE {p}jobs SET pruned = 1 WHERE id = 'd'").await;
        assert_eq!(changes(&store, &all(), 0).await, "cba");
    }
}
