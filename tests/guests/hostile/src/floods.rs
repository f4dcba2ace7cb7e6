//! Jobs that never stop telling the host something.

use std::hint::black_box;

use sqjobs_sdk::prelude::*;

/// `flood_log`: logs for ever.
#[derive(Default)]
pub(crate) struct FloodLog;

impl Job for FloodLog {
    const NAME: &str = "flood_log";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        while black_box(true) {
            info!("{}", "all work and no play ".repeat(100));
        }
        Ok(())
    }
}

/// `flood_output`: prints for ever, and never ends its line.
#[derive(Default)]
pub(crate) struct FloodOutput;

impl Job for FloodOutput {
    const NAME: &str = "flood_output";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        while black_box(true) {
            print!("{}", "all work and no play ".repeat(100));
        }
        Ok(())
    }
}

/// `flood_progress`: tells its progress for ever.
#[derive(Default)]
pub(crate) struct FloodProgress;

impl Job for FloodProgress {
    const NAME: &str = "flood_progress";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        let message = "x".repeat(100_000);
        while black_box(true) {
            progress(0.5, message.as_str());
        }
        Ok(())
    }
}

/// `add_for_ever`: adds `adder_job` until it is refused, and fails with the refusal.
#[derive(Default)]
pub(crate) struct AddForEver;

impl Job for AddForEver {
    const NAME: &str = "add_for_ever";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        let mut count = 0_u64;
        while black_box(true) {
            if let Err(error) = add_job(NewJob::new("adder_job").arg(count)) {
                return Err(Failure::permanent(format!("{count} were added, then: {error}")));
            }
            count += 1;
        }
        Ok(count)
    }
}

/// `add_self`: adds itself once more.
#[derive(Default)]
pub(crate) struct AddSelf;

impl Job for AddSelf {
    const NAME: &str = "add_self";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        add_job(NewJob::new("add_self")).map_err(|error| Failure::permanent(error.to_string()))
    }
}
