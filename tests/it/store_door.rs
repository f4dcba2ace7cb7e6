//! What the store promises those who add jobs by a row in the outbox (see `docs/database.md`), on
//! SQLite and on PostgreSQL alike.

use sqjobs::clock::Timestamp;
use sqjobs::payload::{MAX_ID_BYTES, MAX_NAME_BYTES};
use sqjobs::store::Dialect;
use sqjobs::store::dead::{DeadFilter, DeadKind, DeadMessage};
use sqjobs::store::door::{PRODUCER, READER};
use sqjobs::store::enqueue::{Enqueued, NewJob};
use sqjobs::store::outbox::OutboxRow;

use crate::store_fixtures::{Rows, begin, dead, job, new_job, on_every_database};

/// The last millisecond of the year 9999.
const LAST: i64 = 253_402_300_799_999;

/// What another application writes.
#[derive(Clone, Copy)]
struct Row<'a> {
    id: &'a str,
    name: &'a str,
    queue: &'a str,
    args: &'a str,
    kwargs: &'a str,
    enqueued_at: i64,
}

const GOOD: Row<'_> = Row {
    id: "a",
    name: "adder_job",
    queue: "orders",
    args: "[1,  2.50]",
    kwargs: r#"{"b": 1}"#,
    enqueued_at: 1_700_000_000_000,
};

async fn insert(rows: &Rows, row: Row<'_>) {
    let Row { id, name, queue, args, kwargs, enqueued_at } = row;
    rows.write(&format!(
        "INSERT INTO {{p}}outbox (job_id, job_name, queue, args, kwargs, message_group, enqueued_at) \
         VALUES ('{id}', '{name}', '{queue}', '{args}', '{kwargs}', 'g', {enqueued_at})"
    ))
    .await;
}

fn ids(rows: &[OutboxRow]) -> Vec<&str> {
    rows.iter().map(|row| row.job.id.as_str()).collect()
}

on_every_database! {
    async fn a_row_of_another_application_becomes_a_job(store, rows) {
        store.note_queues(&["orders".to_owned(), "mails".to_owned()]).await.unwrap();
        store.note_queues(&["orders".to_owned()]).await.unwrap();
        insert(&rows, GOOD).await;
        let taken = store.take_outbox(10, 0).await.unwrap();
        let [row] = &taken[..] else { panic!("{taken:?}") };
        assert_eq!((row.job.name.as_str(), row.queue.as_str()), ("adder_job", "orders"));
        assert_eq!((row.job.args.as_str(), row.job.kwargs.as_str()), (GOOD.args, GOOD.kwargs));
        assert_eq!(row.group.as_deref(), Some("g"));

        let job = store.status("a").await.unwrap().unwrap();
        assert_eq!((job.status.as_str(), job.queue.as_str()), ("PENDING", "orders"));
        assert_eq!(job.enqueued_at, Timestamp(GOOD.enqueued_at));
        assert_eq!((job.args.as_deref(), job.error), (Some(GOOD.args), None));
        store.outbox_sent(&[row.id]).await.unwrap();
        assert_eq!(begin(&store, &row.job, "t").await.attempt, 1);
    }

    async fn a_row_that_waits_for_its_time_is_not_taken(store, rows) {
        store.note_queues(&["orders".to_owned()]).await.unwrap();
        insert(&rows, GOOD).await;
        let tomorrow = store.now().await.unwrap().0 + 86_400_000;
        rows.write(&format!("UPDATE {{p}}outbox SET not_before = {tomorrow}")).await;
        assert!(store.take_outbox(10, 0).await.unwrap().is_empty());
        rows.write("UPDATE {p}outbox SET not_before = 1").await;
        assert_eq!(store.take_outbox(10, 0).await.unwrap().len(), 1);
    }

    async fn a_row_that_can_t_be_sent_is_set_aside_with_the_reason_and_fails_its_job(store, rows) {
        store.note_queues(&["orders".to_owned()]).await.unwrap();
        let (long_id, long_name) = ("i".repeat(MAX_ID_BYTES + 1), "n".repeat(MAX_NAME_BYTES + 1));
        let bad = [
            (Row { id: &long_id, ..GOOD }, "`id` has"),
            (Row { id: "x#1", ..GOOD }, "contains `#`"),
            (Row { id: "name", name: "", ..GOOD }, "`name` is empty"),
            (Row { id: "long", name: &long_name, ..GOOD }, "`name` has"),
            (Row { id: "args", args: r#"{"a": 1}"#, ..GOOD }, "args are no JSON array"),
            (Row { id: "half", args: "[1", ..GOOD }, "args are no JSON array"),
            (Row { id: "kwargs", kwargs: "[]", ..GOOD }, "kwargs are no JSON object"),
            (Row { id: "early", enqueued_at: -1, ..GOOD }, "years 1970 to 9999"),
            (Row { id: "late", enqueued_at: LAST + 1, ..GOOD }, "years 1970 to 9999"),
            (Row { id: "queue", queue: "nowhere", ..GOOD }, "queue `nowhere` is neither"),
        ];
        for (row, _) in bad {
            insert(&rows, row).await;
        }
        assert!(store.take_outbox(100, 0).await.unwrap().is_empty());
        assert_eq!(rows.number("SELECT count(*) FROM {p}outbox").await, 0);
        for (row, reason) in bad {
            let entry = store.dead(row.id).await.unwrap().unwrap();
            assert_eq!((entry.kind.as_str(), entry.queue.as_str()), ("undeliverable", row.queue));
            assert_eq!((entry.job_id.as_deref(), entry.job.as_deref()), (Some(row.id), Some(row.name)));
            assert!(entry.reason.contains(reason), "{}: {}", row.id, entry.reason);
            let body = String::from_utf8(entry.body).unwrap();
            assert!(body.contains(row.args) && body.contains(row.kwargs), "{body}");
            let job = store.status(row.id).await.unwrap().unwrap();
            assert_eq!((job.status.as_str(), job.error), ("FAILURE", Some(entry.reason)));
            assert_eq!(job.error_kind.as_deref(), Some("undeliverable"));
            assert!(job.finished_at.is_some() && (0..=LAST).contains(&job.enqueued_at.0));
        }
    }

    async fn what_is_as_long_or_as_late_as_it_may_be_is_sent(store, rows) {
        store.note_queues(&["orders".to_owned()]).await.unwrap();
        let (long_id, long_name) = ("i".repeat(MAX_ID_BYTES), "n".repeat(MAX_NAME_BYTES));
        insert(&rows, Row { id: &long_id, name: &long_name, enqueued_at: LAST, ..GOOD }).await;
        insert(&rows, Row { id: "b", args: "[]", kwargs: "{}", enqueued_at: 0, ..GOOD }).await;
        assert_eq!(store.take_outbox(10, 0).await.unwrap().len(), 2);
    }

    async fn a_row_that_can_t_be_sent_holds_no_other_up(store, rows) {
        store.note_queues(&["orders".to_owned()]).await.unwrap();
        insert(&rows, Row { id: "bad", args: "x", ..GOOD }).await;
        insert(&rows, GOOD).await;
        insert(&rows, Row { id: "worse", queue: "nowhere", ..GOOD }).await;
        assert_eq!(ids(&store.take_outbox(10, 0).await.unwrap()), ["a"]);
        assert_eq!(store.status("bad").await.unwrap().unwrap().status, "FAILURE");
    }

    /// Its adder knew the queue, which no worker may serve yet.
    async fn a_row_of_our_own_is_not_judged(store, rows) {
        let ours = NewJob { job: job("ours"), queue: "nowhere".into(), ..new_job() };
        let Enqueued::Added { outbox_id, .. } = store.enqueue(&ours).await.unwrap() else { panic!() };
        store.outbox_failed(outbox_id, "no such queue yet", 0).await.unwrap();
        rows.write("UPDATE {p}outbox SET tries = 0").await;
        insert(&rows, Row { id: "bad", queue: "nowhere", ..GOOD }).await;
        assert_eq!(ids(&store.take_outbox(10, 0).await.unwrap()), ["ours"]);
        assert_eq!(store.status("ours").await.unwrap().unwrap().status, "PENDING");
        assert_eq!(store.status("bad").await.unwrap().unwrap().status, "FAILURE");
    }

    /// Its job has no row, and its queue need not be served: it came from there.
    async fn what_goes_back_from_the_dead_list_is_not_judged(store, rows) {
        let unknown = DeadMessage { kind: DeadKind::UnknownJob, ..dead("x") };
        assert!(store.put_aside(&unknown, None, None).await.unwrap());
        assert_eq!(store.retry_dead(&DeadFilter::default(), None).await.unwrap().sent, 1);
        insert(&rows, Row { id: "bad", queue: "nowhere", ..GOOD }).await;
        let taken = store.take_outbox(10, 0).await.unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].body.as_deref(), Some("body \0 as it was"));
    }

    /// The first under an id is the job; the second is sent as that, and ends by the fence.
    async fn a_second_row_under_an_id_leaves_the_first_job_as_it_is(store, rows) {
        store.note_queues(&["orders".to_owned()]).await.unwrap();
        insert(&rows, GOOD).await;
        assert_eq!(store.take_outbox(10, 0).await.unwrap().len(), 1);
        let before = store.status("a").await.unwrap();
        insert(&rows, Row { args: "x", ..GOOD }).await;
        assert_eq!(store.take_outbox(10, 0).await.unwrap().len(), 1);
        assert_eq!(store.status("a").await.unwrap(), before);
    }

    async fn the_roles_may_add_jobs_or_read_the_views_and_nothing_else(store, rows) {
        let is_postgres = store.dialect() == Dialect::Postgres;
        assert_eq!(store.grant_roles().await.unwrap(), is_postgres, "SQLite has no roles");
        assert_eq!(store.grant_roles().await.unwrap(), is_postgres, "once more");
        if !is_postgres {
            return;
        }
        let may = |question: String| {
            let rows = &rows;
            let question = format!("SELECT CAST(CAST({question} AS int) AS bigint)");
            async move { rows.number(&question).await == 1 }
        };
        let (outbox, jobs, view) =
            (store.table("outbox"), store.table("jobs"), store.table("job_status"));
        for (column, is_open) in [("args", true), ("not_before", true), ("body", false)] {
            let question = format!("has_column_privilege('{PRODUCER}', '{outbox}', '{column}', 'INSERT')");
            assert_eq!(may(question).await, is_open, "{column}");
        }
        for (role, table, right, is_granted) in [
            (PRODUCER, &outbox, "SELECT", false),
            (PRODUCER, &outbox, "DELETE", false),
            (PRODUCER, &view, "SELECT", false),
            (READER, &view, "SELECT", true),
            (READER, &jobs, "SELECT", false),
            (READER, &outbox, "INSERT", false),
        ] {
            let question = format!("has_table_privilege('{role}', '{table}', '{right}')");
            assert_eq!(may(question).await, is_granted, "{role} {right} on {table}");
        }
        let added = "INSERT INTO {p}outbox (job_name, queue) VALUES ('adder_job', 'nowhere')";
        rows.write(added).await;
        let id = rows.texts("SELECT job_id FROM {p}outbox").await.remove(0);
        assert_eq!(id.len(), 36, "a UUID without any");
    }
}
