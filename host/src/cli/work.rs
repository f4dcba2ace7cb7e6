//! `worker`: runs the jobs of some queues.

use std::sync::Arc;

use clap::Args;
use tracing::{info, warn};

use super::{Usage, migrate, open_broker, open_cache, open_store};
use crate::config::live::{Hangups, LiveConfig};
use crate::config::{BrokerKind, Config, Flags};
use crate::registry::deploy::Deployer;
use crate::registry::load::Loader;
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::worker::Worker;

#[derive(Args)]
pub(super) struct WorkerArguments {
    /// Queues to poll, by name; on SQS also by URL
    #[arg(required = true, value_name = "QUEUE")]
    queues: Vec<String>,
    /// Bring a PostgreSQL schema to this version first
    #[arg(long)]
    pub(super) migrate: bool,
}

pub(super) async fn worker(
    config: Arc<Config>,
    flags: Flags,
    arguments: &WorkerArguments,
) -> anyhow::Result<()> {
    let mut queues = arguments.queues.clone();
    queues.sort();
    queues.dedup();
    if queues.iter().any(String::is_empty) {
        return Err(Usage("a queue's name can't be empty".into()).into());
    }
    let kind = config.broker(&queues)?;
    let file = match &config.file {
        Some(file) => file.display().to_string(),
        None => "none".to_owned(),
    };
    let broker = match kind {
        BrokerKind::Local => format!("local:{}", config.queue_file().display()),
        BrokerKind::Sqs => "sqs".to_owned(),
    };
    info!(
        "sqjobs-host {}: config {file}, database {}, broker {broker}",
        env!("CARGO_PKG_VERSION"),
        config.database(kind).label(),
    );
    // Before anything is opened, so that no signal finds us without ears.
    let stopping = crate::shutdown::listen()?;
    let hangups = Hangups::listen()?;
    let live = Arc::new(LiveConfig::new(config.clone(), flags));
    let store = if config.migrate {
        let store = Store::open(&config.database(kind)).await?;
        migrate::bring_up(&store).await?;
        store
    } else {
        open_store(&config, kind).await?
    };
    let sandbox = Arc::new(Sandbox::new(config.concurrency)?);
    let loader = Loader::new(sandbox.clone(), open_cache(&config));
    let deployer = Deployer::start(loader, live.clone(), store.clone()).await?;
    let registry = deployer.registry();
    if registry.snapshot().jobs.is_empty() {
        let folders: Vec<_> =
            config.jobs_dirs.iter().map(|folder| folder.display().to_string()).collect();
        warn!(
            "no job is deployed in {}; messages go back with a growing delay until one is",
            folders.join(", ")
        );
    }
    let broker = open_broker(&config, kind, &store).await?;
    let worker = Worker::new(
        live.clone(),
        broker.clone(),
        store.clone(),
        registry,
        sandbox,
        &queues,
        stopping.clone(),
    )
    .await?;
    let following = tokio::spawn(live.follow(hangups, stopping.clone()));
    let deploying = tokio::spawn(deployer.run(stopping));
    info!(
        concurrency = config.concurrency,
        "ready: polling {} on {}",
        crate::text::printable(&queues.join(", ")),
        broker.label()
    );
    worker.run().await;
    deploying.abort();
    following.abort();
    store.close().await;
    info!("stopped");
    Ok(())
}
