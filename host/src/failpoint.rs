//! Fail points: places between two steps of a path where a test can have the process killed, as
//! by a power cut, or stopped until somebody lets it go on, as a machine that sleeps. On no path
//! itself.
//!
//! A test arms points by the variable [`VARIABLE`], for example `claimed=kill`,
//! `claimed=kill@3` for the third time that the point is reached, `ran[job_name]=kill` for the
//! jobs of one name only, `outbox-taken=stop`; several are parted by commas. Without debug assertions, as in a release
//! build, nothing of this is compiled in; with them, a point that is off costs one relaxed load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The variable that arms fail points. Only tests set it.
pub const VARIABLE: &str = "SQJOBS_FAILPOINT";

/// All points, in the order of the paths they stand on.
///
/// `-ing` is before a step, its past tense after it; `-written` is within a transaction, before
/// its commit.
pub const POINTS: &[&str] = &[
    // One message, from receipt to settlement.
    "received",
    "held",
    "decoded",
    "claiming",
    "claim-written",
    "claimed",
    "instantiated",
    "running",
    "logging",
    "ran",
    "storing",
    "outcome-written",
    "stored",
    "deleting",
    "deleted",
    "giving-back",
    "given-back",
    "parked",
    "putting-aside",
    "put-aside",
    // What is done for many messages at once.
    "extending",
    "extended",
    // Drain.
    "draining",
    "interrupting",
    "drained",
    // The outbox.
    "add-written",
    "outbox-added",
    "outbox-taken",
    "outbox-sending",
    "outbox-sent",
    "outbox-refused",
    "outbox-noted",
    // The dead list, a batch at a time.
    "retry-written",
    "retried",
    // What an operator and the time do to jobs.
    "cancel-written",
    "cancelled",
    "stopping",
    "prune-written",
];

/// The points of a beater's claim, one after the other; it runs in no worker's path.
pub const BEATER_POINTS: &[&str] =
    &["ticks-taken", "ticks-moved", "ticks-written", "ticks-claimed"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
}

static IS_ARMED: AtomicBool = AtomicBool::new(false);
static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

/// Why the variable arms nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{VARIABLE}: `{part}` {reason}; write POINT=kill or POINT=stop, POINT=kill@HIT or POINT[JOB]=kill, or unset the variable, which is for tests"
)]
pub struct FailpointError {
    part: String,
    reason: &'static str,
}

/// A point at which the process kills or stops itself.
#[derive(Debug)]
struct Armed {
    point: &'static str,
    action: Action,
    /// Only for jobs of this name.
    job: Option<String>,
    /// The time that counts, from 1.
    hit: u64,
    reached: AtomicU64,
}

/// Arms what [`VARIABLE`] asks for; called once, when the process starts. Without debug
/// assertions the variable is not looked at.
///
/// # Errors
/// The variable is set and is not well formed, or names no point.
pub fn arm() -> Result<(), FailpointError> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    if let Some(text) = std::env::var_os(VARIABLE) {
        let armed = parse(&text.to_string_lossy())?;
        if ARMED.set(armed).is_ok() {
            IS_ARMED.store(true, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A point of a path: kills or stops this process if a test armed it for this job. `job` is the job's
/// name, empty where it is not known or not one.
#[inline]
pub(crate) fn reach(point: &str, job: &str) {
    if cfg!(debug_assertions) && IS_ARMED.load(Ordering::Relaxed) {
        reach_armed(point, job);
    }
}

#[cold]
fn reach_armed(point: &str, job: &str) {
    for armed in ARMED.get().into_iter().flatten() {
        if armed.counts(point, job) {
            // Past the logger, which may hold lines back.
            match armed.action {
                Action::Kill => {
                    eprintln!("killed at fail point {point}");
                    kill();
                }
                Action::Stop => {
                    eprintln!("stopped at fail point {point}");
                    let process = rustix::process::getpid();
                    // Where that is refused the test sees that it goes on.
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::STOP);
                }
            }
        }
    }
}

/// Ends this process as a power cut would: no destructor, no flush, no last message.
fn kill() {
    let process = rustix::process::getpid();
    if rustix::process::kill_process(process, rustix::process::Signal::KILL).is_err() {
        // No system refuses this; an end without unwinding is the next best.
        std::process::abort();
    }
}

impl Armed {
    /// Counts one arrival, and tells whether it is the one that counts.
    fn counts(&self, point: &str, job: &str) -> bool {
        self.point == point
            && self.job.as_deref().is_none_or(|name| name == job)
            && self.reached.fetch_add(1, Ordering::Relaxed) + 1 == self.hit
    }
}

fn parse(text: &str) -> Result<Vec<Armed>, FailpointError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse_part).collect()
}

fn parse_part(part: &str) -> Result<Armed, FailpointError> {
    let fault = |reason| FailpointError { part: part.to_owned(), reason };
    let (place, action) = part.split_once('=').ok_or_else(|| fault("has no `=`"))?;
    let (name, job) = match place.strip_suffix(']').and_then(|place| place.split_once('[')) {
        Some((name, job)) => (name, Some(job.to_owned())),
        None => (place, None),
    };
    let point = POINTS.iter().chain(BEATER_POINTS).copied().find(|point| *point == name);
    let point = point.ok_or_else(|| fault("names no fail point"))?;
    let unknown = || fault("asks for no known action");
    let (word, hit) = match action.split_once('@') {
        Some((word, hit)) => (word, hit.parse().ok()),
        None => (action, Some(1)),
    };
    let hit = hit.filter(|hit| *hit > 0).ok_or_else(unknown)?;
    let action = match word {
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        _ => return Err(unknown()),
    };
    Ok(Armed { point, action, job, hit, reached: AtomicU64::new(0) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_point_counts_at_its_hit_and_for_its_job_only() {
        let armed = parse("claimed[a]=kill@2, ran=stop").unwrap();
        let [claimed, ran] = &armed[..] else { panic!("{armed:?}") };
        assert_eq!((claimed.action, ran.action), (Action::Kill, Action::Stop));
        let seen: Vec<bool> = ["a", "b", "a", "a"].map(|job| claimed.counts("claimed", job)).into();
        assert_eq!(seen, [false, false, true, false]);
        assert!(!ran.counts("claimed", "a"));
        assert!(ran.counts("ran", "whichever"));
    }

    #[test]
    fn what_arms_nothing_is_refused_by_name() {
        for (text, reason) in [
            ("claimed", "no `=`"),
            ("clamed=kill", "no fail point"),
            ("claimed[a=kill", "no fail point"),
            ("claimed=halt", "no known action"),
            ("claimed=kill@0", "no known action"),
            ("claimed=kill@x", "no known action"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(text), "{error}");
        }
        assert!(parse("").unwrap().is_empty());
    }

    /// A point that the list names and nobody reaches would make its crash test prove nothing.
    #[test]
    fn the_list_holds_the_points_that_the_code_reaches() {
        let mut reached = BTreeSet::new();
        visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut reached);
        let listed = POINTS.iter().chain(BEATER_POINTS);
        let listed: BTreeSet<String> = listed.map(|point| (*point).to_owned()).collect();
        assert_eq!(reached, listed);
    }

    fn visit(folder: &Path, reached: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                visit(&entry.path(), reached);
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let calls = text.split("failpoint::reach(\"").skip(1);
            reached.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
    }
}
