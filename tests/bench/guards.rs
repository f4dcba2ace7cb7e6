//! What each guard around a guest costs: attempts with all of them against attempts without one.
//!
//! The host has no way to leave a guard out, so a small host stands here: the same engine
//! settings, the same world, and all that the guests of this measurement call. Each round runs
//! one attempt of every kind, so that whatever else the machine does hits all alike.

use std::path::Path;
use std::time::{Duration, Instant};

use sqjobs::sandbox::bindings::JobModulePre;
use sqjobs::sandbox::bindings::sqjobs::job::types::Context;
use sqjobs::sandbox::engine_settings;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, ResourceLimiter, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::figures::at;

/// A guard that an attempt can be run without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    Epochs,
    Limiter,
    HostMemory,
    Wasi,
    Http,
}

/// The kinds of attempts: with all guards, and without one of them.
const KINDS: [(Option<Guard>, &str); 6] = [
    (None, "all"),
    (Some(Guard::Epochs), "epochs"),
    (Some(Guard::Limiter), "the memory limiter"),
    (Some(Guard::HostMemory), "the limit of one call's data"),
    (Some(Guard::Wasi), "a WASI context"),
    (Some(Guard::Http), "wasi:http linked"),
];

/// Store data of an attempt.
struct Data {
    wasi: Option<WasiCtx>,
    http: Option<(WasiHttpCtx, NoHttp)>,
    table: ResourceTable,
    used: usize,
}

/// Linked, and never called here.
struct NoHttp;

type Answer = (hyper::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for NoHttp {
    fn send_request(
        &mut self,
        _request: hyper::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, Error>> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }

    fn p2_error_from_hyper(&mut self, _error: &hyper::Error) -> ErrorCode {
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, _error: &std::io::Error) -> ErrorCode {
        ErrorCode::DestinationUnavailable
    }

    fn p2_error_from_tls(&mut self, _error: &std::io::Error) -> ErrorCode {
        ErrorCode::TlsProtocolError
    }
}

impl WasiView for Data {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.as_mut().expect("linked only where there is a context");
        WasiCtxView { ctx, table: &mut self.table }
    }
}

impl WasiHttpView for Data {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let (ctx, hooks) = self.http.as_mut().expect("linked only where there is a context");
        WasiHttpCtxView { ctx, table: &mut self.table, hooks }
    }
}

impl ResourceLimiter for Data {
    fn memory_growing(
        &mut self,
        now: usize,
        then: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.used += then.saturating_sub(now);
        Ok(self.used <= 256 << 20)
    }

    fn table_growing(
        &mut self,
        now: usize,
        then: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.used += then.saturating_sub(now) * 8;
        Ok(self.used <= 256 << 20)
    }

    fn instances(&self) -> usize {
        100
    }

    fn memories(&self) -> usize {
        4
    }

    fn tables(&self) -> usize {
        16
    }
}

/// Makes attempts of one kind.
struct Kind {
    without: Option<Guard>,
    engine: Engine,
    pre: JobModulePre<Data>,
}

impl Kind {
    fn new(module: &Path, without: Option<Guard>) -> wasmtime::Result<Self> {
        let mut settings = engine_settings(64);
        settings.epoch_interruption(without != Some(Guard::Epochs));
        let engine = Engine::new(&settings)?;
        let component = Component::from_file(&engine, module)?;
        let mut linker = Linker::new(&engine);
        if without != Some(Guard::Wasi) {
            wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        }
        if !matches!(without, Some(Guard::Http | Guard::Wasi)) {
            wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        }
        // What none of the attempts here calls.
        linker.define_unknown_imports_as_traps(&component)?;
        let pre = JobModulePre::new(linker.instantiate_pre(&component)?)?;
        Ok(Self { without, engine, pre })
    }

    /// One attempt, all its stages, as the host calls them.
    async fn attempt(&self, args: &str) -> wasmtime::Result<Option<String>> {
        let has = |guard| self.without != Some(guard);
        let data = Data {
            wasi: has(Guard::Wasi).then(|| WasiCtx::builder().build()),
            http: has(Guard::Http).then(|| (WasiHttpCtx::new(), NoHttp)),
            table: ResourceTable::new(),
            used: 0,
        };
        let mut store = Store::new(&self.engine, data);
        if has(Guard::HostMemory) {
            store.set_hostcall_fuel(16 << 20);
        }
        if has(Guard::Limiter) {
            store.limiter(|data| data);
        }
        if has(Guard::Epochs) {
            store.set_epoch_deadline(1);
            store.epoch_deadline_async_yield_and_update(1);
        }
        let context = Context {
            id: "00000000-0000-4000-8000-000000000001".into(),
            name: "adder_job".into(),
            queue: String::new(),
            attempt: 1,
            max_attempts: 1,
            enqueued_at_ms: None,
            fire_time_ms: None,
            schedule: None,
            extra: Vec::new(),
        };
        let guest = self.pre.instantiate_async(&mut store).await?;
        let job = guest.sqjobs_job_job();
        let failed = |failure| wasmtime::Error::msg(format!("{failure:?}"));
        job.call_begin(&mut store, &context, args, "{}").await?.map_err(failed)?;
        job.call_set_up(&mut store).await?.map_err(failed)?;
        let result = job.call_run(&mut store).await?.map_err(failed)?;
        job.call_tear_down(&mut store).await?.map_err(failed)?;
        job.call_on_success(&mut store, result.as_deref()).await?.map_err(failed)?;
        Ok(result)
    }
}

/// Attempts of the adder with four numbers, where making an instance is all, and with many,
/// where the guest computes.
pub(crate) fn limits(module: &str, rounds: usize) {
    let kinds = KINDS.map(|(without, _)| Kind::new(Path::new(module), without).unwrap());
    // The host's ticker, for every engine.
    for kind in &kinds {
        let engine = kind.engine.weak();
        std::thread::spawn(move || {
            while let Some(engine) = engine.upgrade() {
                std::thread::sleep(sqjobs::sandbox::TICK);
                engine.increment_epoch();
            }
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (count, rounds) in [(4, rounds), (20_000, rounds / 10)] {
        let numbers: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        let args = format!("[{}]", numbers.join(","));
        let sum = (0..count).sum::<u64>().to_string();
        let mut times = KINDS.map(|_| Vec::new());
        runtime.block_on(async {
            for round in 0..rounds + rounds / 10 {
                for (kind, times) in kinds.iter().zip(&mut times) {
                    let begun = Instant::now();
                    let result = kind.attempt(&args).await.unwrap();
                    let took = begun.elapsed();
                    assert_eq!(result.as_deref(), Some(sum.as_str()));
                    if round >= rounds / 10 {
                        times.push(took);
                    }
                }
            }
        });
        tell(count, rounds, times);
    }
}

fn tell(numbers: u64, rounds: usize, times: [Vec<Duration>; KINDS.len()]) {
    let middles = times.map(|mut times| at(&mut times, 500));
    println!(
        "an attempt that adds {numbers} numbers, with all limits: p50 {:?} ({rounds} runs)",
        middles[0]
    );
    for ((_, what), without) in KINDS.iter().zip(middles).skip(1) {
        let ratio = middles[0].as_secs_f64() / without.as_secs_f64();
        println!("  {what}: {ratio:.3} times one without ({without:?})");
    }
}
