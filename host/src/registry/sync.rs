//! A host's side of what is decided for all hosts: reads the decisions every second, writes down
//! what this host serves, and counts the runs of canaries.
//!
//! The database may be away: what serves goes on, and what is to be written waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use super::Registry;
use super::canary::{Counts, verdict};
use super::load::{self, Module};
use super::measure::digest;
use crate::clock::Timestamp;
use crate::config::live::LiveConfig;
use crate::outage::{Backoff, Outage};
use crate::store::versions::{Canary, Decision, ModuleState};
use crate::store::{Store, StoreError};

/// Time between two looks at the decisions.
const EVERY: Duration = Duration::from_secs(1);

/// What is decided, by module name.
pub(super) type States = BTreeMap<String, ModuleState>;

/// What a host has to write down.
pub(super) enum Note {
    /// It took this version into service.
    Serves(Arc<Module>),
    /// A file appeared that ends what was held since then.
    Follows { name: String, since: Timestamp },
    /// The jobs that it serves, or how they are recorded, changed.
    Jobs,
}

/// The decisions as they were when this many notes had been written.
#[derive(Clone)]
struct Read {
    states: Arc<States>,
    notes: u64,
}

/// The other end of the task that talks to the database.
pub(super) struct Sync {
    notes: mpsc::UnboundedSender<Note>,
    sent: u64,
    read: watch::Receiver<Read>,
    task: JoinHandle<()>,
}

impl Drop for Sync {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sync {
    /// Starts with the decisions as they are known.
    pub(super) fn start(
        store: Store,
        registry: Arc<Registry>,
        config: Arc<LiveConfig>,
        states: States,
    ) -> Self {
        let (notes, to_write) = mpsc::unbounded_channel();
        let (tell, read) = watch::channel(Read { states: Arc::new(states), notes: 0 });
        let host = gethostname::gethostname().to_string_lossy().into_owned();
        let (owners, counted) = (BTreeMap::new(), BTreeMap::new());
        let writer = Writer { store, registry, config, host, owners, counted };
        let task = tokio::spawn(writer.run(to_write, tell));
        Self { notes, sent: 0, read, task }
    }

    /// Has something written down.
    pub(super) fn note(&mut self, note: Note) {
        self.sent += 1;
        // Fails only when the task was stopped, with the host.
        let _ = self.notes.send(note);
    }

    /// Waits for decisions that know of all that was noted.
    pub(super) async fn next(&mut self) -> Arc<States> {
        loop {
            if self.read.changed().await.is_err() {
                return std::future::pending().await;
            }
            let read = self.read.borrow_and_update();
            if read.notes >= self.sent {
                return read.states.clone();
            }
        }
    }
}

struct Writer {
    store: Store,
    registry: Arc<Registry>,
    config: Arc<LiveConfig>,
    host: String,
    /// Who holds which job, as it was written last.
    owners: BTreeMap<String, String>,
    /// When the canary of a module began whose runs are counted.
    counted: BTreeMap<String, Timestamp>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::UnboundedReceiver<Note>, tell: watch::Sender<Read>) {
        let outage = Outage::new("read and write which modules serve");
        let (mut waiting, mut written) = (Vec::new(), 0);
        loop {
            tokio::select! {
                note = notes.recv() => match note {
                    Some(note) => waiting.push(note),
                    None => return,
                },
                () = tokio::time::sleep(EVERY) => {}
            }
            while let Ok(note) = notes.try_recv() {
                waiting.push(note);
            }
            let (mut backoff, known) = (Backoff::default(), tell.borrow().states.clone());
            let states = loop {
                match self.round(&mut waiting, &mut written, &known).await {
                    Ok(states) => break states,
                    Err(error) => {
                        outage.note(&error);
                        tokio::time::sleep(backoff.next()).await;
                    }
                }
            };
            outage.over();
            tell.send_replace(Read { states: Arc::new(states), notes: written });
        }
    }

    /// Writes what waits, then reads the decisions.
    async fn round(
        &mut self,
        waiting: &mut Vec<Note>,
        written: &mut u64,
        known: &States,
    ) -> Result<States, StoreError> {
        if !waiting.is_empty() {
            self.write_jobs().await?;
        }
        while let Some(note) = waiting.first() {
            self.write(note).await?;
            waiting.remove(0);
            *written += 1;
        }
        for (name, state) in known {
            if let Some(canary) = &state.canary {
                self.watch_canary(name, canary).await?;
            }
        }
        self.store.module_states().await
    }

    async fn write(&self, note: &Note) -> Result<(), StoreError> {
        match note {
            Note::Serves(module) => {
                let keep = self.config.load().deploy.keep;
                let (version, size) = (&module.version, module.size);
                // A host that starts finds most of its modules kept already, each of which may
                // have many megabytes.
                let bytes =
                    match self.store.keeps_module_bytes(&version.name, &version.digest).await? {
                        true => None,
                        false => read(module).await,
                    };
                self.store.note_serving(version, size, bytes.as_deref(), &self.host, keep).await
            }
            Note::Follows { name, since } => self.store.follow_file(name, *since).await,
            Note::Jobs => Ok(()),
        }
    }

    /// Tells those who add jobs, and other hosts, what is served here.
    async fn write_jobs(&mut self) -> Result<(), StoreError> {
        let snapshot = self.registry.snapshot();
        self.store.register_jobs(&snapshot.deployed_jobs(&self.config.load())).await?;
        let holder = |served: &super::Served| served.module.version.name.clone();
        let owners: BTreeMap<String, String> =
            snapshot.jobs.iter().map(|(job, served)| (job.clone(), holder(served))).collect();
        if owners != self.owners {
            self.store.set_job_owners(&owners).await?;
            self.owners = owners;
        }
        Ok(())
    }

    /// Adds what was counted here, and ends a canary that has failed. Any host may do so; the
    /// first one's word counts.
    async fn watch_canary(&mut self, name: &str, canary: &Canary) -> Result<(), StoreError> {
        let counted = self.registry.take_tallies(name);
        if self.counted.insert(name.to_owned(), canary.since) != Some(canary.since) {
            // What was counted before it began says nothing of the time in which it runs.
            return Ok(());
        }
        let counts: Vec<_> = counted
            .iter()
            .filter(|(_, _, runs, _)| *runs > 0)
            .map(|(_, digest, runs, failures)| (digest.clone(), *runs, *failures))
            .collect();
        if !counts.is_empty()
            && let Err(error) = self.store.count_runs(name, &counts).await
        {
            for (tally, _, runs, failures) in counted {
                tally.put_back((runs, failures));
            }
            return Err(error);
        }
        let (mut old, mut new) = (Counts::default(), Counts::default());
        for version in self.store.module_versions(name).await? {
            let side = if version.digest == canary.digest { &mut new } else { &mut old };
            side.runs += u64::try_from(version.runs).unwrap_or(0);
            side.failures += u64::try_from(version.failures).unwrap_or(0);
        }
        let Some(reason) = verdict(old, new) else { return Ok(()) };
        let end = Decision::EndCanary(canary.digest.clone(), Some(reason.clone()));
        if self.store.decide(name, &end, &self.host).await? {
            warn!(
                module = %name, module.digest = %canary.digest,
                "the canary {:.12} of module `{name}` was rolled back: {reason}", canary.digest
            );
        }
        Ok(())
    }
}

/// The bytes of a module's file, if they are still those that were loaded.
async fn read(module: &Arc<Module>) -> Option<Vec<u8>> {
    let module = module.clone();
    let read = move || {
        let bytes = load::read(&module.path, module.size).ok()?;
        (digest(&bytes) == module.version.digest).then_some(bytes)
    };
    tokio::task::spawn_blocking(read).await.ok().flatten()
}
