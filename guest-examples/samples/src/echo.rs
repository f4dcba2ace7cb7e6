//! A job that gives back what it was called with, to see what arrives.

use sqjobs_sdk::prelude::*;

/// Returns the job's id, its arguments exactly as they were sent, and the attempt's number.
#[derive(Default)]
pub(crate) struct Echo;

/// The JSON text of the arguments passes through unread: long integers, the order of keys and
/// the spaces stay as they were.
#[derive(Serialize)]
struct Echoed<'a> {
    id: &'a str,
    args: &'a RawValue,
    kwargs: &'a RawValue,
    attempt: u32,
}

impl Job for Echo {
    const NAME: &str = "echo_job";
    const QUEUE: Option<&str> = Some("my_queue");

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let (args, kwargs) = (call.args()?, call.kwargs()?);
        Ok(Echoed { id: call.id(), args, kwargs, attempt: call.attempt() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_back_exactly_as_they_were_sent() {
        let outcome = testing::attempt::<Echo>()
            .id("7")
            .attempt(2)
            .args_json("[123456789012345678901234567890, 1.50,\"\\u00e9\"]")
            .kwargs_json("{\"b\": 1, \"a\":[ ]}")
            .run();
        assert_eq!(
            outcome.result_json().unwrap(),
            "{\"id\":\"7\",\
             \"args\":[123456789012345678901234567890, 1.50,\"\\u00e9\"],\
             \"kwargs\":{\"b\": 1, \"a\":[ ]},\
             \"attempt\":2}"
        );
    }
}
