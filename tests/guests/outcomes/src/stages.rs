//! Jobs that tell which stages were called.

use sqjobs_sdk::prelude::*;

/// `stages`: logs and prints each stage, and what a field has kept since `set-up`.
#[derive(Default)]
pub(crate) struct Stages {
    kept: Option<String>,
}

impl Stages {
    fn stage(&self, name: &str) {
        let kept = self.kept.as_deref().unwrap_or("nothing");
        info!(stage = name; "{name} keeps {kept}");
        println!("{name}");
    }
}

impl Job for Stages {
    const NAME: &str = "stages";

    fn set_up(&mut self, call: &Call) -> Result<()> {
        self.stage("set-up");
        self.kept = Some(format!("attempt {} of {}", call.attempt(), call.id()));
        Ok(())
    }

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        self.stage("run");
        Ok(self.kept.clone())
    }

    fn tear_down(&mut self, _call: &Call) -> Result<()> {
        self.stage("tear-down");
        Ok(())
    }

    fn on_success(&mut self, _call: &Call, result: Option<&str>) -> Result<()> {
        self.stage("on-success");
        info!("result {}", result.unwrap_or("none"));
        Ok(())
    }

    fn on_failure(&mut self, _call: &Call, report: &FailureReport) -> Result<()> {
        self.stage("on-failure");
        info!("failure {}", report.message());
        Ok(())
    }
}

/// `counter [TEXT]`: one line in the log for each run, so that runs can be counted.
#[derive(Default)]
pub(crate) struct Counter;

impl Job for Counter {
    const NAME: &str = "counter";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let text: Option<String> = call.arg(0)?;
        info!("counted {} {}", call.id(), text.unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_kept_from_set_up_to_the_end() {
        let outcome = testing::attempt::<Stages>().id("7").run();
        assert_eq!(
            outcome.log_text(),
            "set-up keeps nothing\nrun keeps attempt 1 of 7\ntear-down keeps attempt 1 of 7\n\
             on-success keeps attempt 1 of 7\nresult \"attempt 1 of 7\""
        );
        assert_eq!(testing::attempt::<Counter>().id("7").run().log_text(), "counted 7 ");
    }
}
