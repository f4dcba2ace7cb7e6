//! A job whose outcome and result are recorded. Every job's are, unless it says otherwise.

use sqjobs_sdk::prelude::*;

/// Returns a result to look up by `status`.
#[derive(Default)]
pub(crate) struct DummyResult;

impl Job for DummyResult {
    const NAME: &str = "dummy_result_job";
    const QUEUE: Option<&str> = Some("dummy_queue");

    fn options() -> Options {
        Options::new().record(true)
    }

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok("done")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_a_result() {
        assert_eq!(testing::attempt::<DummyResult>().run().result_json(), Some("\"done\""));
    }
}
