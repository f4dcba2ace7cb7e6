//! Path 3: periodic jobs.

pub mod crontab;
pub mod schedule;
pub mod zone;

#[cfg(test)]
mod walk_tests;
