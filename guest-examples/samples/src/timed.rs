//! A job that keeps something from one stage to the next.

use std::thread::sleep;
use std::time::{Duration, Instant};

use sqjobs_sdk::prelude::*;

/// Works for as many milliseconds as its argument says, and logs how long it took.
#[derive(Default)]
pub(crate) struct Timed {
    started: Option<Instant>,
}

impl Job for Timed {
    const NAME: &str = "timed_job";
    const QUEUE: Option<&str> = Some("my_queue");

    fn set_up(&mut self, _call: &Call) -> Result<()> {
        self.started = Some(Instant::now());
        Ok(())
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let work_ms: Option<u64> = call.arg(0)?;
        sleep(Duration::from_millis(work_ms.unwrap_or(0)));
        Ok(())
    }

    fn tear_down(&mut self, call: &Call) -> Result<()> {
        let started = self.started.or_permanent("set_up was not called")?;
        let seconds = started.elapsed().as_secs_f64();
        info!(seconds; "{} finished in {seconds:.3} seconds", call.name());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tear_down_logs_how_long_it_took_since_set_up() {
        let outcome = testing::attempt::<Timed>().arg(20).run();
        let [line] = outcome.log_lines() else { panic!("one line: {outcome:?}") };
        assert!(line.message.starts_with("timed_job finished in 0."), "{}", line.message);
        let [(key, seconds)] = line.fields.as_slice() else { panic!("one field: {line:?}") };
        assert_eq!(key, "seconds");
        assert!(seconds.parse::<f64>().unwrap() >= 0.02);
    }

    #[test]
    fn it_logs_also_when_the_work_fails() {
        let outcome = testing::attempt::<Timed>().arg("long").run();
        assert!(outcome.is_permanent());
        assert_eq!(outcome.log_lines().len(), 1);
    }
}
