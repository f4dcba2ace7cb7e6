//! The smallest example: `adder_job` returns the sum of its arguments.
//!
//! Integers add up to an integer, of up to 39 digits; with a fraction among them, or beyond that,
//! to a floating-point number.

use sqjobs_sdk::prelude::*;
use sqjobs_sdk::serde_json::value::to_raw_value;

#[derive(Default)]
struct Adder;

impl Job for Adder {
    const NAME: &str = "adder_job";
    const QUEUE: Option<&str> = Some("my_queue");

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let integers = call.args::<Vec<i128>>().ok();
        let sum = integers.and_then(|numbers| numbers.into_iter().try_fold(0, i128::checked_add));
        if let Some(sum) = sum {
            return to_raw_value(&sum).or_permanent("the sum");
        }
        let sum: f64 = call.args::<Vec<f64>>()?.iter().sum();
        if !sum.is_finite() {
            return Err(Failure::permanent("the sum is beyond what a number can hold"));
        }
        to_raw_value(&sum).or_permanent("the sum")
    }
}

export!(Adder);

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(args: &str) -> String {
        let outcome = testing::attempt::<Adder>().args_json(args).run();
        outcome.result_json().expect("the adder has a result").to_owned()
    }

    #[test]
    fn integers_add_up_to_an_integer() {
        assert_eq!(sum("[1, 2, 3, 4]"), "10");
        assert_eq!(sum("[]"), "0");
        assert_eq!(sum("[-1]"), "-1");
        assert_eq!(sum("[18446744073709551615, 1]"), "18446744073709551616");
        assert_eq!(sum("[123456789012345678901234567890, 1]"), "123456789012345678901234567891");
    }

    #[test]
    fn fractions_and_what_is_too_large_add_up_to_a_float() {
        assert_eq!(sum("[1, 0.5]"), "1.5");
        let max = i128::MAX;
        assert_eq!(sum(&format!("[{max}, 1]")), "1.7014118346046923e+38");
    }

    #[test]
    fn what_is_no_number_is_refused_for_good() {
        let outcome = testing::attempt::<Adder>().args(["x"]).run();
        assert!(outcome.is_permanent());
        assert!(outcome.failure_message().starts_with("the args do not fit `Vec<f64>`"));
        assert!(testing::attempt::<Adder>().args([1e308, 1e308]).run().is_permanent());
    }
}
