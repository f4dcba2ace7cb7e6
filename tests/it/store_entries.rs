//! What the store promises of what operators do with periodic entries, on SQLite and on PostgreSQL
//! alike.

use sqjobs::beater::definition::Definition;
use sqjobs::store::Store;
use sqjobs::store::periodic::{DefineError, Entry, Seen, Source};

use crate::store_fixtures::on_every_database;

/// An entry that fires each hour, from the year 2100 on.
fn hourly() -> Definition {
    Definition {
        job: Some("adder_job".into()),
        queue: Some("q".into()),
        every_ms: Some(3_600_000),
        start_at: Some(4_102_444_800_000),
        ..Definition::default()
    }
}

async fn define(store: &Store, source: Source, definition: Definition) {
    let seen = Seen { name: "n".into(), source, digest: "d".into(), definition };
    store.define_periodic(&seen).await.unwrap();
}

async fn entry(store: &Store) -> Entry {
    store.periodic_entries(Some("n")).await.unwrap().remove(0)
}

on_every_database! {
    async fn an_entry_fires_from_its_enabling_on_and_no_more_once_it_is_disabled(store, rows) {
        let unknown = store.enable_periodic("n", true).await;
        assert!(matches!(unknown, Err(DefineError::Unknown(name)) if name == "n"));
        define(&store, Source::Command, hourly()).await;
        let planned = entry(&store).await.next_fire_at;
        store.enable_periodic("n", false).await.unwrap();
        let disabled = entry(&store).await;
        assert!(!disabled.is_enabled && disabled.next_fire_at == planned);
        rows.write("UPDATE {p}periodic SET next_fire_at = 1000000000000, due_at = 1000000000000").await;
        store.enable_periodic("n", true).await.unwrap();
        let enabled = entry(&store).await;
        assert!(enabled.is_enabled && enabled.next_fire_at == planned, "{enabled:?}");
        rows.write("UPDATE {p}periodic SET next_fire_at = 1000000000000").await;
        store.enable_periodic("n", true).await.unwrap();
        let again = entry(&store).await.next_fire_at.unwrap();
        assert_eq!(again.0, 1_000_000_000_000, "it fires already");
    }

    async fn an_entry_that_was_set_aside_fires_again_once_its_row_is_mended(store, rows) {
        define(&store, Source::Command, hourly()).await;
        rows.write("UPDATE {p}periodic SET aside = 'bad', args = '7'").await;
        let invalid = store.enable_periodic("n", true).await;
        assert!(matches!(invalid, Err(DefineError::Invalid { .. })));
        assert!(matches!(store.run_periodic_now("n").await, Err(DefineError::Invalid { .. })));
        assert!(entry(&store).await.aside.is_some());
        rows.write("UPDATE {p}periodic SET args = '[7]'").await;
        store.enable_periodic("n", true).await.unwrap();
        assert_eq!(entry(&store).await.aside, None);
    }

    async fn an_entry_that_something_else_would_bring_back_is_not_removed(store) {
        assert!(matches!(store.remove_periodic("n", false, false).await, Err(DefineError::Unknown(_))));
        define(&store, Source::Module, hourly()).await;
        define(&store, Source::Config, hourly()).await;
        for (is_held, is_in_file, word) in [(true, false, "module"), (false, true, "file")] {
            let held = store.remove_periodic("n", is_held, is_in_file).await;
            assert!(matches!(&held, Err(DefineError::Held { by, .. }) if by.contains(word)), "{held:?}");
        }
        assert_eq!(store.periodic_entries(None).await.unwrap().len(), 1);
        store.remove_periodic("n", false, false).await.unwrap();
        assert!(store.periodic_entries(None).await.unwrap().is_empty());
        define(&store, Source::Module, hourly()).await;
        assert_eq!(entry(&store).await.source, "module", "its definitions went too");
    }

    async fn the_job_of_an_entry_is_queued_now_beside_its_schedule(store) {
        assert!(matches!(store.run_periodic_now("n").await, Err(DefineError::Unknown(_))));
        define(&store, Source::Command, Definition { args: Some("[7]".into()), ..hourly() }).await;
        let before = entry(&store).await;
        let id = store.run_periodic_now("n").await.unwrap();
        let job = store.status(&id).await.unwrap().unwrap();
        assert_eq!((job.name.as_str(), job.queue.as_str()), ("adder_job", "q"));
        assert_eq!((job.args.as_deref(), job.schedule.as_deref()), (Some("[7]"), Some("n")));
        let sent = store.take_outbox(10, 0).await.unwrap();
        assert_eq!((sent.len(), &sent[0].job.id), (1, &id));
        let ticks = store.periodic_ticks("n", 10).await.unwrap();
        assert_eq!((ticks.len(), ticks[0].reason.as_deref()), (1, Some("by hand")));
        assert!(ticks[0].fire_time.0 % 1000 != 0, "there the row of a tick would stand");
        assert_eq!(entry(&store).await.next_fire_at, before.next_fire_at);
        assert_ne!(store.run_periodic_now("n").await.unwrap(), id);
    }

    async fn an_entry_without_a_queue_is_not_run(store) {
        define(&store, Source::Command, Definition { queue: None, ..hourly() }).await;
        assert!(matches!(store.run_periodic_now("n").await, Err(DefineError::NoQueue(_))));
    }

    async fn what_a_command_changes_stands_over_the_rest_of_what_others_say(store) {
        let change = Definition { queue: Some("r".into()), ..Definition::default() };
        let unknown = store.edit_periodic("n", Some(&change)).await;
        assert!(matches!(unknown, Err(DefineError::Unknown(_))));
        define(&store, Source::Config, hourly()).await;
        store.edit_periodic("n", Some(&change)).await.unwrap();
        let jitter = Definition { jitter_ms: Some(5), ..Definition::default() };
        store.edit_periodic("n", Some(&jitter)).await.unwrap();
        let edited = entry(&store).await;
        assert_eq!((edited.queue.as_deref(), edited.definition.jitter_ms), (Some("r"), Some(5)));
        assert_eq!(edited.definition.every_ms, Some(3_600_000));
        store.edit_periodic("n", None).await.unwrap();
        assert_eq!(entry(&store).await.queue.as_deref(), Some("q"));
        store.remove_periodic("n", false, false).await.unwrap();
        define(&store, Source::Command, hourly()).await;
        let only = store.edit_periodic("n", None).await;
        assert!(matches!(only, Err(DefineError::OnlyCommands(_))));
        assert_eq!(store.periodic_entries(None).await.unwrap().len(), 1);
    }
}
