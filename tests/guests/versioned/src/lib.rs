//! A module of which tests make versions: they replace the bytes of [`MARKER`], so that the code
//! is another one without being built again.

use std::hint::black_box;
use std::thread::sleep;
use std::time::Duration;

use sqjobs_sdk::prelude::*;

/// What tells one version from another. The part behind the colon is replaced; a version whose
/// marker begins with `bad` fails.
static MARKER: [u8; 32] = *b"version-marker:0000000000000000;";

/// Read at run time, out of the optimiser's sight: it must be these very bytes.
fn marker() -> String {
    let bytes = black_box(&MARKER);
    String::from_utf8_lossy(&bytes[15..31]).into_owned()
}

/// `which [MILLISECONDS]`: takes that long, and returns the markers that two of its stages saw.
#[derive(Default)]
struct Which {
    in_set_up: String,
}

impl Job for Which {
    const NAME: &str = "which";

    fn set_up(&mut self, _call: &Call) -> Result<()> {
        self.in_set_up = marker();
        Ok(())
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let wait_ms: Option<u64> = call.arg(0)?;
        sleep(Duration::from_millis(wait_ms.unwrap_or(0)));
        if marker().starts_with("bad") {
            return Err(Failure::permanent(format!("{} is a bad version", marker())));
        }
        Ok([self.in_set_up.clone(), marker()])
    }
}

export!(Which);
