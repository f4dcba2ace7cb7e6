//! Thousands of jobs with random outcomes, on several workers that are killed, stopped and
//! started again at random, behind an SQS server that misbehaves. At the end every job is
//! accounted for, as the plan foretold it, and those of a FIFO queue ran in the order of their
//! groups.
//!
//! `SQJOBS_MODEL_SECS` makes it longer, `SQJOBS_MODEL_SEED` repeats the plan and the faults of a
//! run that failed; what the machine's scheduling adds can't be repeated.

mod plan;
mod verdict;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sqjobs::client::Client;
use sqjobs::clock::Clock;
use support::proxy::{Faults, Proxy};
use support::servers::RUNTIME;
use support::sqs::SqsQueue;
use support::{Output, Pair, Setup, WorkerProcess, servers, wait};

use plan::Planned;

/// How long jobs are sent and workers are killed, for one pair, unless the variable says else.
const SECS: u64 = 12;
/// Workers side by side.
const WORKERS: usize = 3;
/// Jobs sent in one round, between two events.
const ROUND: usize = 40;
/// How long a worker is frozen at least: longer than its lease, so that others take its jobs.
const FROZEN: Duration = Duration::from_secs(7);
/// How long everything may take to come to rest after the last event.
const REST: Duration = Duration::from_secs(180);

/// Short waits between attempts, so that a job's whole life fits in the test.
const SETTINGS: &str = r#"
[defaults]
initial-backoff = "50ms"
max-backoff = "200ms"

[jobs.fail_transient]
max-attempts = 3

[jobs.trap_in]
max-attempts = 2

[jobs.allocate]
max-attempts = 2
"#;

/// Amazon's SQS at its worst.
const FAULTS: Faults = Faults {
    lost_request: 0.03,
    lost_reply: 0.03,
    unavailable: 0.03,
    throttled: 0.03,
    failed_entry: 0.06,
    duplicate_delivery: 0.08,
    expired_receipt: 0.02,
    lost_message: 0.03,
    reordered: 0.1,
    refused_batch: 0.05,
    delay: Duration::from_millis(20),
};

on_every_pair! {
    fn every_job_is_accounted_for_whatever_happens(pair) {
        let seed = variable("SQJOBS_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
        let secs = variable("SQJOBS_MODEL_SECS").unwrap_or(SECS);
        let told = Told(seed, secs);
        let mut model = Model::new(pair, seed);
        model.run(Duration::from_secs(secs));
        let faults = model.come_to_rest();
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        drop(told);
    }
}

/// A FIFO queue that dead-letters after some receipts, beside the queue of the setup.
struct Fifo {
    name: String,
    /// Where SQS would move what it gives up, and we send copies of what has failed for good.
    dead: Option<SqsQueue>,
}

impl Fifo {
    fn of(pair: Pair) -> Self {
        let name = format!("{}.fifo", servers::unique("ordered"));
        if pair == Pair::Embedded {
            return Self { name, dead: None };
        }
        let dead = SqsQueue::create(
            &format!("{}.fifo", servers::unique("dead")),
            &[("FifoQueue", "true")],
        );
        let arn = format!("arn:aws:sqs:us-east-1:000000000000:{}", dead.name);
        let policy = format!(r#"{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "6"}}"#);
        let _ = SqsQueue::create(&name, &[("FifoQueue", "true"), ("RedrivePolicy", &policy)]);
        Self { name, dead: Some(dead) }
    }

    /// A worker on both queues.
    fn worker(&self, setup: &Setup) -> WorkerProcess {
        setup.worker(&[&self.name, "--lease", "5s", "--grace", "300ms", "--concurrency", "8"])
    }

    /// SQS must never move a job by itself: what it would move is parked before.
    fn faults(&self, dead_jobs: usize) -> Option<String> {
        let found: u64 = self.dead.as_ref()?.depth().iter().sum();
        (found > dead_jobs as u64)
            .then(|| format!("{found} messages for {dead_jobs} dead jobs in the dead-letter queue"))
    }
}

/// Says how to repeat a run that fails, however it does.
struct Told(u64, u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed, secs) = self;
            eprintln!("to repeat: SQJOBS_MODEL_SEED={seed} SQJOBS_MODEL_SECS={secs}");
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// The whole: what was sent, and who works on it.
struct Model {
    setup: Setup,
    proxy: Option<Proxy>,
    fifo: Fifo,
    client: Client,
    rng: Rng,
    workers: Vec<Option<WorkerProcess>>,
    /// One that is stopped by a signal, as a machine that swaps would stop it, and since when.
    frozen: Option<(WorkerProcess, Instant)>,
    planned: Vec<Planned>,
    /// How often a job has run to its end on workers that are gone, by id.
    ends: HashMap<String, u32>,
    kills: u32,
    stops: u32,
    freezes: u32,
}

impl Model {
    fn new(pair: Pair, seed: u64) -> Self {
        let mut setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", SETTINGS);
        let proxy = (pair != Pair::Embedded).then(|| Proxy::start(seed, FAULTS));
        if let Some(proxy) = &proxy {
            setup.project.set("AWS_ENDPOINT_URL", &proxy.url());
        }
        // The first worker makes the embedded database and compiles the guest for the others.
        let fifo = Fifo::of(pair);
        let mut first = fifo.worker(&setup);
        first.wait_until_ready();
        let endpoint = proxy.as_ref().map_or_else(String::new, Proxy::url);
        let client = setup.client(&endpoint);
        let mut workers = vec![Some(first)];
        workers.resize_with(WORKERS, || Some(fifo.worker(&setup)));
        Self {
            client,
            rng: Rng::with_seed(seed),
            workers,
            frozen: None,
            planned: Vec::new(),
            ends: HashMap::new(),
            kills: 0,
            stops: 0,
            freezes: 0,
            setup,
            proxy,
            fifo,
        }
    }

    /// Sends jobs and does harm, round by round, until the time is over.
    fn run(&mut self, time: Duration) {
        let begun = Instant::now();
        let mut done = 0;
        while begun.elapsed() < time {
            self.send();
            self.harm();
            // The next round comes once this one is half done, however fast the machine is. A
            // kill may hold some back for a lease.
            done += i64::try_from(ROUND / 2).unwrap();
            let finished = "SELECT count(*) FROM {jobs} WHERE finished_at IS NOT NULL";
            let setup = &self.setup;
            let _ = wait::within(Duration::from_secs(6), || {
                (setup.count(finished) >= done).then_some(())
            });
        }
    }

    /// Sends one round of jobs, most of them as foreign producers do.
    fn send(&mut self) {
        let number = self.planned.len();
        let mut fresh: Vec<Planned> =
            (0..ROUND).map(|n| Planned::draw(&mut self.rng, number + n)).collect();
        let bodies: Vec<(usize, String)> = fresh
            .iter()
            .enumerate()
            .flat_map(|(index, job)| job.bodies().into_iter().map(move |body| (index, body)))
            .collect();
        let (owners, texts): (Vec<usize>, Vec<String>) = bodies.into_iter().unzip();
        for (owner, message_id) in owners.into_iter().zip(self.setup.send_bodies(&texts)) {
            fresh[owner].message_ids.push(message_id);
        }
        self.cancel();
        for job in &fresh {
            for request in job.requests(&self.setup.queue, &self.fifo.name) {
                let added = RUNTIME.block_on(self.client.add(request)).unwrap();
                assert_eq!(added.id, job.id, "a second job of one key: {job:?}");
            }
        }
        self.planned.append(&mut fresh);
    }

    /// Cancels what was added for that, whether it waits, runs, or was running on a worker that is
    /// gone.
    fn cancel(&self) {
        let _ = self.setup.run(&["cancel", "--job", "sleep_ms", "--yes"]).ok();
    }

    /// Kills a worker, or stops it, or freezes it, or lets all be; those that are gone are
    /// replaced, and one that was frozen for long goes on.
    fn harm(&mut self) {
        let slot = self.rng.usize(..self.workers.len());
        match self.rng.u8(..10) {
            0..4 => self.end(slot, WorkerProcess::kill),
            4..6 => self.end(slot, |worker| worker.signal("TERM")),
            6..8 if self.frozen.is_none() => {
                if let Some(worker) = self.workers[slot].take() {
                    worker.signal("STOP");
                    // One that stopped within a transaction holds an SQLite file for all others.
                    if self.setup.is_held() {
                        worker.signal("CONT");
                        self.workers[slot] = Some(worker);
                    } else {
                        self.frozen = Some((worker, Instant::now()));
                        self.freezes += 1;
                    }
                }
            }
            _ => {}
        }
        if self.rng.u8(..4) == 0 {
            self.retry_dead();
        }
        self.pass_an_hour();
        if self.frozen.as_ref().is_some_and(|(_, since)| since.elapsed() > FROZEN) {
            self.thaw();
        }
        for slot in 0..self.workers.len() {
            let is_missing = slot < WORKERS && self.workers[slot].is_none();
            if is_missing && self.rng.bool() {
                self.workers[slot] = Some(self.fifo.worker(&self.setup));
            }
        }
    }

    /// Has the frozen worker go on, beside the others.
    fn thaw(&mut self) {
        if let Some((worker, _)) = self.frozen.take() {
            worker.signal("CONT");
            self.workers.push(Some(worker));
        }
    }

    /// Sends jobs that failed for good again, by a command that may be killed before or after a
    /// commit. They fail once more.
    fn retry_dead(&mut self) {
        let mut command =
            self.setup.project.command(&["dead", "retry", "--job", "fail_permanent", "--yes"]);
        let point = self.rng.choice([None, Some("retry-written=kill"), Some("retried=kill")]);
        if let Some(point) = point.flatten() {
            command.env(sqjobs::failpoint::VARIABLE, point);
        }
        let output = Output::of(command);
        assert!(matches!(output.code, None | Some(0)), "{output}");
    }

    /// Makes those due that are delayed by an hour.
    fn pass_an_hour(&self) {
        let now = Clock::system().now().0;
        // The jobs first: a sender that takes an outbox row looks at its job.
        for table in ["{jobs}", "{outbox}"] {
            let due = format!("UPDATE {table} SET not_before = 0 WHERE not_before >");
            self.setup.execute(&self.setup.named(&format!("{due} {}", now + 1_800_000)));
        }
    }

    fn end(&mut self, slot: usize, how: impl Fn(&mut WorkerProcess)) {
        let Some(mut worker) = self.workers[slot].take() else { return };
        how(&mut worker);
        match worker.wait_for_exit().code() {
            Some(_) => self.stops += 1,
            None => self.kills += 1,
        }
        self.count_ends(&worker);
    }

    fn count_ends(&mut self, worker: &WorkerProcess) {
        for line in worker.log() {
            if let Some((_, rest)) = line.split_once(": ended ")
                && let Some(id) = rest.split(' ').next()
            {
                *self.ends.entry(id.to_owned()).or_default() += 1;
            }
        }
    }

    /// Lets all faults end and all work be done, and tells what is not as it was foretold.
    fn come_to_rest(&mut self) -> Vec<String> {
        if let Some(proxy) = &self.proxy {
            proxy.set_faults(Faults::default());
        }
        self.thaw();
        for worker in &mut self.workers {
            if worker.as_ref().is_none_or(gave_up_at_start) {
                *worker = Some(self.fifo.worker(&self.setup));
            }
        }
        self.pass_an_hour();
        self.cancel();
        let setup = &self.setup;
        let is_at_rest = || {
            setup.depth() == [0, 0, 0]
                && setup.count("SELECT count(*) FROM {outbox}") == 0
                && setup.count("SELECT count(*) FROM {jobs} WHERE finished_at IS NULL") == 0
        };
        let mut faults = Vec::new();
        if wait::within(REST, || is_at_rest().then_some(())).is_none() {
            faults.push(format!(
                "no rest: {:?} messages, {} rows to send, not final: {:?}",
                setup.depth(),
                setup.count("SELECT count(*) FROM {outbox}"),
                setup.rows("SELECT id, status FROM {jobs} WHERE finished_at IS NULL")
            ));
        }
        for mut worker in std::mem::take(&mut self.workers).into_iter().flatten() {
            if worker.terminate() != Some(0) && !gave_up_at_start(&worker) {
                faults.push(format!("a worker ended badly: {}", worker.shown()));
            }
            self.count_ends(&worker);
        }
        eprintln!(
            "{:?}: {} jobs planned, {} kills, {} stops, {} freezes",
            self.setup.pair,
            self.planned.len(),
            self.kills,
            self.stops,
            self.freezes
        );
        faults.extend(verdict::faults(&self.setup, &self.planned, &self.ends));
        faults.extend(verdict::disorder(&self.setup, &self.planned));
        let dead = self.planned.iter().filter(|job| job.group().is_some() && job.is_dead());
        faults.extend(self.fifo.faults(dead.count()));
        faults
    }
}

/// A word that no other test uses.
fn unique_id(number: usize) -> String {
    servers::unique(&format!("job{number}"))
}

/// Whether a worker met faults in all tries of a call at its start, and told so: whoever runs it
/// starts it again.
fn gave_up_at_start(worker: &WorkerProcess) -> bool {
    let log = worker.log();
    log.iter().any(|line| line.starts_with("error: cannot reach SQS"))
        && !log.iter().any(|line| line.contains("ready: "))
}
