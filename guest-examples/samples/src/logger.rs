//! A job that is told how it ended.

use sqjobs_sdk::prelude::*;

/// Logs its end; fails for good with the text of its argument `fail`, if there is one.
#[derive(Default)]
pub(crate) struct Logger;

impl Job for Logger {
    const NAME: &str = "logger_job";
    const QUEUE: Option<&str> = Some("my_queue");

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        match call.kwarg::<Option<String>>("fail")? {
            Some(reason) => Err(Failure::permanent(reason)),
            None => Ok(()),
        }
    }

    fn on_success(&mut self, call: &Call, _result: Option<&str>) -> Result<()> {
        info!("successfully finished job {}", call.name());
        Ok(())
    }

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        error!("failed job {}: {}", call.name(), report.message());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_logs_a_success() {
        let outcome = testing::attempt::<Logger>().run();
        assert_eq!(outcome.log_text(), "successfully finished job logger_job");
    }

    #[test]
    fn it_logs_a_failure() {
        let outcome = testing::attempt::<Logger>().kwarg("fail", "no paper").run();
        assert!(outcome.is_permanent());
        assert_eq!(outcome.log_text(), "failed job logger_job: no paper");
    }
}
