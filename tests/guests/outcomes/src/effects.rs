//! A job whose effect can be counted: it tells its beginning and, as its very last act, its end.

use std::thread::sleep;
use std::time::Duration;

use sqjobs_sdk::prelude::*;

/// `effect [--kwarg ms=.. fail_before=.. retry_after=..]`: logs `begun ID`, takes so many
/// milliseconds, and logs `ended ID` as the last thing that its last stage does. Before the
/// attempt `fail_before` it fails instead: transiently, or asking for `retry_after` seconds; then
/// it logs `failed ID`.
#[derive(Default)]
pub(crate) struct Effect;

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    fail_before: u32,
    retry_after: Option<u64>,
}

impl Job for Effect {
    const NAME: &str = "effect";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let asked: Asked = call.kwargs()?;
        info!("begun {} in attempt {}", call.id(), call.attempt());
        sleep(Duration::from_millis(asked.ms));
        if call.attempt() < asked.fail_before {
            let message = format!("before attempt {}", asked.fail_before);
            return Err(match asked.retry_after {
                Some(secs) => Failure::retry_after(Duration::from_secs(secs), message),
                None => Failure::transient(message),
            });
        }
        Ok(())
    }

    fn on_success(&mut self, call: &Call, _result: Option<&str>) -> Result<()> {
        info!("ended {} in attempt {}", call.id(), call.attempt());
        Ok(())
    }

    fn tear_down(&mut self, call: &Call) -> Result<()> {
        info!("torn down {}", call.id());
        Ok(())
    }

    fn on_failure(&mut self, call: &Call, _report: &FailureReport) -> Result<()> {
        info!("failed {}", call.id());
        Ok(())
    }
}

/// `unrecorded_effect [--kwarg ms=..]`: the same, and records nothing.
#[derive(Default)]
pub(crate) struct UnrecordedEffect(Effect);

impl Job for UnrecordedEffect {
    const NAME: &str = "unrecorded_effect";

    fn options() -> Options {
        Options::new().record(false)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        self.0.run(call)
    }

    fn on_success(&mut self, call: &Call, result: Option<&str>) -> Result<()> {
        self.0.on_success(call, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_end_is_the_last_thing_it_tells() {
        let outcome = testing::attempt::<Effect>().id("7").run();
        assert_eq!(outcome.log_text(), "begun 7 in attempt 1\ntorn down 7\nended 7 in attempt 1");
        let outcome = testing::attempt::<UnrecordedEffect>().id("7").run();
        assert_eq!(outcome.log_text(), "begun 7 in attempt 1\nended 7 in attempt 1");
    }

    #[test]
    fn it_fails_before_the_attempt_it_is_told() {
        let early = testing::attempt::<Effect>().id("7").kwarg("fail_before", 2).run();
        assert_eq!(early.failure_message(), "before attempt 2");
        assert_eq!(early.log_text(), "begun 7 in attempt 1\ntorn down 7\nfailed 7");
        assert!(testing::attempt::<Effect>().attempt(2).kwarg("fail_before", 2).run().is_success());
    }
}
