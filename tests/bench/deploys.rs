//! Deploying: swaps under load, and a host's start with many modules in its cache.

use std::process::Command;
use std::time::Instant;

use support::WorkerProcess;

use crate::bench::wait_for;
use crate::figures::tell;

/// Swaps of one module under load, good files and bad ones by turns: how soon a good one serves,
/// and what memory the worker takes.
pub(crate) fn swaps(warm_up: usize, count: usize) {
    let swaps = support::swaps::swap_under_load(warm_up, count);
    tell("a good file serves after", swaps.visible_after);
    println!(
        "{count} swaps, {} jobs by {} versions, none failed; resident memory {:.1} MiB before, {:.1} MiB after ({:+.1} %)",
        swaps.jobs,
        swaps.versions,
        mib(swaps.at_start_kib),
        mib(swaps.at_end_kib),
        100.0 * (mib(swaps.at_end_kib) / mib(swaps.at_start_kib) - 1.0),
    );
}

#[allow(clippy::cast_precision_loss, reason = "memory of a process in KiB is far below 2^52")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The start of a worker with so many modules, each of which is in the code cache, and of one
/// with a single module, by turns.
pub(crate) fn cached(host: &str, module: &str, modules: usize, runs: usize) {
    let bytes = std::fs::read(module).unwrap();
    let mut folders = Vec::new();
    for count in [1, modules] {
        let folder = std::env::temp_dir().join(support::servers::unique("bench"));
        std::fs::create_dir_all(folder.join("jobs")).unwrap();
        for number in 0..count {
            let renamed = renamed(&bytes, number);
            std::fs::write(folder.join(format!("jobs/module-{number:03}.wasm")), renamed).unwrap();
        }
        // Compiles them, and has the database know them.
        start(host, &folder);
        folders.push((count, folder, Vec::new()));
    }
    for _ in 0..runs {
        for (_, folder, times) in &mut folders {
            times.push(start(host, folder));
        }
    }
    for (count, folder, times) in folders {
        tell(&format!("a start with {count} modules in the cache, until ready"), times);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Another module with another job: the adder's, with its number in the job's name.
fn renamed(bytes: &[u8], number: usize) -> Vec<u8> {
    const NAME: &[u8] = b"adder_job";
    let other = format!("adder_{number:03}");
    let mut bytes = bytes.to_vec();
    let found: Vec<usize> =
        (0..bytes.len() - NAME.len()).filter(|&at| bytes[at..].starts_with(NAME)).collect();
    assert!(!found.is_empty(), "the adder's job has another name");
    for at in found {
        bytes[at..at + NAME.len()].copy_from_slice(other.as_bytes());
    }
    bytes
}

fn start(host: &str, folder: &std::path::Path) -> std::time::Duration {
    let mut command = Command::new(host);
    command.args(["worker", "bench"]).current_dir(folder);
    let begun = Instant::now();
    let mut worker = WorkerProcess::spawn(command);
    // The first start compiles all of them.
    wait_for("a worker that is ready", || worker.log().iter().any(|line| line.contains("ready: ")));
    let took = begun.elapsed();
    let refused = worker.log().iter().filter(|line| line.contains("refused")).count();
    assert_eq!(refused, 0, "{}", worker.shown());
    worker.terminate();
    took
}
