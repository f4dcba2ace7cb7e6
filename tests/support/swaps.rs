//! Many swaps of one module under load: good files, broken ones, truncated ones and ones of
//! another world. Shared by a test and a measurement.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sqjobs::broker::local::LocalBroker;
use sqjobs::broker::{Broker as _, OutgoingMessage};

use crate::servers::RUNTIME;
use crate::versions::{digest, move_into_place, padded, version};
use crate::{Pair, Setup, WorkerProcess, wait};

/// Swaps whose memory is looked at for one figure.
pub const LOOKS: usize = 50;

/// What a run came to.
#[derive(Debug)]
pub struct Swaps {
    /// How long each good file took, from being written until it served.
    pub visible_after: Vec<Duration>,
    /// Jobs that ran, each once and with success.
    pub jobs: usize,
    /// Versions that ran one of them.
    pub versions: usize,
    /// Resident memory of the worker over the last swaps of the warm-up, in KiB: the median of
    /// [`LOOKS`] looks, since it rises and falls with the jobs that run.
    pub at_start_kib: u64,
    /// The same over the last swaps of all.
    pub at_end_kib: u64,
}

/// Deploys `count` files, one after the other, while jobs run, after `warm_up` others under the
/// same load: the statements and pages that each connection to SQLite keeps, the slots of the
/// pool, and the allocator's arenas fill up once, whatever is deployed.
///
/// # Panics
/// A job failed or ran twice, an attempt ran code of two versions, a good file did not serve, or
/// a bad one was not refused.
#[must_use]
pub fn swap_under_load(warm_up: usize, count: usize) -> Swaps {
    let setup = Setup::new(Pair::Embedded, &[]);
    let other_world = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/other-world.wat");
    let other_world = wat::parse_file(other_world).unwrap();
    setup.deploy_version("v0");
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    let (is_over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let producer = load(&setup, &is_over, &sent);

    let (mut at_start_kib, mut visible_after, mut rss) = (0, Vec::new(), Vec::new());
    for number in 1..=warm_up + count {
        if number == warm_up + 1 {
            at_start_kib = median_of_last(&rss);
            visible_after.clear();
        }
        let (bytes, is_good) = step(number, &other_world);
        let (refused, begun) = (refusals(&worker), Instant::now());
        if number.is_multiple_of(2) {
            move_into_place(&setup.versioned_file(), &bytes);
        } else {
            std::fs::write(setup.versioned_file(), &bytes).unwrap();
        }
        if is_good {
            worker.wait_for_line(&["serves which", &digest(&bytes)]);
            visible_after.push(begun.elapsed());
        } else {
            wait::until_true("the bad file to be refused", || refusals(&worker) > refused);
        }
        rss.push(rss_kib(&worker));
    }
    let at_end_kib = median_of_last(&rss);
    is_over.store(true, Ordering::Relaxed);
    producer.join().unwrap();
    setup.wait_until_drained();

    let table = setup.table("jobs");
    let done = format!("SELECT count(*) FROM {table} WHERE status = 'SUCCESS' AND attempts = 1");
    let jobs = usize::try_from(setup.query::<i64>(&done)).unwrap();
    assert_eq!(jobs, sent.load(Ordering::Relaxed), "a job failed, or ran twice");
    let versions = check_code(&setup, warm_up + count);
    assert_eq!(worker.terminate(), Some(0));
    Swaps { visible_after, jobs, versions, at_start_kib, at_end_kib }
}

/// Sends jobs until it is stopped; tells how many it sent.
fn load(setup: &Setup, is_over: &Arc<AtomicBool>, sent: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let file = setup.project.folder().join(".sqjobs/sqjobs.db");
    let (queue, is_over, sent) = (setup.queue.clone(), is_over.clone(), sent.clone());
    std::thread::spawn(move || {
        RUNTIME.block_on(async {
            let broker = LocalBroker::open(&file).await.unwrap();
            let queue = broker.queue(&queue).await.unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let message = || OutgoingMessage {
                    // Long enough for a swap to come while it runs.
                    body: r#"{"name": "which", "args": [100]}"#.to_owned(),
                    attributes: BTreeMap::new(),
                    delay_secs: 0,
                    group: None,
                    deduplication_id: None,
                };
                let messages: Vec<_> = (0..4).map(|_| message()).collect();
                for result in broker.send(&queue, &messages).await.unwrap() {
                    result.unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            broker.close().await;
        });
    })
}

fn refusals(worker: &WorkerProcess) -> usize {
    worker.log().iter().filter(|line| line.contains("refused a module")).count()
}

/// The median of the last [`LOOKS`]; 0 of none.
fn median_of_last(rss: &[u64]) -> u64 {
    let mut last = rss[rss.len().saturating_sub(LOOKS)..].to_vec();
    last.sort_unstable();
    last.get(last.len() / 2).copied().unwrap_or_default()
}

fn rss_kib(worker: &WorkerProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What is deployed at a step: its bytes, and whether they are good.
fn step(number: usize, other_world: &[u8]) -> (Vec<u8>, bool) {
    let good = version(&format!("v{number}"));
    match number % 5 {
        1 => (b"not wasm at all".to_vec(), false),
        3 if number.is_multiple_of(2) => (good[..good.len() * 2 / 3].to_vec(), false),
        3 => (other_world.to_vec(), false),
        _ => (good, true),
    }
}

/// Asserts that each attempt ran the code that its row names; tells how many versions ran.
fn check_code(setup: &Setup, count: usize) -> usize {
    let table = setup.table("jobs");
    let seen = format!(
        "SELECT group_concat(DISTINCT module_digest || '=' || replace(result, ',', ' ')) FROM {table}"
    );
    let seen = setup.query::<String>(&seen);
    let by_digest: BTreeMap<String, String> = (0..=count)
        .map(|number| (version(&format!("v{number}")), padded(&format!("v{number}"))))
        .map(|(bytes, marker)| (digest(&bytes), format!(r#"["{marker}" "{marker}"]"#)))
        .collect();
    for pair in seen.split(',') {
        let (digest, markers) = pair.split_once('=').unwrap();
        assert_eq!(by_digest[digest], markers, "mixed code");
    }
    seen.split(',').count()
}
