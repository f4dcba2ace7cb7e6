//! Jobs that fail in an orderly way.

use std::time::Duration;

use sqjobs_sdk::prelude::*;

/// `fail_transient`: always fails, and says that it may work later. Optional message.
#[derive(Default)]
pub(crate) struct FailTransient;

impl Job for FailTransient {
    const NAME: &str = "fail_transient";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        Err::<(), _>(Failure::transient(message(call, "the line is busy")?))
    }
}

/// `fail_permanent`: always fails, and says that it can never work. Optional message.
#[derive(Default)]
pub(crate) struct FailPermanent;

impl Job for FailPermanent {
    const NAME: &str = "fail_permanent";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        Err::<(), _>(Failure::permanent(message(call, "there is no such number")?))
    }
}

/// `fail_retry_after SECONDS`: always asks to be run again after so many seconds.
#[derive(Default)]
pub(crate) struct FailRetryAfter;

impl Job for FailRetryAfter {
    const NAME: &str = "fail_retry_after";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let wait = Duration::from_secs(call.arg(0)?);
        Err::<(), _>(Failure::retry_after(wait, "come back later"))
    }
}

/// `fail_until N`: fails before attempt N, where it returns the number of the attempt.
#[derive(Default)]
pub(crate) struct FailUntil;

impl Job for FailUntil {
    const NAME: &str = "fail_until";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let attempt = call.attempt();
        if attempt < call.arg(0)? {
            return Err(Failure::transient(format!("attempt {attempt} is too early")));
        }
        Ok(attempt)
    }
}

/// `fail_then_sleep MILLISECONDS`: fails in its first attempt and sleeps in the others.
#[derive(Default)]
pub(crate) struct FailThenSleep;

impl Job for FailThenSleep {
    const NAME: &str = "fail_then_sleep";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        if call.attempt() == 1 {
            return Err(Failure::transient("the first attempt"));
        }
        std::thread::sleep(Duration::from_millis(call.arg(0)?));
        Ok(())
    }
}

/// `fail_in STAGE...`: fails in the stages it is told, each with a message that names it, and
/// permanently if the named argument `permanent` is true. In the stage `hang_in` it never ends.
#[derive(Default)]
pub(crate) struct FailIn;

impl FailIn {
    fn stage(name: &str, call: &Call) -> Result<()> {
        info!("{name}");
        if call.kwarg::<Option<String>>("hang_in")?.as_deref() == Some(name) {
            loop {
                std::thread::sleep(Duration::from_secs(600));
            }
        }
        if !call.args::<Vec<String>>()?.iter().any(|stage| stage == name) {
            return Ok(());
        }
        let message = format!("fault in {name}");
        match call.kwarg::<Option<bool>>("permanent")? {
            Some(true) => Err(Failure::permanent(message)),
            _ => Err(Failure::transient(message)),
        }
    }
}

impl Job for FailIn {
    const NAME: &str = "fail_in";

    fn set_up(&mut self, call: &Call) -> Result<()> {
        Self::stage("set-up", call)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        Self::stage("run", call)
    }

    fn tear_down(&mut self, call: &Call) -> Result<()> {
        Self::stage("tear-down", call)
    }

    fn on_success(&mut self, call: &Call, _result: Option<&str>) -> Result<()> {
        Self::stage("on-success", call)
    }

    fn on_failure(&mut self, call: &Call, _report: &FailureReport) -> Result<()> {
        Self::stage("on-failure", call)
    }
}

/// `nul_error`: a message and a backtrace with U+0000 in them, which PostgreSQL takes in no text.
#[derive(Default)]
pub(crate) struct NulError;

impl Job for NulError {
    const NAME: &str = "nul_error";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        error!("before\0after");
        Err::<(), _>(Failure::permanent("before\0after").with_backtrace("above\0below"))
    }
}

/// The message that the call asks for, or else this one.
fn message(call: &Call, default: &str) -> Result<String> {
    Ok(call.arg::<Option<String>>(0)?.unwrap_or_else(|| default.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fails_until_the_attempt_it_is_told() {
        let early = testing::attempt::<FailUntil>().arg(2).attempt(1).run();
        assert_eq!(early.failure_message(), "attempt 1 is too early");
        assert_eq!(testing::attempt::<FailUntil>().arg(2).attempt(2).run().result::<u32>(), 2);
    }

    #[test]
    fn it_fails_in_the_stages_it_is_told() {
        let outcome = testing::attempt::<FailIn>().args(["run", "tear-down"]).run();
        assert_eq!(outcome.failure_message(), "fault in run");
        assert_eq!(outcome.warnings(), ["fault in tear-down"]);
    }
}
