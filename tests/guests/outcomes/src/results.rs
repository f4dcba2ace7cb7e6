//! Jobs with results that a host may stumble over.

use serde::Serializer;
use serde::ser::SerializeStruct;
use sqjobs_sdk::prelude::*;

/// `big_result BYTES`: a result of exactly so many bytes of JSON; at least 2.
#[derive(Default)]
pub(crate) struct BigResult;

impl Job for BigResult {
    const NAME: &str = "big_result";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let bytes: usize = call.arg(0)?;
        Ok("x".repeat(bytes.saturating_sub(2)))
    }
}

/// `bad_result [TEXT]`: a result that is not JSON, as only a module without our SDK has it.
#[derive(Default)]
pub(crate) struct BadResult;

impl Job for BadResult {
    const NAME: &str = "bad_result";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let text: Option<String> = call.arg(0)?;
        Ok(Unchecked(text.unwrap_or_else(|| "{not json".to_owned())))
    }
}

/// Text that gets into the result as it is: the way that `RawValue` takes, without its check.
struct Unchecked(String);

impl Serialize for Unchecked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let token = "$serde_json::private::RawValue";
        let mut raw = serializer.serialize_struct(token, 1)?;
        raw.serialize_field(token, &self.0)?;
        raw.end()
    }
}

/// `nul_result`: a result with U+0000 in it: good JSON, but no text for PostgreSQL's `jsonb`.
#[derive(Default)]
pub(crate) struct NulResult;

impl Job for NulResult {
    const NAME: &str = "nul_result";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok("before\0after")
    }
}

/// `no_result`: nothing, rather than `null`.
#[derive(Default)]
pub(crate) struct NoResult;

impl Job for NoResult {
    const NAME: &str = "no_result";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_what_they_say() {
        let result = |outcome: testing::Outcome| outcome.result_json().map(str::to_owned);
        assert_eq!(result(testing::attempt::<BigResult>().arg(5).run()).unwrap(), "\"xxx\"");
        assert_eq!(result(testing::attempt::<BadResult>().run()).unwrap(), "{not json");
        assert_eq!(
            result(testing::attempt::<NulResult>().run()).unwrap(),
            "\"before\\u0000after\""
        );
        assert_eq!(result(testing::attempt::<NoResult>().run()), None);
    }
}
