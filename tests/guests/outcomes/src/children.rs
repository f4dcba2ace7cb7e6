//! Jobs that talk to the host while they run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqjobs_sdk::prelude::*;

/// `add_children N [--kwarg name=.. queue=.. delay_ms=.. unique_key=.. unique_for_ms=.. group=..
/// at_once=.. sleep_ms=.. fail=..]`: adds so
/// many jobs (`counter` by itself), sleeps, returns their ids, or fails after the adding.
#[derive(Default)]
pub(crate) struct AddChildren;

#[derive(Deserialize)]
struct Children {
    #[serde(default = "counter")]
    name: String,
    queue: Option<String>,
    delay_ms: Option<u64>,
    unique_key: Option<String>,
    unique_for_ms: Option<u64>,
    group: Option<String>,
    #[serde(default)]
    at_once: bool,
    #[serde(default)]
    sleep_ms: u64,
    #[serde(default)]
    fail: bool,
}

fn counter() -> String {
    "counter".to_owned()
}

impl Job for AddChildren {
    const NAME: &str = "add_children";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let count: u32 = call.arg(0)?;
        let children: Children = call.kwargs()?;
        let mut ids = Vec::new();
        for number in 0..count {
            let mut child = NewJob::new(&children.name).arg(number.to_string());
            if let Some(queue) = &children.queue {
                child = child.queue(queue);
            }
            if let Some(ms) = children.delay_ms {
                child = child.delay(Duration::from_millis(ms));
            }
            if let Some(key) = &children.unique_key {
                child = child.unique_key(key);
            }
            if let Some(ms) = children.unique_for_ms {
                child = child.unique_for(Duration::from_millis(ms));
            }
            if let Some(group) = &children.group {
                child = child.group(group);
            }
            if children.at_once {
                child = child.at_once();
            }
            ids.push(add_job(child)?);
        }
        std::thread::sleep(Duration::from_millis(children.sleep_ms));
        if children.fail {
            return Err(Failure::permanent("failed after the adding"));
        }
        Ok(ids)
    }
}

/// `chain N`: adds itself with `N + 1`, for ever.
#[derive(Default)]
pub(crate) struct Chain;

impl Job for Chain {
    const NAME: &str = "chain";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let link: u32 = call.arg(0)?;
        add_job(NewJob::of::<Self>().arg(link + 1))?;
        Ok(link)
    }
}

/// `progress_job STEPS [--kwarg hold_ms=..]`: tells so many steps of progress, then a share out of
/// range and one that is no number; then it sleeps.
#[derive(Default)]
pub(crate) struct ProgressJob;

impl Job for ProgressJob {
    const NAME: &str = "progress_job";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let steps: u32 = call.arg(0)?;
        for step in 1..=steps {
            let message = format!("step {step} of {steps}");
            progress(f64::from(step) / f64::from(steps), message.as_str());
        }
        progress(7.0, "beyond the end");
        progress(f64::NAN, None);
        let hold_ms: Option<u64> = call.kwarg("hold_ms")?;
        std::thread::sleep(Duration::from_millis(hold_ms.unwrap_or(0)));
        Ok(())
    }
}

/// `progress_clock TIMES PAUSE_MS`: tells its progress so many times, each with the time as
/// milliseconds since 1970, and sleeps between.
#[derive(Default)]
pub(crate) struct ProgressClock;

impl Job for ProgressClock {
    const NAME: &str = "progress_clock";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let (times, pause_ms): (u32, u64) = call.args()?;
        for turn in 1..=times {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            progress(f64::from(turn) / f64::from(times), now.as_millis().to_string().as_str());
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_added_as_told() {
        let outcome = testing::attempt::<AddChildren>().arg(2).kwarg("queue", "q").run();
        assert_eq!(outcome.result::<Vec<String>>().len(), 2);
        assert_eq!(outcome.added_jobs()[1].args, "[\"1\"]");
        assert_eq!(outcome.added_jobs()[1].queue.as_deref(), Some("q"));
        let outcome = testing::attempt::<AddChildren>().arg(2).kwarg("fail", true).run();
        assert!(outcome.added_jobs().is_empty());
    }

    #[test]
    fn a_chain_adds_its_next_link() {
        let outcome = testing::attempt::<Chain>().arg(4).run();
        assert_eq!(outcome.added_jobs()[0].args, "[5]");
    }

    #[test]
    fn the_time_is_told_as_progress() {
        let outcome = testing::attempt::<ProgressClock>().arg(2).arg(1).run();
        let told = outcome.progress();
        assert_eq!(told.len(), 2);
        assert!(told[1].1.as_ref().is_some_and(|time| time.parse::<u64>().is_ok()));
    }

    #[test]
    fn progress_is_told_step_by_step() {
        let outcome = testing::attempt::<ProgressJob>().arg(2).run();
        let fractions: Vec<_> = outcome.progress().iter().map(|(fraction, _)| *fraction).collect();
        assert_eq!(fractions, [0.5, 1.0, 1.0]);
    }
}
