//! A job that the beater queues: a minute past midnight in Madrid, summer and winter.

use std::time::SystemTime;

use sqjobs_sdk::prelude::*;

/// Logs for which instant it was queued.
#[derive(Default)]
pub(crate) struct DummyPeriodic;

impl Job for DummyPeriodic {
    const NAME: &str = "dummy_periodic_job";
    const QUEUE: Option<&str> = Some("my_queue");

    fn options() -> Options {
        Options::new().periodic(Periodic::crontab("1 0 * * *", "Europe/Madrid"))
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        match call.fire_time().map(|at| at.duration_since(SystemTime::UNIX_EPOCH)) {
            Some(at) => info!("queued for second {} since 1970", at?.as_secs()),
            None => info!("queued by hand"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_knows_the_instant_that_was_meant() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        let outcome = testing::attempt::<DummyPeriodic>().periodic("nightly", at).run();
        assert_eq!(outcome.log_text(), "queued for second 60 since 1970");
        assert_eq!(testing::attempt::<DummyPeriodic>().run().log_text(), "queued by hand");
    }
}
