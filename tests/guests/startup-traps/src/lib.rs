//! Traps while its instance is made, before any of its functions is called.

use sqjobs_sdk::prelude::*;

#[cfg(target_arch = "wasm32")]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = {
    extern "C" fn trap() {
        core::arch::wasm32::unreachable()
    }
    trap
};

/// `never_made`: is never called.
#[derive(Default)]
struct NeverMade;

impl Job for NeverMade {
    const NAME: &str = "never_made";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        Ok(())
    }
}

sqjobs_sdk::export!(NeverMade);
