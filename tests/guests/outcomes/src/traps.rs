//! Jobs whose instance dies.

use sqjobs_sdk::prelude::*;

/// `trap_in STAGE...`: executes an unreachable instruction in the stages it is told.
#[derive(Default)]
pub(crate) struct TrapIn;

impl TrapIn {
    fn stage(name: &str, call: &Call) -> Result<()> {
        info!("{name}");
        if call.args::<Vec<String>>()?.iter().any(|stage| stage == name) {
            trap();
        }
        Ok(())
    }
}

impl Job for TrapIn {
    const NAME: &str = "trap_in";

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

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        let (cause, stage) = (report.cause(), report.stage());
        info!(
            "{cause:?} in {stage:?}, attempt {}, again in {:?}",
            report.attempt(),
            report.retry_in()
        );
        Self::stage("on-failure", call)
    }
}

#[cfg(target_arch = "wasm32")]
fn trap() -> ! {
    core::arch::wasm32::unreachable()
}

#[cfg(not(target_arch = "wasm32"))]
fn trap() -> ! {
    panic!("the stand-in of a trap")
}

/// `panic_job [MESSAGE]`: panics.
#[derive(Default)]
pub(crate) struct PanicJob;

impl Job for PanicJob {
    const NAME: &str = "panic_job";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let message: Option<String> = call.arg(0)?;
        if true {
            panic!("{}", message.as_deref().unwrap_or("the job panicked on purpose"));
        }
        Ok(())
    }
}

/// `exit [CODE]`: leaves as a command would; success (0) must not be taken for one.
#[derive(Default)]
pub(crate) struct Exit;

impl Job for Exit {
    const NAME: &str = "exit";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let code: Option<i32> = call.arg(0)?;
        if true {
            std::process::exit(code.unwrap_or(0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_traps_in_the_stage_it_is_told() {
        let outcome = testing::attempt::<TrapIn>().arg("tear-down").run();
        assert_eq!(
            outcome.log_text(),
            "set-up\nrun\ntear-down\nTrap in TearDown, attempt 1, again in Some(5s)\non-failure"
        );
    }

    #[test]
    fn it_panics_with_its_message() {
        let outcome = testing::attempt::<PanicJob>().arg("boom").run();
        assert_eq!(outcome.failure_message(), "boom");
    }
}
