//! A module that describes two jobs of one name. The SDK compiles none such, so this one is made
//! on the bare bindings, as by an SDK of another language.

// The bindings' exports are there in a component only.
#![cfg(target_arch = "wasm32")]

use sqjobs_sdk::bindings::exports::sqjobs::job::job::{
    Context, Failure, FailureReport, Guest, ModuleDescription,
};
use sqjobs_sdk::bindings::sqjobs::job::types::JobDescription;

struct NameClash;

impl Guest for NameClash {
    fn describe() -> ModuleDescription {
        let job = JobDescription {
            name: "twin".to_owned(),
            queue: None,
            records_result: true,
            timeout_ms: None,
            retry: None,
            periodic: None,
            unique: None,
            extra: Vec::new(),
        };
        ModuleDescription {
            sdk: "by hand".to_owned(),
            jobs: vec![job.clone(), job],
            extra: Vec::new(),
        }
    }

    fn begin(_context: Context, _args: String, _kwargs: String) -> Result<(), Failure> {
        Ok(())
    }

    fn set_up() -> Result<(), Failure> {
        Ok(())
    }

    fn run() -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn tear_down() -> Result<(), Failure> {
        Ok(())
    }

    fn on_success(_result: Option<String>) -> Result<(), Failure> {
        Ok(())
    }

    fn on_failure(_report: FailureReport) -> Result<(), Failure> {
        Ok(())
    }
}

sqjobs_sdk::bindings::export_bindings!(NameClash with_types_in sqjobs_sdk::bindings);
