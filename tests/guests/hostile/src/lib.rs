//! Jobs that attack the host, each in its own way. What a job is told comes as positional
//! arguments.

mod files;
mod floods;
mod limits;
mod words;

use files::{OpenMany, OpenPaths, WriteFile};
use floods::{AddForEver, AddSelf, FloodLog, FloodOutput, FloodProgress};
use limits::{GrowSlowly, HugeLine, HugeRandom, Recurse, WaitForMany};
use words::{DeepResult, Escapes, LeakSecret, NotUtf8};

sqjobs_sdk::export!(
    AddForEver,
    AddSelf,
    DeepResult,
    Escapes,
    FloodLog,
    FloodOutput,
    FloodProgress,
    GrowSlowly,
    HugeLine,
    HugeRandom,
    LeakSecret,
    NotUtf8,
    OpenMany,
    OpenPaths,
    Recurse,
    WaitForMany,
    WriteFile,
);
