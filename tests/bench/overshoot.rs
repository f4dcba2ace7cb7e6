//! How far past its limit each hostile guest gets.

use std::time::{Duration, Instant};

use sqjobs::outcome::Outcome;
use sqjobs::sandbox::Call;
use sqjobs::sandbox::limits::Limits;

use crate::figures::at;
use crate::sandboxed::{Sandboxed, call};

const TIMEOUT: Duration = Duration::from_millis(200);

/// One line for each guest and limit. `outcomes` and `hostile` are the modules of the tests.
pub(crate) fn overshoot(outcomes: &str, hostile: &str, runs: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let outcomes = Sandboxed::load(outcomes).await;
        let hostile = Sandboxed::load(hostile).await;
        let limits = Limits { timeout: TIMEOUT, memory_bytes: 64 << 20, ..Limits::default() };
        let sized = Limits { timeout: Duration::from_secs(60), ..limits };
        for (what, module, job, args) in [
            ("computing in set-up", &outcomes, "spin", r#"["set-up"]"#),
            ("computing in run", &outcomes, "spin", "[]"),
            ("computing in tear-down", &outcomes, "spin", r#"["tear-down"]"#),
            ("blocked in a host call", &outcomes, "sleep_ms", "[3600000]"),
            ("a flood of log lines", &hostile, "flood_log", "[]"),
            ("a flood of output", &hostile, "flood_output", "[]"),
            ("a flood of progress", &hostile, "flood_progress", "[]"),
        ] {
            late(module, what, &call(job, args, limits), runs).await;
        }
        processor_time(&outcomes, sized, runs).await;
        for (what, args) in
            [("on-success", r#"["on-success"]"#), ("on-failure", r#"["on-failure"]"#)]
        {
            handler(&outcomes, what, &call("spin", args, sized)).await;
        }
        for (what, module, job, args) in [
            ("memory at once", &outcomes, "allocate", "[1000000000]"),
            ("memory in small steps", &hostile, "grow_slowly", "[]"),
        ] {
            let call = call(job, args, sized);
            let error = error(module, &call).await;
            // `... and may have LIMIT (USED in use)`
            beyond(what, "bytes of memory", number(&error, "(", " in use"), sized.memory_bytes);
        }
        for (job, limits) in [("flood_log", limits), ("flood_output", limits)] {
            let execution = hostile.attempt(&call(job, "[]", limits)).await;
            let what = format!("what is kept of {job}, the mark of the cut included");
            beyond(&what, "bytes", execution.logs.len(), limits.log_bytes);
        }
        let call = call("add_for_ever", "[]", sized);
        let error = error(&hostile, &call).await;
        let added = error.split(" were added").next().and_then(|text| text.rsplit(' ').next());
        let added = added.and_then(|count| count.parse().ok()).unwrap_or(usize::MAX);
        beyond("adding jobs for ever", "jobs", added, sized.added_jobs);
    });
}

/// How late an attempt ends after its timeout.
async fn late(module: &Sandboxed, what: &str, call: &Call, runs: usize) {
    let mut times = Vec::new();
    for _ in 0..runs {
        let begun = Instant::now();
        let execution = module.attempt(call).await;
        let took = begun.elapsed();
        assert!(matches!(execution.outcome, Outcome::Failed(_)), "{:?}", execution.outcome);
        times.push(took.saturating_sub(call.limits.timeout));
    }
    tell(what, &format!("its timeout of {:?}", call.limits.timeout), times);
}

/// How much more processor time than its limit a spinning guest has used.
async fn processor_time(module: &Sandboxed, limits: Limits, runs: usize) {
    let limit = Duration::from_millis(100);
    let call = call("spin", "[]", Limits { cpu: Some(limit), ..limits });
    let mut times = Vec::new();
    for _ in 0..runs {
        let text = error(module, &call).await;
        // `used SECONDS s of processor time and may use ...`
        let used =
            text.split(" s of processor time").next().and_then(|text| text.rsplit(' ').next());
        let used = used.and_then(|secs| secs.parse().ok()).map(Duration::from_secs_f64);
        times.push(used.unwrap_or_else(|| panic!("no time in {text}")).saturating_sub(limit));
    }
    tell("computing", &format!("its {limit:?} of processor time"), times);
}

/// How late a handler that never ends is ended; one run, since it takes as long as its deadline.
async fn handler(module: &Sandboxed, what: &str, call: &Call) {
    const DEADLINE: Duration = sqjobs::sandbox::limits::HANDLER_DEADLINE;
    let begun = Instant::now();
    let execution = module.attempt(call).await;
    let took = begun.elapsed();
    assert!(!execution.warnings.is_empty(), "the handler was not ended");
    let late = vec![took.saturating_sub(DEADLINE)];
    tell(&format!("computing in {what}"), &format!("its deadline of {DEADLINE:?}"), late);
}

async fn error(module: &Sandboxed, call: &Call) -> String {
    match module.attempt(call).await.outcome {
        Outcome::Failed(failure) => failure.message,
        outcome => panic!("{outcome:?} of {}", call.job),
    }
}

/// The number that stands between two texts.
fn number(text: &str, before: &str, after: &str) -> usize {
    let found = text.split(after).next().and_then(|text| text.rsplit(before).next());
    found.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number in {text}"))
}

fn tell(what: &str, limit: &str, mut times: Vec<Duration>) {
    let (middle, longest) = (at(&mut times, 500), at(&mut times, 1000));
    println!("{what}: past {limit} by p50 {middle:?}, maximum {longest:?} ({} runs)", times.len());
}

fn beyond(what: &str, unit: &str, used: usize, limit: usize) {
    println!("{what}: {used} {unit} of {limit}, {} past the limit", used.saturating_sub(limit));
}
