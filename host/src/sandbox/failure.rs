//! Why a stage failed: what the guest told, or what its trap came to, as one [`Failure`] that a
//! person can use.

use std::sync::PoisonError;
use std::time::Duration;

use wasmtime::WasmBacktrace;
use wasmtime::component::ResourceTableError;

use super::bindings::sqjobs::job::types as wit;
use super::context::AttemptContext;
use super::cpu::CpuTime;
use super::grants::Grants;
use super::limits::{Limits, OutOfMemory};
use crate::clock::MAX_AHEAD;
use crate::outcome::{Cause, Failure, Stage};
use crate::store::finish::MAX_TEXT_BYTES;
use crate::text::{cut, without_nul};

/// The failure that a guest told.
pub(super) fn told(failure: wit::Failure, stage: Stage, grants: &Grants) -> Failure {
    let mut message = failure.message;
    let cause = match failure.kind {
        wit::FailureKind::RetryAfter(secs) if secs > MAX_AHEAD.as_secs() => {
            let days = MAX_AHEAD.as_secs() / 86_400;
            message = format!(
                "it asked to run again after {secs} s, over the limit of {days} days: {message}"
            );
            Cause::Permanent
        }
        wit::FailureKind::RetryAfter(secs) => Cause::RetryAfter(Duration::from_secs(secs)),
        wit::FailureKind::Transient => Cause::Transient,
        wit::FailureKind::Permanent => Cause::Permanent,
    };
    Failure {
        cause,
        stage,
        message: clean(message, grants),
        backtrace: failure.backtrace.map(|text| clean(text, grants)),
    }
}

/// Text of a guest as it is kept: no secret, no U+0000, not too long.
fn clean(text: String, grants: &Grants) -> String {
    without_nul(cut(grants.redacted(text), MAX_TEXT_BYTES))
}

/// The failure of a guest whose call ended in a trap.
pub(super) fn died(error: &wasmtime::Error, stage: Stage, context: &AttemptContext) -> Failure {
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    let panic = context.said.lock().unwrap_or_else(PoisonError::into_inner).panic.take();
    let mut cause = Cause::Trap;
    let message = if let Some(refused) = error.downcast_ref::<OutOfMemory>() {
        cause = Cause::OutOfMemory;
        format!("{refused} ({} in use)", context.memory.used())
    } else if let Some(limit) = limit_passed(error, &context.limits) {
        limit
    } else if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        format!("the guest called exit({})", exit.0)
    } else if let Some(panic) = panic {
        panic
    } else if let Some(trap) = error.downcast_ref::<wasmtime::Trap>() {
        match backtrace.and_then(place) {
            Some(place) => format!("{trap} (at {place})"),
            None => trap.to_string(),
        }
    } else {
        error.root_cause().to_string()
    };
    Failure {
        cause,
        stage,
        message: clean(message, &context.grants),
        backtrace: backtrace.map(|backtrace| clean(backtrace.to_string(), &context.grants)),
    }
}

/// The limit beside memory that ended a call, in words; wasmtime tells most of them by text only.
fn limit_passed(error: &wasmtime::Error, limits: &Limits) -> Option<String> {
    if let Some(ResourceTableError::Full) = error.downcast_ref() {
        return Some(too_many_handles(limits));
    }
    let text = error.root_cause().to_string();
    if text.contains("fuel allocated for hostcalls") {
        let limit = limits.host_memory_bytes;
        return Some(format!(
            "handed the host more than {limit} bytes in one call (`host-memory`)"
        ));
    }
    if text.contains("exceeds limit") && text.starts_with("requested len") {
        let limit = limits.host_memory_bytes;
        return Some(format!(
            "asked for more than {limit} random bytes in one call (`host-memory`)"
        ));
    }
    text.contains("handle limit exceeded").then(|| too_many_handles(limits))
}

fn too_many_handles(limits: &Limits) -> String {
    format!(
        "had more than {} files, folders, streams and sockets open at once (`handles`)",
        limits.handles
    )
}

/// File and line of the innermost frame that the module's debug information knows, leaving out
/// those of the standard library: nobody looks for the fault there.
fn place(backtrace: &WasmBacktrace) -> Option<String> {
    let symbols = backtrace.frames().iter().flat_map(|frame| frame.symbols());
    let mut known = symbols.filter_map(|symbol| Some((symbol.file()?, symbol.line()?)));
    let own = known.find(|(file, _)| !file.starts_with("/rustc/") && !file.contains("/library/"));
    own.map(|(file, line)| format!("{file}:{line}"))
}

/// The failure of an attempt that took too long, by the clock on the wall.
pub(super) fn timed_out(stage: Stage, limits: &Limits, cpu: &CpuTime) -> Failure {
    let limit = humantime::format_duration(limits.timeout);
    let used = cpu.used().as_secs_f64();
    let message = format!(
        "took longer than its timeout of {limit}; used {used:.3} s of processor time meanwhile"
    );
    Failure { cause: Cause::Timeout, stage, message, backtrace: None }
}

/// The failure of an attempt that computed for too long.
pub(super) fn out_of_cpu(stage: Stage, limits: &Limits, cpu: &CpuTime) -> Failure {
    let limit = humantime::format_duration(limits.cpu.unwrap_or_default());
    let used = cpu.used().as_secs_f64();
    let message = format!("used {used:.3} s of processor time and may use {limit} (`cpu`)");
    Failure { cause: Cause::Timeout, stage, message, backtrace: None }
}

/// What `on-failure` is told of the cause.
pub(super) fn cause(cause: Cause) -> wit::FailureCause {
    match cause {
        Cause::RetryAfter(wait) => wit::FailureCause::RetryAfter(wait.as_secs()),
        Cause::Transient => wit::FailureCause::Transient,
        Cause::Permanent => wit::FailureCause::Permanent,
        Cause::Trap => wit::FailureCause::Trap,
        Cause::Timeout => wit::FailureCause::Timeout,
        Cause::OutOfMemory => wit::FailureCause::OutOfMemory,
    }
}

/// What `on-failure` is told of the stage.
pub(super) fn stage(stage: Stage) -> wit::Stage {
    match stage {
        Stage::Begin => wit::Stage::Begin,
        Stage::SetUp => wit::Stage::SetUp,
        Stage::Run => wit::Stage::Run,
        Stage::TearDown => wit::Stage::TearDown,
        Stage::OnSuccess => wit::Stage::OnSuccess,
        Stage::OnFailure => wit::Stage::OnFailure,
    }
}
