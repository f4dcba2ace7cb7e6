//! Jobs that end in every way a host must know, for the host's tests. What a job is told comes as
//! positional arguments; stages have their WIT names (`set-up`, `run`, ...).

mod children;
mod effects;
mod failures;
mod look_around;
mod options;
mod resources;
mod results;
mod stages;
mod traps;

use children::{AddChildren, Chain, ProgressClock, ProgressJob};
use effects::{Effect, UnrecordedEffect};
use failures::{
    FailIn, FailPermanent, FailRetryAfter, FailThenSleep, FailTransient, FailUntil, NulError,
};
use look_around::LookAround;
use options::{Described, Hurried, Single, SlowUnrecorded, Unrecorded};
use resources::{Allocate, Print, SleepMs, Spin};
use results::{BadResult, BigResult, NoResult, NulResult};
use stages::{Counter, Stages};
use traps::{Exit, PanicJob, TrapIn};

sqjobs_sdk::export!(
    AddChildren,
    Allocate,
    BadResult,
    BigResult,
    Chain,
    Counter,
    Described,
    Effect,
    Exit,
    FailIn,
    FailPermanent,
    FailRetryAfter,
    FailThenSleep,
    FailTransient,
    FailUntil,
    Hurried,
    LookAround,
    NoResult,
    NulError,
    NulResult,
    PanicJob,
    Print,
    ProgressClock,
    ProgressJob,
    Single,
    SleepMs,
    SlowUnrecorded,
    Spin,
    Stages,
    TrapIn,
    Unrecorded,
    UnrecordedEffect,
);
