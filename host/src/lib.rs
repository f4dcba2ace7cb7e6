//! x
pub mod broker;
pub mod client;
pub mod clock;
pub mod config;
pub mod json;
pub mod eager;
mod outage;
pub mod outcome;
pub mod payload;
pub mod registry;
pub mod retry;
pub mod sandbox;
pub mod sender;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod worker;
