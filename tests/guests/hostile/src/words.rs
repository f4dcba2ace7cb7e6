//! Jobs whose words are the attack.

use serde::Serializer;
use serde::ser::SerializeStruct;
use sqjobs_sdk::prelude::*;

/// `deep_result DEPTH`: a result of so many nested arrays.
#[derive(Default)]
pub(crate) struct DeepResult;

impl Job for DeepResult {
    const NAME: &str = "deep_result";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let depth: usize = call.arg(0)?;
        Ok(Unchecked("[".repeat(depth) + &"]".repeat(depth)))
    }
}

/// `not_utf8`: a result that is no text at all.
#[derive(Default)]
pub(crate) struct NotUtf8;

impl Job for NotUtf8 {
    const NAME: &str = "not_utf8";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        // SAFETY: none. It is what a module in another language may do; nothing in here looks at
        // the text before the host gets it.
        Ok(Unchecked(unsafe { String::from_utf8_unchecked(vec![b'"', 0xff, 0xfe, b'"']) }))
    }
}

/// Text that gets into the result as it is: the way that `RawValue` takes, without its check.
struct Unchecked(String);

impl Serialize for Unchecked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let token = "$serde_json::private::RawValue";
        let mut raw = serializer.serialize_struct(token, 1)?;
        raw.serialize_field(token, &self.0)?;
        raw.end()
    }
}

/// `escapes`: fails and logs with text that would move a terminal's cursor and hide itself.
#[derive(Default)]
pub(crate) struct Escapes;

const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r\0tail";

impl Job for Escapes {
    const NAME: &str = "escapes";

    fn run(&mut self, _call: &Call) -> Result<impl Serialize> {
        info!("{ESCAPES}");
        println!("{ESCAPES}");
        progress(0.1, ESCAPES);
        Err::<(), _>(Failure::permanent(ESCAPES).with_backtrace(ESCAPES))
    }
}

/// `leak_secret NAME [panic]`: tells a variable's value in every way that it has.
#[derive(Default)]
pub(crate) struct LeakSecret;

impl Job for LeakSecret {
    const NAME: &str = "leak_secret";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let name: String = call.arg(0)?;
        let value = std::env::var(&name).unwrap_or_else(|_| "nothing".to_owned());
        info!("the value is {value}");
        println!("the value is {value}");
        eprintln!("the value is {value}");
        progress(0.1, format!("the value is {value}").as_str());
        if call.arg::<Option<bool>>(1)? == Some(true) {
            panic!("the value is {value}");
        }
        let failure = Failure::permanent(format!("the value of {} bytes is {value}", value.len()));
        Err::<(), _>(failure.with_backtrace(value))
    }
}
