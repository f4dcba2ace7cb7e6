use std::time::Duration;

use sqjobs_sdk::prelude::*;
use sqjobs_sdk::{CatchUp, Overlap, Unique};

#[derive(Default)]
struct NightlyReport;

impl Job for NightlyReport {
    const NAME: &str = "nightly_report";
    const QUEUE: Option<&str> = Some("reports");

    fn options() -> Options {
        Options::new()
            .timeout(Duration::from_secs(600))
            .max_attempts(5)
            .backoff(Duration::from_secs(10), Duration::from_secs(3600))
            .unique(Unique::Arguments)
            .periodic(
                Periodic::crontab("1 0 * * *", "Europe/Madrid")
                    .kwarg("format", "html")
                    .catch_up(CatchUp::Last)
                    .overlap(Overlap::Skip)
                    .jitter(Duration::from_secs(30)),
            )
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let format: String = call.kwarg("format")?;
        Ok(format!("a report in {format}, attempt {}", call.attempt()))
    }
}

#[test]
fn the_attempt_can_be_set_in_a_test() {
    let outcome = testing::attempt::<NightlyReport>().kwarg("format", "csv").attempt(5).run();
    assert_eq!(outcome.result::<String>(), "a report in csv, attempt 5");
    let outcome = testing::attempt::<NightlyReport>().attempt(5).run();
    assert_eq!(outcome.failure().unwrap().retry_in(), None);
}
