//! A module that panics while it describes itself: to be refused, by name and with the reason.

use sqjobs_sdk::prelude::*;

#[derive(Default)]
struct DescribeTraps;

impl Job for DescribeTraps {
    const NAME: &str = "describe_traps";

    fn options() -> Options {
        panic!("nothing to say");
    }

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok(())
    }
}

export!(DescribeTraps);
