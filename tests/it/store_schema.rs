//! What the store promises of its schema's versions and of itself, on SQLite and on PostgreSQL
//! alike.

use std::sync::Arc;

use sqjobs::store::migrate::Migrated;
use sqjobs::store::{Dialect, Store, StoreError};
use sqlx::migrate::MigrateError;

use crate::store_fixtures::{Rows, begin, job, on_every_database};

/// Where applied migrations are listed.
fn table(store: &Store) -> String {
    match store.dialect() {
        Dialect::Sqlite => "sqjobs_migrations".to_owned(),
        Dialect::Postgres => store.table("sqjobs_migrations"),
    }
}

/// This host's version.
async fn newest(store: &Store) -> i64 {
    let Migrated { from, to } = store.migrate().await.unwrap();
    assert_eq!(from, to, "it was migrated");
    to
}

/// As a newer host leaves the database.
async fn note_version(store: &Store, rows: &Rows, version: i64) {
    let table = table(store);
    rows.write(&format!(
        "INSERT INTO {table} (version, description, success, checksum, execution_time) \
         SELECT {version}, description, success, checksum, execution_time FROM {table} \
         WHERE version = 1"
    ))
    .await;
}

on_every_database! {
    async fn a_schema_one_version_newer_is_served_and_left_as_it_is(store, rows) {
        let newest = newest(&store).await;
        note_version(&store, &rows, newest + 1).await;
        store.check_schema().await.unwrap();
        let migrated = store.migrate().await.unwrap();
        assert_eq!(migrated, Migrated { from: newest + 1, to: newest + 1 });
        let _ = begin(&store, &job("a"), "t").await;
    }

    async fn a_schema_two_versions_newer_is_refused_with_both_versions(store, rows) {
        let newest = newest(&store).await;
        note_version(&store, &rows, newest + 2).await;
        for refused in [store.check_schema().await.unwrap_err(), store.migrate().await.unwrap_err()] {
            let told = refused.to_string();
            let StoreError::TooNew { found, most, .. } = refused else { panic!("{told}") };
            assert_eq!((found, most), (newest + 2, newest + 1));
            assert!(told.contains("use a newer sqjobs-host"), "{told}");
        }
    }

    async fn a_schema_that_is_too_old_asks_for_a_migration(store, rows) {
        let newest = newest(&store).await;
        let table = table(&store);
        rows.write(&format!("DELETE FROM {table} WHERE version = {newest}")).await;
        let due = store.check_schema().await.unwrap_err();
        assert!(due.to_string().contains("sqjobs-host migrate"), "{due}");
        let StoreError::MigrationDue { found, needed, .. } = due else { panic!("{due:?}") };
        assert_eq!((found, needed), (newest - 1, newest));
    }

    async fn a_migration_that_was_changed_after_it_ran_is_refused(store, rows) {
        let table = table(&store);
        let other = format!("(SELECT checksum FROM {table} WHERE version = 2)");
        rows.write(&format!("UPDATE {table} SET checksum = {other} WHERE version = 1")).await;
        let refused = store.migrate().await.unwrap_err();
        let StoreError::Migrate { source, .. } = refused else { panic!("{refused:?}") };
        assert!(matches!(source, MigrateError::VersionMismatch(1)), "{source:?}");
    }

    async fn a_migration_that_stopped_half_way_is_named_and_not_built_upon(store, rows) {
        let newest = newest(&store).await;
        let table = table(&store);
        rows.write(&format!("UPDATE {table} SET success = false WHERE version = {newest}")).await;
        let refused = store.migrate().await.unwrap_err();
        let StoreError::Migrate { source, .. } = refused else { panic!("{refused:?}") };
        assert!(matches!(source, MigrateError::Dirty(version) if version == newest), "{source:?}");
        assert!(matches!(store.check_schema().await, Err(StoreError::MigrationDue { .. })));
    }

    /// What else writes to the same SQLite file takes its turn by it.
    async fn clones_share_their_turn_at_writing_and_their_end(store) {
        let clone = store.clone();
        assert!(Arc::ptr_eq(&store.writer(), &clone.writer()));
        assert!(store.now().await.unwrap().0 > 1_700_000_000_000);
        assert!(!store.label().is_empty() && store.label() == clone.label());
        store.close().await;
        let failed = clone.now().await.unwrap_err();
        assert!(failed.is_transient() && failed.to_string().contains(store.label()), "{failed}");
    }
}
