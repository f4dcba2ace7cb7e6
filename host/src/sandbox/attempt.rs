//! One attempt while it runs: its instance, its stages, and what they came to.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wasmtime::Store as WasmStore;

use super::bindings::JobModule;
use super::bindings::sqjobs::job::types as wit;
use super::context::{AttemptContext, AttemptLabel, Progress, Said};
use super::cpu::{CpuTime, Metered};
use super::failure::{cause, died, out_of_cpu, stage, timed_out, told};
use super::limits::HANDLER_DEADLINE;
use super::{Call, Execution, Prepared, Sandbox};
use crate::failpoint;
use crate::json;
use crate::outcome::{Cause, Failure, Outcome, Stage};
use crate::retry::Settlement;
use crate::sender::Sender;
use crate::text::without_nul;

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
    outlet: Option<&'a Sender>,
    label: Arc<AttemptLabel>,
    said: Arc<Mutex<Said>>,
    progress: watch::Sender<Progress>,
}

/// One attempt while it runs.
pub(super) struct Attempt<'a> {
    setting: Setting<'a>,
    /// The stage that runs, readable after its future was dropped.
    stage: AtomicU8,
    live: Option<Live>,
    /// How `run` failed, while `tear-down` runs: it stands, whatever becomes of that.
    run_failure: Option<Failure>,
    warnings: Vec<String>,
}

impl Setting<'_> {
    /// Makes a fresh instance and hands over the payload.
    async fn begin(&self) -> Result<Live, Failure> {
        let context = AttemptContext::new(
            self.label.clone(),
            self.call.limits,
            self.call.grants.clone(),
            self.said.clone(),
            self.progress.clone(),
        );
        let mut context = context.map_err(|message| Failure {
            cause: Cause::Transient,
            stage: Stage::Begin,
            message,
            backtrace: None,
        })?;
        context.outlet = self.outlet.cloned();
        context.unique = self.call.unique.clone();
        let mut store = self.sandbox.store(context);
        let guest = match self.module.instantiate_async(&mut store).await {
            Ok(guest) => guest,
            Err(error) => return Err(died(&error, Stage::Begin, store.data())),
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
            Ok(Ok(())) => {
                failpoint::reach("instantiated", &call.job);
                Ok(Live { store, guest })
            }
            Ok(Err(failure)) => Err(told(failure, Stage::SetUp, &call.grants)),
            Err(error) => Err(died(&error, Stage::Begin, store.data())),
        }
    }
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        sandbox: &'a Sandbox,
        module: &'a Prepared,
        call: &'a Call,
        outlet: Option<&'a Sender>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let label = Arc::new(AttemptLabel {
            job_id: call.job_id.clone(),
            job: call.job.clone(),
            queue: call.queue.clone(),
            address: call.address.clone(),
            module: call.module.clone(),
            attempt: call.attempt,
            generation: call.generation,
        });
        let said = Arc::default();
        let setting = Setting { sandbox, module, call, outlet, label, said, progress };
        let stage = AtomicU8::new(0);
        Self { setting, stage, live: None, run_failure: None, warnings: Vec::new() }
    }

    /// `set-up`, `run`, `tear-down`, under the attempt's limits of time.
    pub(super) async fn run_stages(&mut self) -> Outcome {
        let (limits, cpu) = (self.setting.call.limits, CpuTime::default());
        let stages = Metered::new(self.stages(), limits.cpu, &cpu);
        let ended = tokio::time::timeout(limits.timeout, stages).await;
        if let Ok(Ok(outcome)) = ended {
            return outcome;
        }
        self.live = None;
        let stage = match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Begin,
            1 => Stage::SetUp,
            2 => Stage::Run,
            _ => Stage::TearDown,
        };
        let failure = match ended {
            Ok(_) => out_of_cpu(stage, &limits, &cpu),
            Err(_) => timed_out(stage, &limits, &cpu),
        };
        match self.run_failure.take() {
            Some(first) => {
                self.warnings.push(format!("tear-down failed too: {}", failure.message));
                Outcome::Failed(first)
            }
            None => Outcome::Failed(failure),
        }
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
        failpoint::reach("running", &self.setting.call.job);
        let ran = live.guest.sqjobs_job_job().call_run(&mut live.store).await;
        let ran = self.check(ran, Stage::Run, &live.store);
        let ran = ran.and_then(|result| self.check_result(result));
        if let Err(failure) = &ran
            && failure.cause.kills_instance()
        {
            return self.failed(failure.clone(), live);
        }

        self.run_failure = ran.as_ref().err().cloned();
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
            Ok(Err(failure)) => Err(told(failure, stage, &self.setting.call.grants)),
            Err(error) => Err(died(&error, stage, store.data())),
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

    /// Notes what went wrong beside the outcome.
    pub(super) fn warn(&mut self, problem: &str) {
        self.warnings.push(problem.to_owned());
    }

    pub(super) async fn on_success(&mut self, result: Option<String>) {
        let Some(mut live) = self.live.take() else { return };
        let call = live.guest.sqjobs_job_job().call_on_success(&mut live.store, result.as_deref());
        let came = tokio::time::timeout(HANDLER_DEADLINE, call).await;
        self.warn_of(came, Stage::OnSuccess, &live.store);
        self.live = Some(live);
    }

    pub(super) async fn on_failure(&mut self, failure: &Failure, settlement: Settlement) {
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

    pub(super) fn conclude(
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
