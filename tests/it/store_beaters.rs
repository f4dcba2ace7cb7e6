//! What the store promises beaters of the ticks that they claim, and of their rows, on SQLite and
//! on PostgreSQL alike.

use std::time::Duration;

use sqjobs::beater::definition::Definition;
use sqjobs::store::enqueue::NewJob;
use sqjobs::store::modules::DeployedJob;
use sqjobs::store::periodic::{Beat, BeaterRow, Claimed, Entry, Seen, Source, TickRow};
use sqjobs::store::{Dialect, Store};

use crate::store_fixtures::{LEASE, Rows, job, new_job, on_every_database, version, worker};

const DAY_MS: i64 = 86_400_000;

/// An entry that fires each day.
fn daily() -> Definition {
    Definition {
        job: Some("adder_job".into()),
        queue: Some("q".into()),
        every_ms: Some(DAY_MS),
        ..Definition::default()
    }
}

async fn define(store: &Store, name: &str, definition: Definition) {
    let (name, digest) = (name.to_owned(), "d".to_owned());
    let seen = Seen { name, source: Source::Command, digest, definition };
    store.define_periodic(&seen).await.unwrap();
}

/// Has an entry be due since the last midnight.
async fn make_due(store: &Store, rows: &Rows, name: &str) -> i64 {
    let fire = store.now().await.unwrap().0 / DAY_MS * DAY_MS;
    let offset = entry(store, name).await;
    let offset = offset.due_at.unwrap().0 - offset.next_fire_at.unwrap().0;
    let due = fire + offset;
    rows.write(&format!(
        "UPDATE {{p}}periodic SET next_fire_at = {fire}, due_at = {due}, grace_ms = 86400000 \
         WHERE name = '{name}'"
    ))
    .await;
    fire
}

async fn entry(store: &Store, name: &str) -> Entry {
    store.periodic_entries(Some(name)).await.unwrap().remove(0)
}

async fn tick(store: &Store, name: &str) -> TickRow {
    let mut ticks = store.periodic_ticks(name, 10).await.unwrap();
    assert_eq!(ticks.len(), 1, "{ticks:?}");
    ticks.remove(0)
}

async fn claim_of(store: &Store, queues: &[&str], limit: u32) -> Claimed {
    let queues = queues.iter().map(|&queue| queue.to_owned()).collect();
    store.claim_ticks(&Beat { beater: "b".into(), queues, limit }).await.unwrap()
}

async fn claim(store: &Store) -> Claimed {
    claim_of(store, &[], 10).await
}

fn beater(id: &str) -> BeaterRow {
    BeaterRow {
        id: id.into(),
        host: "h".into(),
        pid: 7,
        zones: "2026a".into(),
        queues: "q,r".into(),
        clock_off_ms: -3,
    }
}

on_every_database! {
    async fn an_entry_that_is_due_becomes_a_job_once(store, rows) {
        define(&store, "n", Definition { jitter_ms: Some(1000), ..daily() }).await;
        assert_eq!(claim(&store).await.entries, 0, "it is not due yet");
        let fire = make_due(&store, &rows, "n").await;
        let offset = entry(&store, "n").await.due_at.unwrap().0 - fire;
        assert!((0..=1000).contains(&offset));
        let claimed = claim(&store).await;
        assert_eq!((claimed.entries, claimed.queued, claimed.skipped), (1, 1, 0));
        let tick = tick(&store, "n").await;
        assert_eq!((tick.outcome.as_str(), tick.beater.as_str()), ("queued", "b"));
        assert_eq!((tick.fire_time.0, tick.reason), (fire, None));
        assert_eq!(tick.late_ms, tick.claimed_at.0 - fire - offset);
        let id = tick.job_id.unwrap();
        let job = store.status(&id).await.unwrap().unwrap();
        assert_eq!((job.schedule.as_deref(), job.fire_time), (Some("n"), Some(tick.fire_time)));
        let sent = store.take_outbox(10, 0).await.unwrap();
        assert_eq!((sent.len(), &sent[0].job.id), (1, &id));

        let entry = entry(&store, "n").await;
        assert_eq!(entry.next_fire_at.unwrap().0, fire + DAY_MS);
        assert_eq!((entry.last_job_id, entry.last_status.as_deref()), (Some(id), Some("PENDING")));
        assert_eq!(claim(&store).await.entries, 0);
    }

    async fn a_beater_claims_entries_of_its_queues_only(store, rows) {
        define(&store, "own", daily()).await;
        define(&store, "other", Definition { queue: Some("r".into()), ..daily() }).await;
        define(&store, "described", Definition { queue: None, ..daily() }).await;
        let deployed = DeployedJob {
            name: "adder_job".into(),
            module: version(),
            queue: Some("s".into()),
            records_result: true,
            description: "{}".into(),
        };
        store.register_jobs(&[deployed]).await.unwrap();
        for name in ["own", "other", "described"] {
            make_due(&store, &rows, name).await;
        }
        assert_eq!(claim_of(&store, &["nowhere"], 10).await.entries, 0);
        let claimed = claim_of(&store, &["q", "s"], 10).await;
        assert_eq!((claimed.entries, claimed.queued), (2, 2));
        assert!(store.periodic_ticks("other", 10).await.unwrap().is_empty());
        assert_eq!(store.deployed_names().await.unwrap(), ["adder_job"]);
    }

    async fn a_claim_tells_when_the_next_entry_is_due(store, rows) {
        assert_eq!(claim(&store).await.next_due, None);
        define(&store, "late", daily()).await;
        define(&store, "soon", Definition { queue: Some("r".into()), ..daily() }).await;
        let now = store.now().await.unwrap().0;
        for (name, ahead) in [("late", 2 * DAY_MS), ("soon", DAY_MS)] {
            let due = now + ahead;
            let update = format!("SET next_fire_at = {due}, due_at = {due} WHERE name = '{name}'");
            rows.write(&format!("UPDATE {{p}}periodic {update}")).await;
        }
        let day = Duration::from_secs(86_400);
        let next = claim(&store).await.next_due.unwrap();
        assert!(next <= day && next > day / 2, "{next:?}");
        let next = claim_of(&store, &["x", "q"], 10).await.next_due.unwrap();
        assert!(next <= 2 * day && next > day, "{next:?}");
        store.enable_periodic("soon", false).await.unwrap();
        assert!(claim(&store).await.next_due.unwrap() > day);
        for name in ["late", "soon"] {
            make_due(&store, &rows, name).await;
        }
        store.enable_periodic("soon", true).await.unwrap();
        make_due(&store, &rows, "soon").await;
        let claimed = claim_of(&store, &[], 1).await;
        assert_eq!((claimed.entries, claimed.next_due), (1, Some(Duration::ZERO)), "there is more");
    }

    async fn a_tick_without_a_queue_is_skipped_with_the_reason(store, rows) {
        define(&store, "n", Definition { queue: None, ..daily() }).await;
        make_due(&store, &rows, "n").await;
        let claimed = claim(&store).await;
        assert_eq!((claimed.queued, claimed.skipped), (0, 1));
        let tick = tick(&store, "n").await;
        assert_eq!((tick.outcome.as_str(), tick.job_id), ("skipped", None));
        assert!(tick.reason.unwrap().contains("no queue"));
    }

    /// By `skip` the tick goes, by `replace` the job before, by `allow` neither.
    async fn what_becomes_of_a_job_that_is_not_done_is_the_entrys_choice(store, rows) {
        for (overlap, queued, status) in
            [("skip", 0, "PENDING"), ("replace", 1, "CANCELLED"), ("allow", 1, "PENDING")]
        {
            define(&store, overlap, Definition { overlap: Some(overlap.into()), ..daily() }).await;
            let before = format!("before-{overlap}");
            store.enqueue(&NewJob { job: job(&before), ..new_job() }).await.unwrap();
            let update = format!("SET last_job_id = '{before}' WHERE name = '{overlap}'");
            rows.write(&format!("UPDATE {{p}}periodic {update}")).await;
            make_due(&store, &rows, overlap).await;
            assert_eq!(claim(&store).await.queued, queued, "{overlap}");
            assert_eq!(store.status(&before).await.unwrap().unwrap().status, status, "{overlap}");
        }
    }

    async fn an_entry_that_somebody_edited_to_nonsense_is_set_aside_and_harms_no_other(store, rows) {
        let far = store.now().await.unwrap().0 + DAY_MS;
        for (name, set) in [
            ("early", "next_fire_at = 946684799999".to_owned()),
            ("unplanned", format!("next_fire_at = {far}")),
            ("nonsense", "args = '7'".to_owned()),
            ("good", "last_fire_at = NULL".to_owned()),
        ] {
            define(&store, name, daily()).await;
            make_due(&store, &rows, name).await;
            rows.write(&format!("UPDATE {{p}}periodic SET {set} WHERE name = '{name}'")).await;
        }
        let mut claimed = claim(&store).await;
        assert_eq!((claimed.entries, claimed.queued), (4, 1));
        claimed.aside.sort();
        let names: Vec<&str> = claimed.aside.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["early", "nonsense", "unplanned"]);
        for (name, reason) in &claimed.aside {
            assert_eq!(entry(&store, name).await.aside.as_ref(), Some(reason));
        }
        assert!(claimed.aside[0].1.contains("before the year 2000"));
        assert!(claimed.aside[2].1.contains("due before its next fire time"));
        assert_eq!(entry(&store, "good").await.aside, None);
        assert_eq!(claim(&store).await.entries, 0);
    }

    async fn a_change_of_schedule_claims_first_what_is_due_by_the_one_before(store, rows) {
        for name in ["due", "off", "later"] {
            define(&store, name, daily()).await;
        }
        let fire = make_due(&store, &rows, "due").await;
        make_due(&store, &rows, "off").await;
        store.enable_periodic("off", false).await.unwrap();
        let args = Definition { args: Some("[1]".into()), ..Definition::default() };
        store.edit_periodic("due", Some(&args)).await.unwrap();
        assert_eq!(entry(&store, "due").await.next_fire_at.unwrap().0, fire, "the same schedule");
        let now = store.now().await.unwrap();
        let weekly = Definition { every_ms: Some(7 * DAY_MS), ..Definition::default() };
        for name in ["due", "off", "later"] {
            store.edit_periodic(name, Some(&weekly)).await.unwrap();
            let entry = entry(&store, name).await;
            let next = entry.next_fire_at.unwrap();
            assert!(next > now && next.0 % (7 * DAY_MS) == 0 && entry.aside.is_none(), "{entry:?}");
        }
        let tick = tick(&store, "due").await;
        assert_eq!((tick.fire_time.0, tick.outcome.as_str()), (fire, "queued"));
        for name in ["off", "later"] {
            assert!(store.periodic_ticks(name, 10).await.unwrap().is_empty(), "{name}");
        }
    }

    /// SQLite keeps text where a number belongs, and takes it to be more than any.
    async fn an_entry_whose_due_time_is_text_is_set_aside(store, rows) {
        define(&store, "good", daily()).await;
        define(&store, "text", daily()).await;
        if store.dialect() == Dialect::Sqlite {
            rows.write("UPDATE {p}periodic SET due_at = 'soon' WHERE name = 'text'").await;
        }
        store.set_unreadable_aside().await.unwrap();
        let is_aside = entry(&store, "text").await.aside.is_some();
        assert_eq!(is_aside, store.dialect() == Dialect::Sqlite);
        assert_eq!(entry(&store, "good").await.aside, None);
        assert!(entry(&store, "good").await.settings().is_ok());
        assert!(entry(&store, "good").await.is_enabled);
    }

    async fn a_job_is_held_while_a_worker_that_has_it_lives(store) {
        define(&store, "n", daily()).await;
        store.renew_worker(&worker("w", LEASE)).await.unwrap();
        let holds = |jobs: &[&str]| {
            let jobs: Vec<String> = jobs.iter().map(|&job| job.to_owned()).collect();
            let store = store.clone();
            async move {
                store.worker_holds("w", &jobs).await.unwrap();
                entry(&store, "n").await.is_held
            }
        };
        assert!(!holds(&["other"]).await);
        assert!(holds(&["other", "adder_job"]).await);
        assert!(!holds(&[]).await, "in place of what was noted before");
        assert!(holds(&["adder_job"]).await);
        store.remove_worker("w").await.unwrap();
        assert!(!entry(&store, "n").await.is_held);
    }

    async fn a_beater_lives_while_its_row_is_renewed(store, rows) {
        let (first, second) = (beater("1"), BeaterRow { clock_off_ms: 9, ..beater("2") });
        store.renew_beater(&first).await.unwrap();
        store.renew_beater(&beater("2")).await.unwrap();
        rows.write("UPDATE {p}beaters SET started_at = 5 WHERE id = '1'").await;
        store.renew_beater(&second).await.unwrap();
        assert_eq!(store.live_beaters().await.unwrap(), [first.clone(), second.clone()]);
        let age = |id, ms: i64| {
            format!("UPDATE {{p}}beaters SET renewed_at = renewed_at - {ms} WHERE id = '{id}'")
        };
        rows.write(&age("1", 60_001)).await;
        assert_eq!(store.live_beaters().await.unwrap(), std::slice::from_ref(&second));
        store.renew_beater(&second).await.unwrap();
        let count = "SELECT count(*) FROM {p}beaters";
        assert_eq!(rows.number(count).await, 2);
        rows.write(&age("1", DAY_MS)).await;
        store.renew_beater(&second).await.unwrap();
        assert_eq!(rows.number(count).await, 1, "not renewed for a day");
        store.remove_beater("2").await.unwrap();
        assert_eq!(rows.number(count).await, 0);
    }

    async fn ticks_are_forgotten_after_so_many_days_in_batches_of_5000(store, rows) {
        let now = store.now().await.unwrap().0;
        let insert = |name: &str, count: i64, claimed_at: i64| {
            format!(
                "INSERT INTO {{p}}periodic_ticks (schedule, fire_time, outcome, last_time, \
                 claimed_at, late_ms, beater) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL \
                 SELECT i + 1 FROM n WHERE i < {count}) \
                 SELECT '{name}', i, 'skipped', i, {claimed_at}, 0, 'b' FROM n"
            )
        };
        rows.write(&insert("old", 5001, now - 3 * DAY_MS - 1000)).await;
        rows.write(&insert("young", 2, now - 3 * DAY_MS + 60_000)).await;
        assert!(store.prune_ticks(3).await.unwrap(), "there may be more");
        assert!(!store.prune_ticks(3).await.unwrap());
        assert!(store.periodic_ticks("old", 10).await.unwrap().is_empty());
        assert_eq!(store.periodic_ticks("young", 10).await.unwrap().len(), 2);
    }
}
