//! `worker`: runs the jobs of some queues.

use std::sync::Arc;

use clap::Args;
use tracing::{info, warn};

use super::enqueue::check_queue;
use super::{migrate, open_broker, open_store};
use crate::config::{BrokerKind, Config};
use crate::registry::Registry;
use crate::registry::cache::Cache;
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
    /// Serve the queues in the order given: a later one only while the earlier ones are empty
    #[arg(long)]
    pub(super) strict: bool,
    /// How many generations of added jobs a job may lead to [default: 16]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) max_generations: Option<String>,
}

pub(super) async fn worker(config: Arc<Config>, arguments: &WorkerArguments) -> anyhow::Result<()> {
    let queues = arguments.queues.clone();
    queues.iter().try_for_each(|queue| check_queue("QUEUE", queue))?;
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
    let store = if config.migrate {
        let store = Store::open(&config.database(kind)).await?;
        migrate::bring_up(&store).await?;
        store
    } else {
        open_store(&config, kind).await?
    };
    let sandbox = Arc::new(Sandbox::new(config.concurrency)?);
    let loader = Loader::new(sandbox.clone(), Cache::new(Some(&config.cache_dir())));
    let registry = Arc::new(Registry::load(&loader, &config.jobs_dirs).await?);
    if registry.snapshot().jobs.is_empty() {
        let folders: Vec<_> =
            config.jobs_dirs.iter().map(|folder| folder.display().to_string()).collect();
        warn!(
            "no job is deployed in {}; messages go back with a growing delay",
            folders.join(", ")
        );
    }
    let broker = open_broker(&config, kind, &store).await?;
    let worker = Worker::new(
        config.clone(),
        broker.clone(),
        store.clone(),
        registry,
        sandbox,
        &queues,
        stopping,
    )
    .await?;
    info!(
        concurrency = config.concurrency,
        "ready: polling {} on {}",
        crate::text::printable(&queues.join(", ")),
        broker.label()
    );
    worker.run().await;
    store.close().await;
    info!("stopped");
    Ok(())
}
