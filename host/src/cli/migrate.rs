//! `migrate`: brings the database's schema to this version.

use clap::Args;
use serde_json::json;

use super::{Usage, is_json, print};
use crate::config::{BrokerKind, Config};
use crate::store::{Dialect, Store};

/// Migrates, and logs it if there was something to do.
pub(super) async fn bring_up(store: &Store) -> anyhow::Result<()> {
    let done = store.migrate().await?;
    if done.from != done.to {
        tracing::info!(
            "migrated {} from schema version {} to {}",
            store.label(),
            done.from,
            done.to
        );
    }
    Ok(())
}

#[derive(Args)]
pub(super) struct MigrateArguments {
    /// Also make the roles sqjobs_reader (may read the views) and sqjobs_producer (may insert into
    /// the outbox); PostgreSQL only
    #[arg(long)]
    roles: bool,
}

pub(super) async fn migrate(config: &Config, arguments: &MigrateArguments) -> anyhow::Result<()> {
    let kind = config.chosen_broker.unwrap_or(BrokerKind::Local);
    let store = Store::open(&config.database(kind)).await?;
    if arguments.roles && store.dialect() == Dialect::Sqlite {
        return Err(Usage("--roles: SQLite has no roles; use it with PostgreSQL".into()).into());
    }
    let done = store.migrate().await?;
    if arguments.roles {
        store.grant_roles().await?;
    }
    if is_json(config) {
        return print::json(&json!({"from": done.from, "to": done.to}).to_string());
    }
    let text = if done.from == done.to {
        format!("{} has schema version {} already", store.label(), done.to)
    } else {
        format!("{} went from schema version {} to {}", store.label(), done.from, done.to)
    };
    print::text(&text)
}
