//! What one attempt may use: memory over the whole instance, time, result and log bytes.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// Bounds of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Wall-clock time of the stages from `begin` to `tear-down`, host calls included.
    pub timeout: Duration,
    /// Bytes of all linear memories and tables together.
    pub memory_bytes: usize,
    /// Bytes of the result's JSON text.
    pub result_bytes: usize,
    /// Bytes of log lines, standard output and standard error together; more is dropped.
    pub log_bytes: usize,
    /// Jobs that the attempt may add.
    pub added_jobs: usize,
    /// How many generations of added jobs a job that nobody's job added may lead to.
    pub generations: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            memory_bytes: 256 << 20,
            result_bytes: 1 << 20,
            log_bytes: 64 << 10,
            added_jobs: 1000,
            generations: 16,
        }
    }
}

/// Time that `on-success` and `on-failure` have, each.
pub const HANDLER_DEADLINE: Duration = Duration::from_secs(10);

/// The guest wanted more memory than it may have.
#[derive(Debug, thiserror::Error)]
#[error("wanted {wanted} bytes of memory and may have {limit}")]
pub struct OutOfMemory {
    /// What it would have had in all.
    pub wanted: usize,
    /// What it may have.
    pub limit: usize,
}

/// Counts the memory of an instance over all its memories and tables: wasmtime asks for each of
/// them by itself, so a limit per memory would be multiplied by their number.
#[derive(Debug)]
pub(super) struct MemoryMeter {
    limit: usize,
    used: usize,
}

impl MemoryMeter {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0 }
    }

    /// Most bytes that the instance has had.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Fails instead of refusing: most guests abort without a word when memory is refused.
    fn grow(&mut self, current: usize, desired: usize) -> wasmtime::Result<bool> {
        let wanted = self.used.saturating_add(desired.saturating_sub(current));
        if wanted > self.limit {
            return Err(OutOfMemory { wanted, limit: self.limit }.into());
        }
        self.used = wanted;
        Ok(true)
    }
}

impl ResourceLimiter for MemoryMeter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        const ELEMENT_BYTES: usize = 8;
        self.grow(current.saturating_mul(ELEMENT_BYTES), desired.saturating_mul(ELEMENT_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_over_all_memories_and_tables() {
        let mut meter = MemoryMeter::new(1000);
        assert!(meter.memory_growing(0, 600, None).unwrap());
        assert!(meter.table_growing(0, 40, None).unwrap());
        assert!(meter.memory_growing(600, 700, None).is_err());
        assert!(meter.memory_growing(0, 80, None).unwrap());
        assert_eq!(meter.used(), 1000);
    }
}
