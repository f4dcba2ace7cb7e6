//! Engine settings and the epoch ticker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::{Config, Enabled, Engine, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails};

/// Time between two epoch ticks: how long a busy guest keeps its thread before it yields.
pub const TICK: Duration = Duration::from_millis(10);

/// Instances beside those of running attempts: `describe` of modules that are being loaded.
const RESERVE: u32 = 8;
/// Core instances of one component. A Rust module has 4; one that `componentize-py` built, with
/// its shared libraries, about 30.
pub(super) const CORE_INSTANCES_PER_COMPONENT: u32 = 100;
/// Linear memories of one component. Each slot reserves 4 GiB of address space, not of memory.
pub(super) const MEMORIES_PER_COMPONENT: u32 = 4;
/// Tables of one component.
pub(super) const TABLES_PER_COMPONENT: u32 = 16;
/// Elements of one table. A Python module's has about 20,000.
const TABLE_ELEMENTS: usize = 100_000;
/// Bytes of stack that a guest's calls may take. It belongs to the engine, so it is one value for
/// all jobs of a process.
const STACK_BYTES: usize = 512 << 10;

/// Slots that keep the memory image of a module which no attempt runs now. Beyond it a new module
/// takes the place of an old one: with every version a file ever held they would only add up.
const WARM_SLOTS: u32 = 32;

/// Settings of the engine, the same wherever a module's compiled code may come from.
pub(super) fn config(instances: u32) -> Config {
    let slots = instances.saturating_add(RESERVE);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .max_component_instance_size(8 << 20)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(MEMORIES_PER_COMPONENT)
        .max_tables_per_component(TABLES_PER_COMPONENT)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_COMPONENT))
        .max_core_instance_size(8 << 20)
        .total_memories(slots.saturating_mul(MEMORIES_PER_COMPONENT))
        .total_tables(slots.saturating_mul(TABLES_PER_COMPONENT))
        .table_elements(TABLE_ELEMENTS)
        .total_stacks(slots)
        .max_unused_warm_slots(WARM_SLOTS)
        .async_stack_keep_resident(32 << 10);
    // Pages that an instance wrote to are wiped instead of unmapped, which is cheaper than the
    // faults after, where the kernel tells which they are (Linux 6.7). Where it can't, the first
    // so many bytes would be wiped, touched or not: those of a Rust module are the far end of its
    // stack, so that would cost time and a quarter of a megabyte for each slot, for nothing.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(256 << 10)
            .table_keep_resident(64 << 10);
    }
    let mut config = Config::new();
    config
        .allocation_strategy(pool)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .max_wasm_stack(STACK_BYTES)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config
}

/// An engine that compiles for those that run guests, and runs none.
pub(super) fn compiling() -> wasmtime::Result<Engine> {
    Engine::new(&config(0))
}

/// The engine that runs every guest of this process.
pub(super) struct RunningEngine {
    pub(super) engine: Engine,
    is_stopped: Arc<AtomicBool>,
}

impl RunningEngine {
    /// Makes an engine for up to `instances` attempts at once, and starts its ticker.
    pub(super) fn start(instances: usize) -> wasmtime::Result<Self> {
        let instances = u32::try_from(instances).unwrap_or(u32::MAX);
        let engine = Engine::new(&config(instances))?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (weak, stop) = (engine.weak(), is_stopped.clone());
        // A thread of its own: a tick must come even when every thread of the runtime is busy.
        std::thread::Builder::new().name("epoch".into()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                let Some(engine) = weak.upgrade() else { return };
                engine.increment_epoch();
            }
        })?;
        Ok(Self { engine, is_stopped })
    }
}

impl Drop for RunningEngine {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }
}
