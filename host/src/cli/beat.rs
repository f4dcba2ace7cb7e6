//! `beater`: queues periodic jobs.

use std::sync::Arc;

use clap::Args;
use tracing::info;

use super::work::follow_periodic;
use super::{migrate, open_broker, open_store};
use crate::beater::{Beater, register};
use crate::config::live::{Hangups, LiveConfig};
use crate::config::{Config, Flags};
use crate::sender::Sender;
use crate::store::Store;
use crate::text::printable;

#[derive(Args)]
pub(super) struct BeaterArguments {
    /// Only entries of these queues [default: all]
    #[arg(value_name = "QUEUE")]
    pub(super) queues: Vec<String>,
    /// Bring a PostgreSQL schema to this version first
    #[arg(long)]
    pub(super) migrate: bool,
}

pub(super) async fn beater(
    config: Arc<Config>,
    flags: Flags,
    arguments: &BeaterArguments,
) -> anyhow::Result<()> {
    let mut queues = arguments.queues.clone();
    queues.sort();
    queues.dedup();
    let kind = config.broker(&queues)?;
    let stopping = crate::shutdown::listen()?;
    let hangups = Hangups::listen()?;
    let live = Arc::new(LiveConfig::without_grants(config.clone(), flags));
    let store = if config.migrate {
        let store = Store::open(&config.database(kind)).await?;
        migrate::bring_up(&store).await?;
        store
    } else {
        open_store(&config, kind).await?
    };
    register::config(&store, &config, &queues).await?;
    let broker = open_broker(&config, kind, &store).await?;
    let served = if queues.is_empty() { "all queues".to_owned() } else { queues.join(", ") };
    let following = [
        tokio::spawn(follow_periodic(live.clone(), live.changes(), store.clone(), queues.clone())),
        tokio::spawn(live.follow(hangups, stopping.clone())),
    ];
    let sender = Sender::new(store.clone(), broker.clone());
    let beater = Beater::new(store.clone(), sender, queues, stopping);
    info!(
        "ready: queueing periodic jobs of {} from {} to {}",
        printable(&served),
        store.label(),
        broker.label()
    );
    beater.run().await;
    following.iter().for_each(tokio::task::JoinHandle::abort);
    store.close().await;
    info!("stopped");
    Ok(())
}
