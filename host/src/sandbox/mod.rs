//! Path 1, step 6: [`Sandbox::execute`] runs one attempt in a fresh instance, stage by stage.
//!
//! The stages are set-up, run, tear-down and then on-success or on-failure, all in one instance,
//! so that what `set-up` keeps is there in `tear-down`. Whether the job runs again is decided
//! before `on-failure` is called, which is told so.

pub mod bindings;
pub mod context;
mod engine;
mod imports;
pub mod limits;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Engine, Store as WasmStore};

use crate::clock::Timestamp;
use crate::json;
use crate::outcome::{Cause, Failure, Outcome, Stage};
use crate::retry::{self, RetryPolicy, Settlement};
use crate::store::Store;
use crate::store::enqueue::NewJob;
use crate::store::finish::MAX_TEXT_BYTES;
use crate::text::{cut, without_nul};
use bindings::sqjobs::job::types as wit;
use bindings::{JobModule, JobModulePre};
use context::{AttemptContext, AttemptLabel, Progress, Said};
use limits::{HANDLER_DEADLINE, Limits, OutOfMemory};

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
    /// What happens after a failure.
    pub policy: RetryPolicy,
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

    /// Asks a module which jobs it holds, with nothing granted and under a short deadline.
    ///
    /// # Errors
    /// The guest trapped, or took too long, and why.
    pub async fn describe(&self, module: &Prepared) -> Result<wit::ModuleDescription, String> {
        let said = Arc::new(Mutex::new(Said::default()));
        let label = Arc::new(AttemptLabel { job: "describe".into(), ..AttemptLabel::default() });
        let context =
            AttemptContext::new(label, Limits::default(), said.clone(), watch::channel(None).0);
        let mut store = self.store(context);
        let described = tokio::time::timeout(DESCRIBE_DEADLINE, async {
            let instance = module.instantiate_async(&mut store).await?;
            instance.sqjobs_job_job().call_describe(&mut store).await
        })
        .await;
        match described {
            Ok(Ok(description)) => Ok(description),
            Ok(Err(error)) => Err(died(&error, Stage::Begin, &said, None).message),
            Err(_) => Err(format!("took longer than {} s", DESCRIBE_DEADLINE.as_secs())),
        }
    }

    /// Runs one attempt. A job that fails is an [`Outcome`], not an error.
    pub async fn execute(
        &self,
        module: &Prepared,
        call: &Call,
        database: Option<&Store>,
        mut watch: Watch,
    ) -> Execution {
        let begun = Instant::now();
        let mut attempt = Attempt::new(self, module, call, database, watch.progress);
        let stopped = async {
            let stop = watch.stop.wait_for(Option::is_some).await.map(|stop| *stop);
            match stop {
                Ok(stop) => stop,
                // Nobody can stop it any more: it runs to its end.
                Err(_) => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            biased;
            stop = stopped => match stop {
                Some(Stop::Cancelled) => Outcome::Cancelled,
                Some(Stop::LeaseLost) => Outcome::LeaseLost,
                _ => Outcome::Interrupted,
            },
            outcome = attempt.run_stages() => outcome,
        };
        let settlement = retry::settle(&outcome, call.spent, &call.policy, fastrand::f64());
        match &outcome {
            Outcome::Success(result) => attempt.on_success(result.clone()).await,
            Outcome::Failed(failure) => attempt.on_failure(failure, settlement).await,
            Outcome::Interrupted | Outcome::Cancelled | Outcome::LeaseLost => {}
        }
        attempt.conclude(outcome, settlement, begun.elapsed())
    }

    fn store(&self, context: AttemptContext) -> WasmStore<AttemptContext> {
        let mut store = WasmStore::new(self.engine(), context);
        store.limiter(|context| &mut context.memory);
        // A busy guest yields its thread at each tick; the timeout around it ends it.
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        store
    }
}

/// A live instance.
struct Live {
    store: WasmStore<AttemptContext>,
    guest: JobModule,
}

/// What instances of one attempt are made from.
struct Setting<'a> {
    sandbox: &'a Sandbox,
    module: &'a Prepared,
    call: &'a Call,
    database: Option<&'a Store>,
    label: Arc<AttemptLabel>,
    said: Arc<Mutex<Said>>,
    progress: watch::Sender<Progress>,
}

/// One attempt while it runs.
struct Attempt<'a> {
    setting: Setting<'a>,
    /// The stage that runs, readable after its future was dropped.
    stage: AtomicU8,
    live: Option<Live>,
    warnings: Vec<String>,
}

impl Setting<'_> {
    /// Makes a fresh instance and hands over the payload.
    async fn begin(&self) -> Result<Live, Failure> {
        let mut context = AttemptContext::new(
            self.label.clone(),
            self.call.limits,
            self.said.clone(),
            self.progress.clone(),
        );
        context.store = self.database.cloned();
        let mut store = self.sandbox.store(context);
        let guest = match self.module.instantiate_async(&mut store).await {
            Ok(guest) => guest,
            Err(error) => return Err(died(&error, Stage::Begin, &self.said, Some(&store))),
        };
        let call = self.call;
        let context = wit::Context {
            id: call.job_id.clone(),
            name: call.job.clone(),
            queue: call.queue.clone(),
            attempt: call.attempt,
            max_attempts: call.policy.max_attempts,
            enqueued_at_ms: call.enqueued_at.map(|time| u64::try_from(time.0).unwrap_or(0)),
            fire_time_ms: call
                .schedule
                .as_ref()
                .map(|(_, time)| u64::try_from(time.0).unwrap_or(0)),
            schedule: call.schedule.as_ref().map(|(name, _)| name.clone()),
            extra: Vec::new(),
        };
        let begun =
            guest.sqjobs_job_job().call_begin(&mut store, &context, &call.args, &call.kwargs).await;
        match begun {
            Ok(Ok(())) => Ok(Live { store, guest }),
            Ok(Err(failure)) => Err(told(failure, Stage::SetUp)),
            Err(error) => Err(died(&error, Stage::Begin, &self.said, Some(&store))),
        }
    }
}

impl<'a> Attempt<'a> {
    fn new(
        sandbox: &'a Sandbox,
        module: &'a Prepared,
        call: &'a Call,
        database: Option<&'a Store>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let label = Arc::new(AttemptLabel {
            job_id: call.job_id.clone(),
            job: call.job.clone(),
            queue: call.queue.clone(),
            module: call.module.clone(),
            attempt: call.attempt,
            generation: call.generation,
        });
        let said = Arc::default();
        let setting = Setting { sandbox, module, call, database, label, said, progress };
        Self { setting, stage: AtomicU8::new(0), live: None, warnings: Vec::new() }
    }

    /// `set-up`, `run`, `tear-down`, under the attempt's wall-clock limit.
    async fn run_stages(&mut self) -> Outcome {
        let limit = self.setting.call.limits.timeout;
        if let Ok(outcome) = tokio::time::timeout(limit, self.stages()).await {
            return outcome;
        }
        self.live = None;
        let stage = match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Begin,
            1 => Stage::SetUp,
            2 => Stage::Run,
            _ => Stage::TearDown,
        };
        let message =
            format!("took longer than its timeout of {}", humantime::format_duration(limit));
        Outcome::Failed(Failure { cause: Cause::Timeout, stage, message, backtrace: None })
    }

    async fn stages(&mut self) -> Outcome {
        let mut live = match self.setting.begin().await {
            Ok(live) => live,
            Err(failure) => return Outcome::Failed(failure),
        };

        self.stage.store(1, Ordering::Relaxed);
        let set_up = live.guest.sqjobs_job_job().call_set_up(&mut live.store).await;
        if let Err(failure) = self.check(set_up, Stage::SetUp, &live.store) {
            return self.failed(failure, live);
        }

        self.stage.store(2, Ordering::Relaxed);
        let ran = live.guest.sqjobs_job_job().call_run(&mut live.store).await;
        let ran = self.check(ran, Stage::Run, &live.store);
        let ran = ran.and_then(|result| self.check_result(result));
        if let Err(failure) = &ran
            && failure.cause.kills_instance()
        {
            return self.failed(failure.clone(), live);
        }

        self.stage.store(3, Ordering::Relaxed);
        let torn_down = live.guest.sqjobs_job_job().call_tear_down(&mut live.store).await;
        let torn_down = self.check(torn_down, Stage::TearDown, &live.store);
        match (ran, torn_down) {
            (Ok(result), Ok(())) => {
                self.live = Some(live);
                Outcome::Success(result)
            }
            (Ok(_), Err(failure)) => self.failed(failure, live),
            (Err(failure), Ok(())) => self.failed(failure, live),
            (Err(failure), Err(second)) => {
                self.warnings.push(format!("tear-down failed too: {}", second.message));
                if second.cause.kills_instance() {
                    return Outcome::Failed(failure);
                }
                self.failed(failure, live)
            }
        }
    }

    /// Keeps the instance for `on-failure`, unless it is dead.
    fn failed(&mut self, failure: Failure, live: Live) -> Outcome {
        if !failure.cause.kills_instance() {
            self.live = Some(live);
        }
        Outcome::Failed(failure)
    }

    /// What a stage came to, as a value or the failure of this attempt.
    fn check<T>(
        &self,
        came: wasmtime::Result<Result<T, wit::Failure>>,
        stage: Stage,
        store: &WasmStore<AttemptContext>,
    ) -> Result<T, Failure> {
        match came {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(told(failure, stage)),
            Err(error) => Err(died(&error, stage, &self.setting.said, Some(store))),
        }
    }

    /// A result must be JSON of a size that can be kept.
    fn check_result(&self, result: Option<String>) -> Result<Option<String>, Failure> {
        let Some(text) = result else { return Ok(None) };
        let limit = self.setting.call.limits.result_bytes;
        let message = if text.len() > limit {
            format!(
                "the result has {} bytes and may have {limit}; keep large results elsewhere and return where",
                text.len()
            )
        } else {
            match json::check(&text) {
                Ok(checked) => return Ok(Some(checked.to_owned())),
                Err(error) => format!("the result is {error}"),
            }
        };
        Err(Failure { cause: Cause::Permanent, stage: Stage::Run, message, backtrace: None })
    }

    async fn on_success(&mut self, result: Option<String>) {
        let Some(mut live) = self.live.take() else { return };
        let call = live.guest.sqjobs_job_job().call_on_success(&mut live.store, result.as_deref());
        let came = tokio::time::timeout(HANDLER_DEADLINE, call).await;
        self.warn_of(came, Stage::OnSuccess, &live.store);
        self.live = Some(live);
    }

    async fn on_failure(&mut self, failure: &Failure, settlement: Settlement) {
        let report = wit::FailureReport {
            cause: cause(failure.cause),
            stage: stage(failure.stage),
            message: failure.message.clone(),
            attempt: self.setting.call.attempt,
            retry_in_ms: match settlement {
                Settlement::RetryIn(wait) => {
                    Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
                }
                _ => None,
            },
            extra: Vec::new(),
        };
        // The dead instance's slot was given back with it: two instances of one attempt never
        // live at once.
        let live = self.live.take();
        let mut fresh = None;
        let came = tokio::time::timeout(HANDLER_DEADLINE, async {
            let live = match live {
                Some(live) => fresh.insert(live),
                None => {
                    fresh.insert(self.setting.begin().await.map_err(|failure| failure.message)?)
                }
            };
            Ok::<_, String>(
                live.guest.sqjobs_job_job().call_on_failure(&mut live.store, &report).await,
            )
        })
        .await;
        match (came, &fresh) {
            (Ok(Ok(came)), Some(live)) => self.warn_of(Ok(came), Stage::OnFailure, &live.store),
            (Ok(Err(message)), _) => {
                self.warnings.push(format!("on-failure had no fresh instance: {message}"));
            }
            (Err(elapsed), Some(live)) => {
                self.warn_of(Err(elapsed), Stage::OnFailure, &live.store);
            }
            _ => self.warnings.push("on-failure had no fresh instance in time".into()),
        }
    }

    fn warn_of(
        &mut self,
        came: Result<wasmtime::Result<Result<(), wit::Failure>>, tokio::time::error::Elapsed>,
        stage: Stage,
        store: &WasmStore<AttemptContext>,
    ) {
        let problem = match came {
            Ok(came) => self.check(came, stage, store).err().map(|failure| failure.message),
            Err(_) => Some(format!("took longer than {} s", HANDLER_DEADLINE.as_secs())),
        };
        if let Some(problem) = problem {
            self.warnings.push(format!("{stage} failed: {problem}"));
        }
    }

    fn conclude(
        mut self,
        outcome: Outcome,
        settlement: Settlement,
        duration: Duration,
    ) -> Execution {
        let added = match (&outcome, self.live.take()) {
            (Outcome::Success(_), Some(live)) => live.store.into_data().added,
            _ => Vec::new(),
        };
        let mut said = self.setting.said.lock().unwrap_or_else(PoisonError::into_inner);
        let logs = without_nul(std::mem::take(&mut said.text));
        drop(said);
        Execution { outcome, settlement, logs, warnings: self.warnings, added, duration }
    }
}

/// The failure that a guest told.
fn told(failure: wit::Failure, stage: Stage) -> Failure {
    let cause = match failure.kind {
        wit::FailureKind::RetryAfter(secs) => Cause::RetryAfter(Duration::from_secs(secs)),
        wit::FailureKind::Transient => Cause::Transient,
        wit::FailureKind::Permanent => Cause::Permanent,
    };
    let clean = |text| without_nul(cut(text, MAX_TEXT_BYTES));
    Failure {
        cause,
        stage,
        message: clean(failure.message),
        backtrace: failure.backtrace.map(clean),
    }
}

/// The failure of a guest whose call ended in a trap.
fn died(
    error: &wasmtime::Error,
    stage: Stage,
    said: &Mutex<Said>,
    store: Option<&WasmStore<AttemptContext>>,
) -> Failure {
    let backtrace = error
        .downcast_ref::<wasmtime::WasmBacktrace>()
        .map(|backtrace| without_nul(cut(backtrace.to_string(), MAX_TEXT_BYTES)));
    let panic = said.lock().unwrap_or_else(PoisonError::into_inner).panic.take();
    let (cause, message) = if let Some(refused) = error.downcast_ref::<OutOfMemory>() {
        (Cause::OutOfMemory, refused.to_string())
    } else if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        (Cause::Trap, format!("the guest called exit({})", exit.0))
    } else if let Some(panic) = panic {
        (Cause::Trap, panic)
    } else if let Some(trap) = error.downcast_ref::<wasmtime::Trap>() {
        (Cause::Trap, trap.to_string())
    } else {
        (Cause::Trap, error.root_cause().to_string())
    };
    let message = match store {
        Some(store) if cause == Cause::OutOfMemory => {
            format!("{message} ({} in use)", store.data().memory.used())
        }
        _ => message,
    };
    Failure { cause, stage, message: without_nul(cut(message, MAX_TEXT_BYTES)), backtrace }
}

fn cause(cause: Cause) -> wit::FailureCause {
    match cause {
        Cause::RetryAfter(wait) => wit::FailureCause::RetryAfter(wait.as_secs()),
        Cause::Transient => wit::FailureCause::Transient,
        Cause::Permanent => wit::FailureCause::Permanent,
        Cause::Trap => wit::FailureCause::Trap,
        Cause::Timeout => wit::FailureCause::Timeout,
        Cause::OutOfMemory => wit::FailureCause::OutOfMemory,
    }
}

fn stage(stage: Stage) -> wit::Stage {
    match stage {
        Stage::Begin => wit::Stage::Begin,
        Stage::SetUp => wit::Stage::SetUp,
        Stage::Run => wit::Stage::Run,
        Stage::TearDown => wit::Stage::TearDown,
        Stage::OnSuccess => wit::Stage::OnSuccess,
        Stage::OnFailure => wit::Stage::OnFailure,
    }
}
