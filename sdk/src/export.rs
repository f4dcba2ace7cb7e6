//! From the component's exports to a job's stages: what [`export!`](crate::export) expands to.
//!
//! One instance serves one attempt. `begin` makes the job and keeps it here; the stages that
//! follow are calls on it.

use std::cell::RefCell;

use serde::Serialize;

use crate::bindings::exports::sqjobs::job::job as wit;
use crate::bindings::sqjobs::job::types::JobDescription;
use crate::{Call, Failure, FailureReport, Job, OrFail, Result, log};

/// Makes a module of one or more jobs: `export!(Adder);`, `export!(Adder, Mailer);`. Once in a
/// crate of type `cdylib`.
///
/// Two jobs of one name, or a name that the host would refuse, do not compile:
///
/// ```compile_fail
/// # use sqjobs_sdk::prelude::*;
/// # #[derive(Default)]
/// # struct Adder;
/// # impl Job for Adder {
/// #     const NAME: &str = "adder";
/// #     fn run(&mut self, _: &Call) -> Result<impl Serialize> { Ok(()) }
/// # }
/// export!(Adder, Adder);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export {
    ($($job:ty),+ $(,)?) => {
        const _: () = {
            const _: () = $crate::export::check_names(&[$(<$job as $crate::Job>::NAME),+]);

            struct Module;

            impl $crate::export::Module for Module {
                const JOBS: &'static [$crate::export::Entry] =
                    &[$($crate::export::Entry::of::<$job>()),+];
            }

            // Natively the jobs are run by unit tests only, but all of this is compiled.
            const _: &[$crate::export::Entry] = <Module as $crate::export::Module>::JOBS;

            #[cfg(target_arch = "wasm32")]
            $crate::bindings::export_bindings!(Module with_types_in $crate::bindings);
        };
    };
}

/// Refuses, while the module is compiled, names that the host would refuse.
#[doc(hidden)]
pub const fn check_names(names: &[&str]) {
    let mut i = 0;
    while i < names.len() {
        let name = names[i].as_bytes();
        assert!(!name.is_empty(), "a job's `NAME` is empty");
        assert!(name.len() <= 256, "a job's `NAME` is longer than 256 bytes");
        let mut at = 0;
        while at < name.len() {
            // U+0000 to U+001F, U+007F, and U+0080 to U+009F as UTF-8.
            let is_c1 = name[at] == 0xC2 && name[at + 1] < 0xA0;
            let is_control = name[at] < 0x20 || name[at] == 0x7F || is_c1;
            assert!(!is_control, "a job's `NAME` has a control character in it");
            at += 1;
        }
        let mut j = 0;
        while j < i {
            assert!(
                !equal(name, names[j].as_bytes()),
                "two jobs of this module have one `NAME`; each needs its own"
            );
            j += 1;
        }
        i += 1;
    }
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The jobs of a module.
#[doc(hidden)]
pub trait Module {
    /// At least one, with names that differ.
    const JOBS: &'static [Entry];
}

/// One job of a module, its type put behind functions.
#[doc(hidden)]
pub struct Entry {
    name: &'static str,
    describe: fn() -> JobDescription,
    make: fn() -> Box<dyn Stages>,
}

impl Entry {
    /// The entry of a job.
    pub const fn of<J: Job>() -> Self {
        Self {
            name: J::NAME,
            describe: || J::options().describe(J::NAME, J::QUEUE),
            make: || Box::new(Erased(J::default())),
        }
    }
}

/// A job without its type: the result is text already.
pub(crate) trait Stages {
    fn set_up(&mut self, call: &Call) -> Result<()>;
    fn run(&mut self, call: &Call) -> Result<Option<String>>;
    fn tear_down(&mut self, call: &Call) -> Result<()>;
    fn on_success(&mut self, call: &Call, result: Option<&str>) -> Result<()>;
    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()>;
}

/// See [`Stages`]. Not a blanket implementation: each method would then have two traits.
pub(crate) struct Erased<J>(pub(crate) J);

impl<J: Job> Stages for Erased<J> {
    fn set_up(&mut self, call: &Call) -> Result<()> {
        self.0.set_up(call)
    }

    fn run(&mut self, call: &Call) -> Result<Option<String>> {
        to_json(&self.0.run(call)?)
    }

    fn tear_down(&mut self, call: &Call) -> Result<()> {
        self.0.tear_down(call)
    }

    fn on_success(&mut self, call: &Call, result: Option<&str>) -> Result<()> {
        self.0.on_success(call, result)
    }

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        self.0.on_failure(call, report)
    }
}

/// The text of a result; none for `()` and its like: a type that has nothing to say (size zero,
/// `null` in JSON), while a `None` that a job returns on purpose is a `null`.
fn to_json<T: Serialize>(result: &T) -> Result<Option<String>> {
    let text = serde_json::to_string(result).or_permanent("the result is not JSON")?;
    let is_nothing = size_of::<T>() == 0 && text == "null";
    Ok((!is_nothing).then_some(text))
}

/// What `begin` made, for the stages that follow.
struct Attempt {
    call: Call,
    job: Box<dyn Stages>,
}

thread_local! {
    /// The attempt that this instance serves.
    static ATTEMPT: RefCell<Option<Attempt>> = const { RefCell::new(None) };
}

/// Calls one stage of the job that `begin` made.
fn stage<T>(run: impl FnOnce(&mut Attempt) -> Result<T>) -> Result<T, wit::Failure> {
    ATTEMPT.with_borrow_mut(|attempt| match attempt {
        Some(attempt) => run(attempt).map_err(wit::Failure::from),
        None => Err(Failure::permanent("a stage was called before `begin`").into()),
    })
}

impl<M: Module> wit::Guest for M {
    fn describe() -> wit::ModuleDescription {
        log::install();
        wit::ModuleDescription {
            sdk: concat!("sqjobs-sdk ", env!("CARGO_PKG_VERSION")).to_owned(),
            jobs: M::JOBS.iter().map(|entry| (entry.describe)()).collect(),
            extra: Vec::new(),
        }
    }

    fn begin(context: wit::Context, args: String, kwargs: String) -> Result<(), wit::Failure> {
        log::install();
        let Some(entry) = M::JOBS.iter().find(|entry| entry.name == context.name) else {
            let names: Vec<_> = M::JOBS.iter().map(|entry| entry.name).collect();
            let message =
                format!("this module has no job `{}`; it has {}", context.name, names.join(", "));
            return Err(Failure::permanent(message).into());
        };
        let call = Call::new(context, args, kwargs);
        ATTEMPT.set(Some(Attempt { call, job: (entry.make)() }));
        Ok(())
    }

    fn set_up() -> Result<(), wit::Failure> {
        stage(|attempt| attempt.job.set_up(&attempt.call))
    }

    fn run() -> Result<Option<String>, wit::Failure> {
        stage(|attempt| attempt.job.run(&attempt.call))
    }

    fn tear_down() -> Result<(), wit::Failure> {
        stage(|attempt| attempt.job.tear_down(&attempt.call))
    }

    fn on_success(result: Option<String>) -> Result<(), wit::Failure> {
        stage(|attempt| attempt.job.on_success(&attempt.call, result.as_deref()))
    }

    fn on_failure(report: wit::FailureReport) -> Result<(), wit::Failure> {
        stage(|attempt| attempt.job.on_failure(&attempt.call, &report.into()))
    }
}
