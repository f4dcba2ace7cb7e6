//! `worker`: runs the jobs of some queues.

use std::sync::Arc;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{loader, migrate, open_broker, open_store};
use crate::beater::{Beater, register};
use crate::config::live::{Hangups, LiveConfig};
use crate::config::{BrokerKind, Config, Flags};
use crate::exporter::Exporter;
use crate::listen;
use crate::outage::{Backoff, Outage};
use crate::registry::deploy::Deployer;
use crate::sandbox::Sandbox;
use crate::sender::Sender;
use crate::store::Store;
use crate::worker::Worker;

#[derive(Args)]
pub(super) struct WorkerArguments {
    /// Queues to poll, by name; on SQS also by URL
    #[arg(required = true, value_name = "QUEUE")]
    pub(super) queues: Vec<String>,
    /// Bring a PostgreSQL schema to this version first
    #[arg(long)]
    pub(super) migrate: bool,
    /// Serve the queues in the order given: a later one only while the earlier ones are empty
    #[arg(long)]
    pub(super) strict: bool,
    /// Queue periodic jobs as well, of all queues
    #[arg(long)]
    beater: bool,
    /// How many generations of added jobs a job may lead to [default: 16]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) max_generations: Option<String>,
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
        let texts = [
            ("keep", &self.keep),
            ("keep-count", &self.keep_count),
            ("listen", &self.listen),
            ("max-generations", &self.max_generations),
        ];
        let switches = switches.into_iter().filter(|(_, is_set)| *is_set);
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?)));
        switches.map(|(name, _)| (name, "true".to_owned())).chain(texts).collect()
    }
}

pub(super) async fn worker(
    config: Arc<Config>,
    flags: Flags,
    arguments: &WorkerArguments,
) -> anyhow::Result<()> {
    let queues = arguments.queues.clone();
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
    let config = Arc::new(Config::clone(&config).with_grants()?);
    raise_open_files();
    // Before anything is opened, so that no signal finds us without ears.
    let stopping = crate::shutdown::listen()?;
    let hangups = Hangups::listen()?;
    let live = Arc::new(LiveConfig::new(config.clone(), flags));
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
    let loader = loader(&config, &sandbox, true).with_live_config(live.clone());
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
    register::config(&store, &config, &queues).await?;
    let following = [
        tokio::spawn(follow_periodic(live.clone(), live.changes(), store.clone(), queues.clone())),
        tokio::spawn(live.follow(hangups, stopping.clone())),
        tokio::spawn(deployer.run(stopping.clone())),
    ];
    let beater = arguments.beater.then(|| {
        let sender = Sender::new(store.clone(), broker.clone());
        tokio::spawn(Beater::new(store.clone(), sender, Vec::new(), stopping).run())
    });
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
    following.iter().for_each(tokio::task::JoinHandle::abort);
    if let Some(beater) = beater {
        beater.await?;
    }
    store.close().await;
    info!("stopped");
    Ok(())
}

/// Brings the periodic entries of the configuration file to the database whenever it was read
/// again.
pub(super) async fn follow_periodic(
    live: Arc<LiveConfig>,
    mut changes: watch::Receiver<()>,
    store: Store,
    queues: Vec<String>,
) {
    let outage = Outage::new("write the periodic entries of the configuration");
    while changes.changed().await.is_ok() {
        let mut backoff = Backoff::default();
        while let Err(error) = register::config(&store, &live.load(), &queues).await {
            outage.note(&error);
            tokio::time::sleep(backoff.next()).await;
        }
        outage.over();
    }
}

/// Takes as many open files as the system lets this process have: by default it is given 1,024,
/// which a few jobs with granted folders and connections could use up for all the others.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}
