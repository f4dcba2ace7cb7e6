//! Jobs that want too much: time, memory, output.

use std::hint::black_box;
use std::thread::sleep;
use std::time::Duration;

use sqjobs_sdk::prelude::*;

/// `spin [STAGE]`: computes for ever in a stage, `run` by itself.
#[derive(Default)]
pub(crate) struct Spin;

impl Spin {
    fn stage(name: &str, call: &Call) -> Result<()> {
        let spin_in: Option<String> = call.arg(0)?;
        if spin_in.as_deref().unwrap_or("run") == name {
            spin();
        }
        Ok(())
    }
}

impl Job for Spin {
    const NAME: &str = "spin";

    fn set_up(&mut self, call: &Call) -> Result<()> {
        Self::stage("set-up", call)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        Self::stage("run", call)?;
        match call.arg::<Option<String>>(0)?.as_deref() {
            Some("on-failure") => Err(Failure::permanent("so that on-failure is called")),
            _ => Ok(()),
        }
    }

    fn tear_down(&mut self, call: &Call) -> Result<()> {
        Self::stage("tear-down", call)
    }

    fn on_success(&mut self, call: &Call, _result: Option<&str>) -> Result<()> {
        Self::stage("on-success", call)
    }

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        info!("told of {:?} in {:?}", report.cause(), report.stage());
        Self::stage("on-failure", call)
    }
}

/// Computes for ever, out of the optimiser's sight.
pub(crate) fn spin() {
    let mut turns = 0_u64;
    while black_box(true) {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// `sleep_ms MILLISECONDS`: blocks in the host's clock.
#[derive(Default)]
pub(crate) struct SleepMs;

impl Job for SleepMs {
    const NAME: &str = "sleep_ms";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let ms: u64 = call.arg(0)?;
        info!("sleeping for {ms} ms");
        sleep(Duration::from_millis(ms));
        Ok(ms)
    }
}

/// `allocate BYTES`: takes so much memory, touches every page of it, and returns the size.
#[derive(Default)]
pub(crate) struct Allocate;

impl Job for Allocate {
    const NAME: &str = "allocate";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let bytes: usize = call.arg(0)?;
        let memory = black_box(vec![1_u8; bytes]);
        Ok(memory.len())
    }

    fn on_failure(&mut self, _call: &Call, report: &FailureReport) -> Result<()> {
        info!("told of {:?} in {:?}", report.cause(), report.stage());
        Ok(())
    }
}

/// `print TEXT [COUNT]`: prints the text to standard output and standard error, so many times,
/// each with the end of a line.
#[derive(Default)]
pub(crate) struct Print;

impl Job for Print {
    const NAME: &str = "print";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let (text, count): (String, Option<u64>) = (call.arg(0)?, call.arg(1)?);
        for _ in 0..count.unwrap_or(1) {
            println!("{text}");
            eprintln!("{text}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_told() {
        assert_eq!(testing::attempt::<Allocate>().arg(1_000).run().result::<u64>(), 1_000);
        assert_eq!(testing::attempt::<SleepMs>().arg(1).run().result::<u64>(), 1);
        assert!(testing::attempt::<Print>().arg("x").arg(2).run().is_success());
        assert!(testing::attempt::<Spin>().arg("never").run().is_success());
    }
}
