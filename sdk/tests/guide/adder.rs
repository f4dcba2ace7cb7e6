use sqjobs_sdk::prelude::*;

#[derive(Default)]
struct Adder;

impl Job for Adder {
    const NAME: &str = "adder_job";
    const QUEUE: Option<&str> = Some("my_queue");

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let numbers: Vec<i64> = call.args()?;
        Ok(numbers.iter().sum::<i64>())
    }
}

export!(Adder);

#[test]
fn it_adds_up_its_arguments() {
    let outcome = testing::attempt::<Adder>().args([1, 2, 3, 4]).run();
    assert_eq!(outcome.result::<i64>(), 10);
}
