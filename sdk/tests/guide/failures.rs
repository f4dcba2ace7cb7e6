use std::time::{Duration, SystemTime};

use sqjobs_sdk::prelude::*;

#[derive(Default)]
struct ReadMeter;

impl Job for ReadMeter {
    const NAME: &str = "read_meter";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let reading: String = call.arg(0)?;
        if reading == "busy" {
            return Err(Failure::retry_after(Duration::from_secs(60), "the meter is busy"));
        }
        let bytes = reading.strip_prefix("0x").or_permanent("the reading has no prefix")?;
        let value = u32::from_str_radix(bytes, 16).or_permanent("the reading is no number")?;
        let read_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?; // transient
        Ok((value, read_at.as_secs()))
    }

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        match report.retry_in() {
            Some(wait) => warn!("meter of {}: once more in {wait:?}", call.id()),
            None => error!("meter of {}: given up: {}", call.id(), report.message()),
        }
        Ok(())
    }
}

#[test]
fn a_failure_says_what_to_do_about_it() {
    let run = |reading: &str| testing::attempt::<ReadMeter>().id("7").arg(reading).run();
    assert_eq!(run("0xff").result::<(u32, u64)>().0, 255);
    assert_eq!(run("busy").log_text(), "meter of 7: once more in 60s");

    let outcome = run("0xyz");
    assert!(outcome.is_permanent());
    assert_eq!(
        outcome.log_text(),
        "meter of 7: given up: the reading is no number: invalid digit found in string"
    );
}
