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
//! ```
#![allow(clippy::unwrap_used, reason = "what fails here ends the measurement")]

mod attempts;
mod bench;
mod endings;
mod figures;
mod requests;
mod straggler;
mod throughput;
mod ticks;

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
        _ => {
            eprintln!(
                "usage: sqjobs-bench attempt MODULE COUNT | throughput|requests HOST MODULE COUNT \
                 | ticks HOST COUNT BEATERS [MINUTES] | idle|straggler HOST MODULE | failover|drain HOST MODULE RUNS"
            );
            std::process::exit(2);
        }
    }
}
