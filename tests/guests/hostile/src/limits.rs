//! Jobs that take more than they may.

use std::hint::black_box;

use sqjobs_sdk::prelude::*;
use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::random::random::get_random_bytes;

/// `grow_slowly`: takes memory in small steps, for ever, and keeps it all.
#[derive(Default)]
pub(crate) struct GrowSlowly;

impl Job for GrowSlowly {
    const NAME: &str = "grow_slowly";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        let mut kept = Vec::new();
        while black_box(true) {
            kept.push(vec![1_u8; 10_000]);
        }
        Ok(kept.len())
    }
}

/// `recurse`: calls itself without end.
#[derive(Default)]
pub(crate) struct Recurse;

fn deeper(depth: u64) -> u64 {
    if black_box(true) { deeper(black_box(depth + 1)) + 1 } else { depth }
}

impl Job for Recurse {
    const NAME: &str = "recurse";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok(deeper(0))
    }
}

/// `huge_line BYTES`: hands the host so much in one call.
#[derive(Default)]
pub(crate) struct HugeLine;

impl Job for HugeLine {
    const NAME: &str = "huge_line";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        info!("{}", "x".repeat(call.arg(0)?));
        Ok(())
    }
}

/// `huge_random BYTES`: asks the host for so many random bytes in one call.
#[derive(Default)]
pub(crate) struct HugeRandom;

impl Job for HugeRandom {
    const NAME: &str = "huge_random";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        Ok(get_random_bytes(call.arg(0)?).len())
    }
}

/// `wait_for_many COUNT`: makes so many timers that never fire.
#[derive(Default)]
pub(crate) struct WaitForMany;

impl Job for WaitForMany {
    const NAME: &str = "wait_for_many";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let count: usize = call.arg(0)?;
        let timers: Vec<_> = (0..count).map(|_| subscribe_duration(u64::MAX)).collect();
        Ok(timers.len())
    }
}
