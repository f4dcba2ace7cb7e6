//! Limits as the operator sets them: for all jobs, for a module, for a job, and the most that any
//! may have.

use std::time::Duration;

use super::read::Place;
use crate::registry::definition::MAX_TIMEOUT;
use crate::sandbox::limits::Limits;

/// The keys of limits in every table that has them.
pub(super) const KEYS: [&str; 9] = [
    "timeout",
    "cpu",
    "memory",
    "host-memory",
    "result",
    "log",
    "added-jobs",
    "handles",
    "connections",
];

/// What one table says of limits; what is `None` is left to the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// Wall-clock time of one attempt, 1 ms to 12 h.
    pub timeout: Option<Duration>,
    /// Processor time of one attempt, 1 ms to 12 h.
    pub cpu: Option<Duration>,
    /// Bytes of memory of one instance, 64 KiB to 4 GiB.
    pub memory: Option<usize>,
    /// Bytes handed to the host in one call, 64 KiB to 1 GiB.
    pub host_memory: Option<usize>,
    /// Bytes of the result, 1 KiB to 16 MiB.
    pub result: Option<usize>,
    /// Bytes of log and output, up to 16 MiB.
    pub log: Option<usize>,
    /// Jobs added by one attempt, up to 100,000.
    pub added_jobs: Option<usize>,
    /// Files, streams and sockets open at once, 10 to 100,000.
    pub handles: Option<usize>,
    /// HTTP requests at once and TCP connections in all, up to 1,000.
    pub connections: Option<usize>,
}

impl LimitSettings {
    pub(super) fn read(place: &mut Place) -> Self {
        let least_time = Duration::from_millis(1);
        let count = |number: Option<u64>| number.and_then(|number| usize::try_from(number).ok());
        Self {
            timeout: place.duration("timeout", least_time, MAX_TIMEOUT),
            cpu: place.duration("cpu", least_time, MAX_TIMEOUT),
            memory: place.bytes("memory", 64 << 10, 4 << 30),
            host_memory: place.bytes("host-memory", 64 << 10, 1 << 30),
            result: place.bytes("result", 1 << 10, 16 << 20),
            log: place.bytes("log", 0, 16 << 20),
            added_jobs: count(place.number("added-jobs", 0, 100_000)),
            handles: count(place.number("handles", 10, 100_000)),
            connections: count(place.number("connections", 0, 1000)),
        }
    }

    /// These settings, and where they say nothing those.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            timeout: self.timeout.or(weaker.timeout),
            cpu: self.cpu.or(weaker.cpu),
            memory: self.memory.or(weaker.memory),
            host_memory: self.host_memory.or(weaker.host_memory),
            result: self.result.or(weaker.result),
            log: self.log.or(weaker.log),
            added_jobs: self.added_jobs.or(weaker.added_jobs),
            handles: self.handles.or(weaker.handles),
            connections: self.connections.or(weaker.connections),
        }
    }

    /// Tells each setting of `place` that is beyond the operator's cap.
    pub(super) fn check(&self, caps: &Self, place: &mut Place) {
        let mut check = |key: &str, is_beyond: bool| {
            if is_beyond {
                place.fault(key, "more than [caps] allows; lower it, or raise the cap");
            }
        };
        check("timeout", is_beyond(self.timeout, caps.timeout));
        check("cpu", is_beyond(self.cpu, caps.cpu));
        check("memory", is_beyond(self.memory, caps.memory));
        check("host-memory", is_beyond(self.host_memory, caps.host_memory));
        check("result", is_beyond(self.result, caps.result));
        check("log", is_beyond(self.log, caps.log));
        check("added-jobs", is_beyond(self.added_jobs, caps.added_jobs));
        check("handles", is_beyond(self.handles, caps.handles));
        check("connections", is_beyond(self.connections, caps.connections));
    }

    /// The limits of an attempt: these settings, then the built-in defaults, or the operator's
    /// caps where those are lower.
    #[must_use]
    pub fn complete(self, caps: &Self) -> Limits {
        let default = Limits::default();
        let size = |own: Option<usize>, cap: Option<usize>, default: usize| {
            own.unwrap_or_else(|| default.min(cap.unwrap_or(usize::MAX)))
        };
        Limits {
            timeout: self
                .timeout
                .unwrap_or_else(|| default.timeout.min(caps.timeout.unwrap_or(MAX_TIMEOUT))),
            cpu: self.cpu.or(caps.cpu),
            memory_bytes: size(self.memory, caps.memory, default.memory_bytes),
            host_memory_bytes: size(self.host_memory, caps.host_memory, default.host_memory_bytes),
            result_bytes: size(self.result, caps.result, default.result_bytes),
            log_bytes: size(self.log, caps.log, default.log_bytes),
            added_jobs: size(self.added_jobs, caps.added_jobs, default.added_jobs),
            handles: size(self.handles, caps.handles, default.handles),
            connections: size(self.connections, caps.connections, default.connections),
            generations: default.generations,
        }
    }
}

fn is_beyond<T: PartialOrd>(own: Option<T>, cap: Option<T>) -> bool {
    matches!((own, cap), (Some(own), Some(cap)) if own > cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_table_wins_and_a_cap_bounds_the_built_in_default() {
        let job = LimitSettings { memory: Some(1 << 20), ..LimitSettings::default() };
        let module =
            LimitSettings { memory: Some(2 << 20), log: Some(7), ..LimitSettings::default() };
        let caps = LimitSettings {
            memory: Some(8 << 20),
            handles: Some(20),
            cpu: Some(Duration::from_secs(9)),
            ..LimitSettings::default()
        };
        let limits = job.or(module).complete(&caps);
        assert_eq!((limits.memory_bytes, limits.log_bytes), (1 << 20, 7));
        assert_eq!((limits.handles, limits.cpu), (20, Some(Duration::from_secs(9))));
        assert_eq!(limits.connections, Limits::default().connections);
    }
}
