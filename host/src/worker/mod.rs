//! Path 1: runs the jobs of some queues. Holds what all tasks of a worker share, starts them,
//! and drains at the stop.

mod control;
mod lease;
mod lost;
mod message;
mod poll;
mod process;
mod prune;
mod pulse;
mod record;
mod settle;
mod slots;
mod suits;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::beater::register;
use crate::broker::{Broker, BrokerError, Queue};
use crate::config::Config;
use crate::config::live::LiveConfig;
use crate::exporter::Exporter;
use crate::failpoint;
use crate::outage::{Backoff, Outage};
use crate::registry::Registry;
use crate::sandbox::{Sandbox, Stop};
use crate::sender::Sender;
use crate::store::claim::{Claim, ClaimRequest};
use crate::store::finish::FinishRequest;
use crate::store::group::Group;
use crate::store::workers::WorkerRow;
use crate::store::{Store, StoreError};
use control::{Pauses, Running};
use lease::Leases;
use message::Polled;
use pulse::Pulse;
use settle::Settler;
use slots::{Slots, Terms};
use suits::Demands;

/// How long the last sends of the outbox may take at the stop.
const LAST_SENDS: Duration = Duration::from_secs(5);
/// How long settlements may take after the grace time.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(10);

/// Bytes of malformed bodies that are kept of one queue, where the configuration says nothing
/// else: room to look into what went wrong, and no more than a disk can spare.
pub const MALFORMED_LIMIT: u64 = 1 << 30;

/// Why a worker can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A queue can't be used.
    #[error(transparent)]
    Queue(#[from] BrokerError),
    /// The database can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What all tasks of a worker share.
pub(crate) struct Shared {
    pub(crate) id: String,
    /// What needs a restart to change; all else is read from `live`.
    pub(crate) config: Arc<Config>,
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) claims: Group<ClaimRequest, Claim>,
    pub(crate) finishes: Group<FinishRequest, bool>,
    pub(crate) sender: Sender,
    pub(crate) database_outage: Outage,
    /// Cancelled when nothing new may begin.
    pub(crate) stopping: CancellationToken,
    /// Held for reading by every attempt, for writing by one that must run alone.
    turns: Arc<RwLock<()>>,
    slots: Arc<Slots>,
    attempts: TaskTracker,
    /// Attempts that a cancel can stop.
    running: Running,
    /// Queues from which nothing is received.
    pauses: Pauses,
    /// Whether the loops move, for those who ask over HTTP.
    pulse: Pulse,
}

/// Runs the jobs of some queues until it is told to stop.
pub struct Worker {
    shared: Arc<Shared>,
    queues: Vec<Arc<Polled>>,
    row: WorkerRow,
    /// The jobs whose periodic entries are in the database.
    registered: Vec<(String, String)>,
}

impl Worker {
    /// Looks its queues up and writes its row; receives nothing yet.
    ///
    /// # Errors
    /// A queue or the database can't be used.
    pub async fn new(
        live: Arc<LiveConfig>,
        broker: Arc<dyn Broker>,
        store: Store,
        registry: Arc<Registry>,
        sandbox: Arc<Sandbox>,
        queues: &[String],
        stopping: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let config = live.load();
        let polled = look_up(&broker, queues).await?;
        let demands = demands(&registry, &config);
        for queue in &polled {
            for misfit in suits::misfits(&queue.queue, &demands) {
                warn!(queue = %queue.queue.name, "queue `{}`: {misfit}", queue.queue.name);
            }
        }
        let terms: Vec<Terms> = polled.iter().map(|queue| terms(&config, queue)).collect();
        let id = uuid::Uuid::new_v4().to_string();
        let names: Vec<&str> = polled.iter().map(|queue| queue.queue.name.as_str()).collect();
        let row = WorkerRow {
            id: id.clone(),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            queues: names.join(","),
            lease: config.lease,
        };
        store.renew_worker(&row).await?;
        store.register_jobs(&registry.snapshot().deployed_jobs(&config)).await?;
        let registered = registry.serving_jobs();
        register::modules(&store, &id, &registry).await?;
        let pauses = Pauses::new(store.paused_queues().await?);
        let (claiming, finishing) = (store.clone(), store.clone());
        let shared = Shared {
            id,
            leases: Leases::new(broker.clone(), config.lease),
            claims: Group::start(move |requests| {
                let store = claiming.clone();
                Box::pin(async move { store.claim(requests).await })
            }),
            finishes: Group::start(move |requests| {
                let store = finishing.clone();
                Box::pin(async move { store.finish(requests).await })
            }),
            sender: Sender::new(store.clone(), broker.clone()),
            database_outage: Outage::new("use the database"),
            turns: Arc::default(),
            slots: Slots::new(config.concurrency, &terms, config.strict),
            attempts: TaskTracker::new(),
            running: Running::default(),
            pauses,
            pulse: Pulse::default(),
            config,
            live,
            broker,
            store,
            registry,
            sandbox,
            stopping,
        };
        Ok(Self { shared: Arc::new(shared), queues: polled, row, registered })
    }

    /// Answers probes and scrapers on this listener from now on, as long as the process lives.
    pub fn listen(&self, listener: TcpListener, exporter: Exporter) {
        tokio::spawn(pulse::serve(self.shared.clone(), self.queues.clone(), exporter, listener));
    }

    /// Receives and runs jobs until it is told to stop, then drains: what runs gets the grace
    /// time, then it is stopped and given back, and does not count as an attempt.
    pub async fn run(self) {
        let Self { shared, queues, row, registered } = self;
        let background = [
            tokio::spawn(control::stop_cancelled(shared.clone())),
            tokio::spawn(control::watch_pauses(shared.clone())),
            tokio::spawn(prune::prune(shared.clone(), queues.clone())),
            tokio::spawn(shared.leases.clone().keep()),
            tokio::spawn(keep_row(shared.store.clone(), row.clone())),
            tokio::spawn(lost::sweep(shared.clone(), queues.clone())),
            tokio::spawn(follow_terms(shared.clone(), queues.clone())),
            tokio::spawn(follow_modules(shared.clone(), registered)),
        ];
        let stop_sending = CancellationToken::new();
        let sweep = tokio::spawn(shared.sender.clone().sweep_until(stop_sending.clone()));
        let polls: Vec<_> = queues
            .into_iter()
            .map(|polled| tokio::spawn(poll::poll(shared.clone(), polled)))
            .collect();
        for task in background.iter().chain(&polls) {
            shared.pulse.watch(task.abort_handle());
        }
        let received = async {
            for poll in polls {
                if let Err(error) = poll.await {
                    warn!("a receive loop ended early: {error}");
                }
            }
        };
        let drained = async {
            shared.stopping.cancelled().await;
            drain(&shared).await;
        };
        tokio::join!(received, drained);
        // What the last receives brought is on its way back.
        let _ = tokio::time::timeout(LAST_SETTLEMENTS, shared.attempts.wait()).await;
        failpoint::reach("drained", "");
        stop_sending.cancel();
        // A queue that does not answer is not waited for; its rows are sent by other workers.
        let _ = tokio::time::timeout(LAST_SENDS, sweep).await;
        for task in &background {
            task.abort();
        }
        if let Err(error) = shared.store.remove_worker(&row.id).await {
            warn!("the worker's row stays until its lease is over: {error}");
        }
    }
}

/// Looks the queues up, in the order in which they were named; one that was named twice counts
/// once.
async fn look_up(
    broker: &Arc<dyn Broker>,
    names: &[String],
) -> Result<Vec<Arc<Polled>>, WorkerError> {
    let mut found: Vec<(Arc<Queue>, &String)> = Vec::with_capacity(names.len());
    for name in names {
        let queue = broker.queue(name).await?;
        broker.check_permissions(&queue).await?;
        if !found.iter().any(|(other, _)| other.address == queue.address) {
            found.push((Arc::new(queue), name));
        }
    }
    let is_only = found.len() == 1;
    let polled = found.into_iter().enumerate().map(|(index, (queue, name))| {
        Arc::new(Polled {
            index,
            address: name.clone(),
            is_only,
            settler: Settler::start(broker, &queue),
            space_outage: Outage::new(&format!("put malformed messages of `{}` aside", queue.name)),
            receive_outage: Outage::new(&format!("receive from queue `{}`", queue.name)),
            queue,
        })
    });
    Ok(polled.collect())
}

/// What the jobs that are deployed ask of a queue.
fn demands(registry: &Registry, config: &Config) -> Demands {
    let snapshot = registry.snapshot();
    let policies = snapshot.jobs.values().map(|served| config.policy(&served.definition));
    let start = Demands { max_attempts: 1, max_backoff: Duration::ZERO, lease: config.lease };
    policies.fold(start, |demands, policy| Demands {
        max_attempts: demands.max_attempts.max(policy.max_attempts),
        max_backoff: demands.max_backoff.max(policy.max_backoff),
        ..demands
    })
}

/// What a queue may have of the slots, as the settings say it.
fn terms(config: &Config, polled: &Polled) -> Terms {
    let settings = config.queues.get(&polled.queue.name).cloned().unwrap_or_default();
    let limit = settings.concurrency.unwrap_or(config.concurrency).min(config.concurrency);
    Terms { weight: settings.weight.unwrap_or(1), limit }
}

/// Gives queues more or fewer slots whenever the settings change.
async fn follow_terms(shared: Arc<Shared>, queues: Vec<Arc<Polled>>) {
    let mut changes = shared.live.changes();
    loop {
        let config = shared.live.load();
        for polled in &queues {
            shared.slots.set_terms(polled.index, terms(&config, polled));
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Brings what modules say of periodic entries to the database after each swap.
async fn follow_modules(shared: Arc<Shared>, mut known: Vec<(String, String)>) {
    let mut changes = shared.registry.changes();
    let outage = Outage::new("write what modules say of periodic jobs");
    loop {
        // What was refused changes nothing, however often it is written.
        let serving = shared.registry.serving_jobs();
        if known != serving {
            let mut backoff = Backoff::default();
            while let Err(error) =
                register::modules(&shared.store, &shared.id, &shared.registry).await
            {
                outage.note(&error);
                tokio::time::sleep(backoff.next()).await;
            }
            outage.over();
            known = serving;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Renews the worker's row, by which its claims live.
async fn keep_row(store: Store, row: WorkerRow) {
    let outage = Outage::new("renew the worker's row");
    let mut backoff = Backoff::default();
    loop {
        match store.renew_worker(&row).await {
            Ok(()) => {
                outage.over();
                backoff = Backoff::default();
                tokio::time::sleep(row.lease / 3).await;
            }
            Err(error) => {
                outage.note(&error);
                tokio::time::sleep(backoff.next().min(row.lease / 6)).await;
            }
        }
    }
}

/// Waits for what runs, for the grace time; then stops it.
async fn drain(shared: &Arc<Shared>) {
    failpoint::reach("draining", "");
    shared.attempts.close();
    let running = shared.attempts.len();
    if running > 0 {
        info!(running, "finishing {running} job(s), for at most {:?}", shared.config.grace);
    }
    if tokio::time::timeout(shared.config.grace, shared.attempts.wait()).await.is_ok() {
        return;
    }
    warn!("the grace time is over: {} job(s) are stopped and given back", shared.leases.count());
    failpoint::reach("interrupting", "");
    shared.leases.stop_all(Stop::Interrupted);
    if tokio::time::timeout(LAST_SETTLEMENTS, shared.attempts.wait()).await.is_err() {
        warn!("some messages were not given back; they return when their lease ends");
    }
}
