//! Computes for ever while its instance is made, before any of its functions is called.

#[cfg(target_arch = "wasm32")]
use std::hint::black_box;

use sqjobs_sdk::prelude::*;

#[cfg(target_arch = "wasm32")]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = {
    extern "C" fn spin() {
        while black_box(true) {}
    }
    spin
};

/// `never_starts`: is never called.
#[derive(Default)]
struct NeverStarts;

impl Job for NeverStarts {
    const NAME: &str = "never_starts";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok(())
    }
}

sqjobs_sdk::export!(NeverStarts);
