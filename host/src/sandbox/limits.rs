//! What one attempt may use: time, memory over the whole instance, output, further jobs, handles.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use super::engine::{CORE_INSTANCES_PER_COMPONENT, MEMORIES_PER_COMPONENT, TABLES_PER_COMPONENT};

/// Bounds of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Wall-clock time of the stages from `begin` to `tear-down`, host calls included.
    pub timeout: Duration,
    /// Processor time of those stages; `None` leaves it to `timeout`, which it can't exceed.
    pub cpu: Option<Duration>,
    /// Bytes of all linear memories and tables together.
    pub memory_bytes: usize,
    /// Bytes that the guest may hand to the host in one call, which the host must hold meanwhile.
    pub host_memory_bytes: usize,
    /// Bytes of the result's JSON text.
    pub result_bytes: usize,
    /// Bytes of log lines, standard output and standard error together; more is dropped.
    pub log_bytes: usize,
    /// Jobs that the attempt may add.
    pub added_jobs: usize,
    /// Files, folders, streams, sockets, pollables and HTTP bodies that are open at once.
    pub handles: usize,
    /// HTTP requests under way at once, and TCP connections that are opened in all.
    pub connections: usize,
    /// How many generations of added jobs a job that nobody's job added may lead to.
    pub generations: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            cpu: None,
            memory_bytes: 256 << 20,
            host_memory_bytes: 16 << 20,
            result_bytes: 1 << 20,
            log_bytes: 64 << 10,
            added_jobs: 1000,
            handles: 500,
            connections: 16,
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

    // The pool has so many slots for each attempt: a guest that had more would take a neighbour's.

    fn instances(&self) -> usize {
        CORE_INSTANCES_PER_COMPONENT as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_PER_COMPONENT as usize
    }

    fn tables(&self) -> usize {
        TABLES_PER_COMPONENT as usize
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

    /// Two memories and a table that grow in turns, each far below the limit by itself.
    #[test]
    fn a_guest_that_grows_several_memories_and_tables_ends_at_the_common_limit() {
        let text = r#"(module
            (memory $a 1) (memory $b 1) (table $t 0 funcref)
            (func (export "grow") (loop $again
                (drop (memory.grow $a (i32.const 1)))
                (drop (memory.grow $b (i32.const 1)))
                (drop (table.grow $t (ref.null func) (i32.const 1000)))
                (br $again))))"#;
        let engine = wasmtime::Engine::default();
        let module = wasmtime::Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let limit = 1 << 20;
        let mut store = wasmtime::Store::new(&engine, MemoryMeter::new(limit));
        store.limiter(|meter| meter);
        let instance = wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
        let grow = instance.get_typed_func::<(), ()>(&mut store, "grow").unwrap();
        let error = grow.call(&mut store, ()).unwrap_err();
        assert!(error.downcast_ref::<OutOfMemory>().is_some(), "{error}");
        let used = store.data().used();
        assert!(used > limit - (64 << 10) && used <= limit, "{used}");
    }
}
