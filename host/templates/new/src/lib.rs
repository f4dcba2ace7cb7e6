//! The job `{{name}}`: adds up its arguments.

use sqjobs_sdk::prelude::*;

#[derive(Default)]
struct Adder;

impl Job for Adder {
    const NAME: &str = "{{name}}";
    const QUEUE: Option<&str> = Some("{{name}}");

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let numbers: Vec<i64> = call.args()?;
        info!("adding up {} numbers", numbers.len());
        let sum = numbers.into_iter().try_fold(0, i64::checked_add);
        sum.or_permanent("the sum is too large")
    }
}

export!(Adder);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_adds_up_its_arguments() {
        let outcome = testing::attempt::<Adder>().args([1, 2, 3, 4]).run();
        assert_eq!(outcome.result::<i64>(), 10);
    }

    #[test]
    fn it_refuses_what_is_no_number() {
        assert!(testing::attempt::<Adder>().arg("x").run().is_permanent());
    }
}
