//! Compares what became of all jobs with what was foretold.

use std::collections::{HashMap, HashSet};

use support::Setup;

use super::plan::{Kind, Planned};

/// How many attempts of a job must have died with their workers before it may be put aside as
/// the one that kills them: two among others, and one alone.
const CRASHES: i64 = 3;

/// What the database holds in the end.
struct Found {
    statuses: HashMap<String, String>,
    dead: HashMap<String, String>,
    successes: HashMap<String, String>,
    /// Statuses of added jobs, by the id of the one that added them.
    children: HashMap<String, Vec<String>>,
}

/// What is not as it was foretold, a sentence each.
pub(super) fn faults(
    setup: &Setup,
    planned: &[Planned],
    ends: &HashMap<String, u32>,
) -> Vec<String> {
    let found = Found::read(setup);
    let mut faults = Vec::new();
    let mut expected_dead = HashSet::new();
    for job in planned {
        let crashed = found.dead.get(&job.id).is_some_and(|kind| kind == "crashed");
        if crashed {
            // The kills met this one again and again: it may be taken for the one that kills.
            expected_dead.insert(job.id.clone());
            let crashes = setup.count(&format!(
                "SELECT count(*) FROM {{attempts}} WHERE job_id = '{}' AND outcome = 'crashed'",
                job.id
            ));
            if crashes < CRASHES {
                faults.push(format!("{job:?} is put aside as crashed after {crashes} crashes"));
            }
            continue;
        }
        found.check_row(job, ends, &mut faults);
        found.check_dead(job, &mut expected_dead, &mut faults);
    }
    let known: HashSet<&str> = planned.iter().map(|job| job.id.as_str()).collect();
    let strangers = found.dead.iter().filter(|(id, _)| !expected_dead.contains(*id));
    faults.extend(strangers.map(|(id, kind)| format!("{id} is in the dead list as {kind}")));
    let added: usize = found.children.values().map(Vec::len).sum();
    let rows = found.statuses.keys().filter(|id| known.contains(id.as_str())).count() + added;
    if rows != found.statuses.len() {
        faults.push(format!("{} rows, of which {rows} are foretold", found.statuses.len()));
    }
    for (job, count) in found.successes.iter().filter(|(_, count)| *count != "1") {
        faults.push(format!("{job} has {count} stored successes"));
    }
    let open = setup.count("SELECT count(*) FROM {attempts} WHERE outcome = 'running'");
    if open > 0 {
        faults.push(format!("{open} attempts are still running"));
    }
    faults
}

/// Which jobs of the FIFO queue began before the one ahead of them in their group had its final
/// status, a sentence each.
pub(super) fn disorder(setup: &Setup, planned: &[Planned]) -> Vec<String> {
    let times = |sql: &str| -> HashMap<String, i64> {
        let rows = setup.rows(sql).into_iter();
        rows.map(|(id, time)| (id, time.parse().unwrap())).collect()
    };
    let begun =
        times("SELECT job_id, CAST(min(started_at) AS TEXT) FROM {attempts} GROUP BY job_id");
    let ended = times(
        "SELECT id, CAST(finished_at AS TEXT) FROM {jobs} \
         WHERE message_group IS NOT NULL AND finished_at IS NOT NULL",
    );
    let mut ahead: HashMap<usize, &Planned> = HashMap::new();
    let mut faults = Vec::new();
    for job in planned {
        let Some(group) = job.group() else { continue };
        if let Some(earlier) = ahead.insert(group, job)
            && let (Some(begun), Some(ended)) = (begun.get(&job.id), ended.get(&earlier.id))
            && begun < ended
        {
            faults.push(format!("{job:?} began {} ms before {earlier:?} had ended", ended - begun));
        }
    }
    faults
}

impl Found {
    fn read(setup: &Setup) -> Self {
        let mut children: HashMap<String, Vec<String>> = HashMap::new();
        let added = "SELECT parent_id, status FROM {jobs} WHERE parent_id IS NOT NULL";
        for (parent, status) in setup.rows(added) {
            children.entry(parent).or_default().push(status);
        }
        let successes = "SELECT job_id, CAST(count(*) AS TEXT) FROM {attempts} \
                         WHERE outcome = 'success' GROUP BY job_id";
        Self {
            statuses: setup.rows("SELECT id, status FROM {jobs}").into_iter().collect(),
            dead: setup.rows("SELECT id, kind FROM {dead}").into_iter().collect(),
            successes: setup.rows(successes).into_iter().collect(),
            children,
        }
    }

    fn check_row(&self, job: &Planned, ends: &HashMap<String, u32>, faults: &mut Vec<String>) {
        let status = self.statuses.get(&job.id).map(String::as_str);
        let ended = ends.get(&job.id).copied().unwrap_or(0);
        let is_right = match job.kind {
            // Without a row unless its message came more than once.
            Kind::Unrecorded => status.is_none() || status == job.status(),
            _ => status == job.status(),
        };
        if !is_right {
            faults.push(format!("{job:?} is {status:?}"));
        }
        let tells_its_end = matches!(
            job.kind,
            Kind::Good
                | Kind::Added
                | Kind::Delayed
                | Kind::Unique
                | Kind::Fickle
                | Kind::Late
                | Kind::Unrecorded
                | Kind::Twice
                | Kind::Ordered
                | Kind::OrderedFickle
                | Kind::Conflict
        );
        if tells_its_end && ended == 0 {
            faults.push(format!("{job:?} never ran to its end and is {status:?}"));
        }
        let children = self.children.get(&job.id).map_or(&[][..], Vec::as_slice);
        let good = children.iter().filter(|status| *status == "SUCCESS").count();
        if children.len() != job.children() || good != children.len() {
            faults.push(format!("{job:?} has added {children:?}"));
        }
    }

    fn check_dead(&self, job: &Planned, expected: &mut HashSet<String>, faults: &mut Vec<String>) {
        let kind_of = |id: &String| self.dead.get(id).map(String::as_str);
        match job.kind {
            Kind::Malformed => {
                for id in &job.message_ids {
                    expected.insert(id.clone());
                    if kind_of(id) != Some("malformed") {
                        faults.push(format!("{job:?} is in the dead list as {:?}", kind_of(id)));
                    }
                }
            }
            // Whichever came second.
            Kind::Conflict => {
                let aside: Vec<_> =
                    job.message_ids.iter().filter(|id| self.dead.contains_key(*id)).collect();
                match aside[..] {
                    [id] if kind_of(id) == Some("id-conflict") => {
                        expected.insert(id.clone());
                    }
                    _ => faults.push(format!("of {job:?} are put aside: {aside:?}")),
                }
            }
            _ if job.is_dead() => {
                expected.insert(job.id.clone());
                if kind_of(&job.id) != Some("failed") {
                    faults.push(format!("{job:?} is in the dead list as {:?}", kind_of(&job.id)));
                }
            }
            _ => {}
        }
    }
}
