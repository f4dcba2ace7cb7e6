//! Path 1, step 6: [`Sandbox::execute`] runs one attempt in a fresh instance, stage by stage.
//!
//! The stages are set-up, run, tear-down and then on-success or on-failure, all in one instance,
//! so that what `set-up` keeps is there in `tear-down`. Whether the job runs again is decided
//! before `on-failure` is called, which is told so.

pub mod address;
mod attempt;
pub mod bindings;
pub mod context;
mod cpu;
mod engine;
mod failure;
pub mod grants;
mod imports;
pub mod limits;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Engine, Store as WasmStore};

use crate::clock::Timestamp;
use crate::outcome::{Outcome, Stage};
use crate::retry::{self, RetryPolicy, Settlement};
use crate::sender::Sender;
use crate::store::enqueue::NewJob;
use crate::store::unique::UniqueRules;
use attempt::Attempt;
use bindings::sqjobs::job::types as wit;
use bindings::{JobModule, JobModulePre};
use context::{AttemptContext, AttemptLabel, Progress, Said};
use failure::died;
use grants::Grants;
use limits::Limits;

pub use engine::TICK;

/// Time that a module has to tell what it holds.
pub const DESCRIBE_DEADLINE: Duration = Duration::from_secs(5);

/// A module that can be instantiated at once.
pub type Prepared = JobModulePre<AttemptContext>;

/// Runs guests. One for each process: its engine reserves the address space for all of them.
pub struct Sandbox {
    engine: engine::RunningEngine,
    linker: Linker<AttemptContext>,
}

/// An engine for a process that compiles modules and runs none.
///
/// # Errors
/// The address space that even this one reserves can't be had.
pub fn compiling_engine() -> wasmtime::Result<Engine> {
    engine::compiling()
}

/// The settings of an engine for up to `concurrency` attempts at once, for programs that measure
/// what each of them costs.
#[must_use]
pub fn engine_settings(concurrency: u32) -> wasmtime::Config {
    engine::config(concurrency)
}

/// One attempt to be run.
#[derive(Debug, Clone)]
pub struct Call {
    /// The job's id.
    pub job_id: String,
    /// The job's name.
    pub job: String,
    /// The module's name, for log lines.
    pub module: String,
    /// The queue that the message came from; empty without one.
    pub queue: String,
    /// Where jobs that it adds are sent: the queue's name, or its URL.
    pub address: String,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Attempts spent before this one.
    pub spent: u32,
    /// When the job was first queued.
    pub enqueued_at: Option<Timestamp>,
    /// The periodic entry's name and the instant it meant.
    pub schedule: Option<(String, Timestamp)>,
    /// How many jobs stand between this one and one that no job added.
    pub generation: u32,
    /// Positional arguments: the text of a JSON array.
    pub args: String,
    /// Named arguments: the text of a JSON object.
    pub kwargs: String,
    /// What the attempt may use.
    pub limits: Limits,
    /// What the attempt may reach.
    pub grants: Arc<Grants>,
    /// What happens after a failure.
    pub policy: RetryPolicy,
    /// Which calls of the deployed jobs count as the same, for the jobs that it adds.
    pub unique: Arc<UniqueRules>,
}

/// Why a running attempt is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The host is shutting down and the grace time is over.
    Interrupted,
    /// Somebody cancelled the job.
    Cancelled,
    /// Its lease can't be held.
    LeaseLost,
}

/// What an attempt came to.
#[derive(Debug)]
pub struct Execution {
    /// How it ended.
    pub outcome: Outcome,
    /// What becomes of its message.
    pub settlement: Settlement,
    /// The guest's log lines and output.
    pub logs: String,
    /// What went wrong beside the outcome.
    pub warnings: Vec<String>,
    /// Jobs that it added; none unless it succeeded.
    pub added: Vec<NewJob>,
    /// How long it took.
    pub duration: Duration,
}

/// Why the engine can't be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot reserve address space for {instances} sandboxes: {reason}; lower --concurrency, or raise `ulimit -v`"
)]
pub struct SandboxError {
    instances: usize,
    reason: String,
}

/// Shared with whoever watches a running attempt.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Set to stop the attempt.
    pub stop: watch::Receiver<Option<Stop>>,
    /// Where the guest's progress goes.
    pub progress: watch::Sender<Progress>,
}

impl Watch {
    /// A watch that never stops an attempt and that nobody looks at.
    #[must_use]
    pub fn none() -> Self {
        Self { stop: watch::channel(None).1, progress: watch::channel(None).0 }
    }
}

impl Sandbox {
    /// Makes the engine for up to `concurrency` attempts at once.
    ///
    /// # Errors
    /// The address space for so many instances can't be reserved.
    pub fn new(concurrency: usize) -> Result<Self, SandboxError> {
        let failed = |error: wasmtime::Error| SandboxError {
            instances: concurrency,
            reason: error.to_string(),
        };
        let engine = engine::RunningEngine::start(concurrency).map_err(failed)?;
        let mut linker = Linker::new(&engine.engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(failed)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).map_err(failed)?;
        JobModule::add_to_linker::<_, wasmtime::component::HasSelf<_>>(&mut linker, |data| data)
            .map_err(failed)?;
        Ok(Self { engine, linker })
    }

    /// The engine, to compile modules for.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine.engine
    }

    /// Links a component, so that instances of it can be made quickly.
    ///
    /// # Errors
    /// It imports what is not offered, or does not export the world's interface.
    pub fn prepare(&self, component: &Component) -> wasmtime::Result<Prepared> {
        let pre: InstancePre<AttemptContext> = self.linker.instantiate_pre(component)?;
        JobModulePre::new(pre)
    }

    /// Asks a module which jobs it holds, with nothing granted, within these limits and under a
    /// short deadline.
    ///
    /// # Errors
    /// The guest trapped, or took too long, and why.
    pub async fn describe(
        &self,
        module: &Prepared,
        limits: Limits,
    ) -> Result<wit::ModuleDescription, String> {
        let said = Arc::new(Mutex::new(Said::default()));
        let label = Arc::new(AttemptLabel { job: "describe".into(), ..AttemptLabel::default() });
        let progress = watch::channel(None).0;
        let context = AttemptContext::new(label, limits, Arc::default(), said.clone(), progress)?;
        let mut store = self.store(context);
        let described = tokio::time::timeout(DESCRIBE_DEADLINE, async {
            let instance = module.instantiate_async(&mut store).await?;
            instance.sqjobs_job_job().call_describe(&mut store).await
        })
        .await;
        match described {
            Ok(Ok(description)) => Ok(description),
            Ok(Err(error)) => Err(died(&error, Stage::Begin, store.data()).message),
            Err(_) => Err(format!("took longer than {} s", DESCRIBE_DEADLINE.as_secs())),
        }
    }

    /// Runs one attempt. A job that fails is an [`Outcome`], not an error.
    pub async fn execute(
        &self,
        module: &Prepared,
        call: &Call,
        outlet: Option<&Sender>,
        mut watch: Watch,
    ) -> Execution {
        let begun = Instant::now();
        let mut attempt = Attempt::new(self, module, call, outlet, watch.progress);
        let stopped = async {
            let stop = watch.stop.wait_for(Option::is_some).await.map(|stop| *stop);
            match stop {
                Ok(stop) => stop,
                // Nobody can stop it any more: it runs to its end.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::pin!(stopped);
        let outcome = tokio::select! {
            biased;
            stop = &mut stopped => match stop {
                Some(Stop::Cancelled) => Outcome::Cancelled,
                Some(Stop::LeaseLost) => Outcome::LeaseLost,
                _ => Outcome::Interrupted,
            },
            outcome = attempt.run_stages() => outcome,
        };
        let settlement = retry::settle(&outcome, call.spent, &call.policy, fastrand::f64());
        let told = async {
            match &outcome {
                Outcome::Success(result) => attempt.on_success(result.clone()).await,
                Outcome::Failed(failure) => attempt.on_failure(failure, settlement).await,
                Outcome::Interrupted | Outcome::Cancelled | Outcome::LeaseLost => {}
            }
        };
        let stop = tokio::select! {
            biased;
            () = told => None,
            stop = stopped => stop,
        };
        match stop {
            // Another attempt owns the job: nothing of this one counts.
            Some(Stop::LeaseLost) => {
                attempt.conclude(Outcome::LeaseLost, Settlement::Abandon, begun.elapsed())
            }
            // What has been done is done: the outcome stands, the handler was cut short.
            Some(Stop::Interrupted | Stop::Cancelled) => {
                attempt.warn("on-success or on-failure was cut short: the worker is stopping");
                attempt.conclude(outcome, settlement, begun.elapsed())
            }
            None => attempt.conclude(outcome, settlement, begun.elapsed()),
        }
    }

    fn store(&self, context: AttemptContext) -> WasmStore<AttemptContext> {
        let limits = context.limits;
        let mut store = WasmStore::new(self.engine(), context);
        store.set_hostcall_fuel(limits.host_memory_bytes);
        store.set_max_component_handles(limits.handles);
        store.limiter(|context| &mut context.memory);
        // A busy guest yields its thread at each tick; the timeout around it ends it.
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        store
    }
}
