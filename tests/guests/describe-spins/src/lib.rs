//! A module that computes for ever while it describes itself: to be refused at its deadline.

use sqjobs_sdk::prelude::*;

#[derive(Default)]
struct DescribeSpins;

impl Job for DescribeSpins {
    const NAME: &str = "describe_spins";

    fn options() -> Options {
        while std::hint::black_box(true) {}
        Options::new()
    }

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok(())
    }
}

export!(DescribeSpins);
