//! A neighbour's jobs beside guests that compute for ever, against the same jobs alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqjobs::outcome::Outcome;
use sqjobs::sandbox::limits::Limits;

use crate::figures::{at, tell};
use crate::sandboxed::{Sandboxed, call};

/// Rounds; each has a part with spinning guests and a part without, so that whatever else the
/// machine does hits both alike.
const ROUNDS: usize = 20;

/// Attempts of a quick job, from being spawned to their end, on a runtime as a worker has it:
/// alone, beside one spinning guest, and beside two for each processor.
pub(crate) fn neighbour(spinner: &str, quick: &str, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let beside = [0, 1, 2 * cores];
    let mut times = beside.map(|_| Vec::new());
    runtime.block_on(async {
        let spinner = Arc::new(Sandboxed::load(spinner).await);
        let quick = Arc::new(Sandboxed::load(quick).await);
        for _ in 0..ROUNDS {
            for (spinning, times) in beside.iter().zip(&mut times) {
                let guests: Vec<_> = (0..*spinning)
                    .map(|_| {
                        let spinner = spinner.clone();
                        let limits =
                            Limits { timeout: Duration::from_secs(600), ..Limits::default() };
                        tokio::spawn(async move {
                            spinner.attempt(&call("spin", "[]", limits)).await;
                        })
                    })
                    .collect();
                for _ in 0..count / ROUNDS {
                    let (begun, quick) = (Instant::now(), quick.clone());
                    let attempt = tokio::spawn(async move {
                        let call = call("adder_job", "[1, 2, 3, 4]", Limits::default());
                        quick.attempt(&call).await.outcome
                    });
                    assert_eq!(attempt.await.unwrap(), Outcome::Success(Some("10".into())));
                    times.push(begun.elapsed());
                }
                for guest in guests {
                    guest.abort();
                    let _ = guest.await; // it was aborted
                }
            }
        }
    });
    let alone = at(&mut times[0], 990);
    for (spinning, mut times) in beside.into_iter().zip(times) {
        let ratio = at(&mut times, 990).as_secs_f64() / alone.as_secs_f64();
        tell(&format!("a neighbour's attempt beside {spinning} spinning guests"), times);
        println!("  p99 is {ratio:.2} times that without");
    }
}
