//! Jobs that say something about themselves.

use std::thread::sleep;
use std::time::Duration;

use sqjobs_sdk::prelude::*;
use sqjobs_sdk::{CatchUp, Overlap, Unique};

use crate::resources::spin;

/// `unrecorded [fail]`: records nothing; fails for good when its argument is true.
#[derive(Default)]
pub(crate) struct Unrecorded;

impl Job for Unrecorded {
    const NAME: &str = "unrecorded";

    fn options() -> Options {
        Options::new().record(false)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        match call.arg::<Option<bool>>(0)? {
            Some(true) => Err(Failure::permanent("failed unrecorded")),
            _ => Ok("never seen"),
        }
    }
}

/// `slow_unrecorded MILLISECONDS`: records nothing, and takes its time.
#[derive(Default)]
pub(crate) struct SlowUnrecorded;

impl Job for SlowUnrecorded {
    const NAME: &str = "slow_unrecorded";

    fn options() -> Options {
        Options::new().record(false)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        info!("begun {}", call.id());
        sleep(Duration::from_millis(call.arg(0)?));
        info!("ended {}", call.id());
        Ok(())
    }
}

/// `hurried`: computes for ever, under a timeout of its own of 300 ms.
#[derive(Default)]
pub(crate) struct Hurried;

impl Job for Hurried {
    const NAME: &str = "hurried";

    fn options() -> Options {
        Options::new().timeout(Duration::from_millis(300)).max_attempts(1)
    }

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        spin();
        Ok(())
    }
}

/// `single MS`: sleeps; one call with the same arguments at a time.
#[derive(Default)]
pub(crate) struct Single;

impl Job for Single {
    const NAME: &str = "single";

    fn options() -> Options {
        Options::new().unique(Unique::Arguments)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        std::thread::sleep(Duration::from_millis(call.arg(0)?));
        Ok(())
    }
}

/// `described`: says everything that a job can say about itself.
#[derive(Default)]
pub(crate) struct Described;

impl Job for Described {
    const NAME: &str = "described";
    const QUEUE: Option<&str> = Some("described_queue");

    fn options() -> Options {
        Options::new()
            .timeout(Duration::from_secs(30))
            .max_attempts(7)
            .backoff(Duration::from_secs(2), Duration::from_secs(120))
            .unique_for(Unique::Key("described".to_owned()), Duration::from_secs(60))
            .periodic(
                Periodic::every(Duration::from_secs(3600))
                    .arg(1)
                    .kwarg("b", 2)
                    .catch_up(CatchUp::Last)
                    .max_lateness(Duration::from_secs(600))
                    .overlap(Overlap::Skip)
                    .jitter(Duration::from_secs(10)),
            )
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        Ok(call.max_attempts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_takes_what_the_job_says() {
        assert_eq!(testing::attempt::<Described>().run().result::<u32>(), 7);
        assert!(testing::attempt::<Unrecorded>().arg(true).run().is_permanent());
        assert!(testing::attempt::<SlowUnrecorded>().arg(0).run().is_success());
        assert!(testing::attempt::<Single>().arg(0).run().is_success());
    }
}
