//! Measures what `docs/performance.md` tells. Run by `scripts/bench`, from a release build.
//!
//! ```text
//! sqjobs-bench attempt MODULE COUNT        fresh sandboxed attempts, one after the other
//! sqjobs-bench throughput HOST MODULE N    jobs through a real SQS server, and memory
//! sqjobs-bench ticks HOST COUNT BEATERS [MINUTES]  periodic entries due on a minute, or on several
//! sqjobs-bench requests HOST MODULE N      calls to SQS for each job of a full queue
//! sqjobs-bench idle HOST MODULE            receives of idle queues in a minute
//! sqjobs-bench straggler HOST MODULE       one job of 60 s among 999 of 10 ms
//! sqjobs-bench failover HOST MODULE RUNS   until a killed worker's jobs run again
//! sqjobs-bench drain HOST MODULE RUNS      from SIGTERM to the end
//! sqjobs-bench limits MODULE ROUNDS        attempts with all limits, and without one of them
//! sqjobs-bench neighbour OUTCOMES MODULE N attempts beside guests that compute for ever
//! sqjobs-bench overshoot OUTCOMES HOSTILE RUNS   how far past its limit a hostile guest gets
//! sqjobs-bench cached HOST MODULE N RUNS   starts with so many modules in the cache
//! sqjobs-bench swaps WARM_UP N             swaps under load; visibility, and memory
//! sqjobs-bench cancel HOST MODULE RUNS     until a job is cancelled
//! sqjobs-bench progress HOST MODULE RUNS   until a job's progress is seen
//! sqjobs-bench delayed HOST MODULE N       lateness of delayed jobs that are due in one minute
//! sqjobs-bench lists HOST ROWS             `list` and `status` on a large table
//! sqjobs-bench prune HOST MODULE ROWS      a large table pruned while jobs run
//! sqjobs-bench indexes HOST MODULE N       throughput with and without the indexes for lists
//! ```
#![allow(clippy::unwrap_used, reason = "what fails here ends the measurement")]

mod attempts;
mod bench;
mod deploys;
mod endings;
mod figures;
mod finished;
mod guards;
mod indexes;
mod neighbour;
mod overshoot;
mod requests;
mod sandboxed;
mod sql;
mod straggler;
mod throughput;
mod ticks;
mod waits;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["attempt", module, count] => attempts::attempt(module, count.parse().unwrap()),
        ["throughput", host, module, count] => {
            throughput::throughput(host, module, count.parse().unwrap());
        }
        ["ticks", host, count, beaters] => {
            ticks::ticks(host, count.parse().unwrap(), beaters.parse().unwrap(), 1);
        }
        ["ticks", host, count, beaters, minutes] => {
            let minutes = minutes.parse().unwrap();
            ticks::ticks(host, count.parse().unwrap(), beaters.parse().unwrap(), minutes);
        }
        ["requests", host, module, count] => {
            requests::requests(host, module, count.parse().unwrap());
        }
        ["idle", host, module] => requests::idle(host, module),
        ["straggler", host, module] => straggler::straggler(host, module),
        ["failover", host, module, runs] => {
            endings::failover(host, module, runs.parse().unwrap());
        }
        ["drain", host, module, runs] => endings::drain(host, module, runs.parse().unwrap()),
        ["limits", module, rounds] => guards::limits(module, rounds.parse().unwrap()),
        ["neighbour", spinner, quick, count] => {
            neighbour::neighbour(spinner, quick, count.parse().unwrap());
        }
        ["overshoot", outcomes, hostile, runs] => {
            overshoot::overshoot(outcomes, hostile, runs.parse().unwrap());
        }
        ["cached", host, module, modules, runs] => {
            deploys::cached(host, module, modules.parse().unwrap(), runs.parse().unwrap());
        }
        ["swaps", warm_up, count] => {
            deploys::swaps(warm_up.parse().unwrap(), count.parse().unwrap());
        }
        ["cancel", host, module, runs] => waits::cancel(host, module, runs.parse().unwrap()),
        ["progress", host, module, runs] => waits::progress(host, module, runs.parse().unwrap()),
        ["delayed", host, module, count] => waits::delayed(host, module, count.parse().unwrap()),
        ["lists", host, rows] => finished::lists(host, rows.parse().unwrap()),
        ["prune", host, module, rows] => finished::prune(host, module, rows.parse().unwrap()),
        ["indexes", host, module, count] => indexes::indexes(host, module, count.parse().unwrap()),
        _ => {
            eprintln!(
                "usage: sqjobs-bench attempt|limits MODULE COUNT \
                 | throughput|requests|delayed|prune|indexes HOST MODULE COUNT \
                 | idle|straggler HOST MODULE | failover|drain|cancel|progress HOST MODULE RUNS \
                 | neighbour OUTCOMES MODULE COUNT | overshoot OUTCOMES HOSTILE RUNS \
                 | cached HOST MODULE MODULES RUNS | swaps WARM_UP COUNT | lists HOST ROWS \
                 | ticks HOST COUNT BEATERS [MINUTES]"
            );
            std::process::exit(2);
        }
    }
}
