//! `worker`: runs the jobs of some queues.

use std::sync::Arc;

use clap::Args;
use tracing::{info, warn};

use super::enqueue::check_queue;
use super::{migrate, open_broker, open_store};
use crate::config::{BrokerKind, Config};
use crate::exporter::Exporter;
use crate::listen;
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
    /// Keep finished jobs whole for so long, such as 7d; later only what fences them off
    /// [default: for ever]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) keep: Option<String>,
    /// Keep so many finished jobs whole [default: all]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) keep_count: Option<String>,
    /// Answer /livez, /readyz and /metrics here, such as 127.0.0.1:9464 [default: off]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
}

impl WorkerArguments {
    /// What the command line says of the worker's settings.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let switches = [("migrate", self.migrate), ("strict", self.strict)];
        let texts =
            [("keep", &self.keep), ("keep-count", &self.keep_count), ("listen", &self.listen)];
        let switches = switches.into_iter().filter(|(_, is_set)| *is_set);
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?)));
        switches.map(|(name, _)| (name, "true".to_owned())).chain(texts).collect()
    }
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
    let listener = match config.listen {
        Some(address) => Some(listen::bind(address).await?),
        None => None,
    };
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
    if let Some(listener) = listener {
        info!("listening on http://{}", listener.local_addr()?);
        worker.listen(listener, Exporter::install());
    }
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
