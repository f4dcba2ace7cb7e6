//! Whether a worker lives and can work: what `/livez` and `/readyz` tell, and the gauges that
//! `/metrics` shows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tracing::debug;

use super::Shared;
use super::message::Polled;
use crate::exporter::Exporter;
use crate::listen::{self, Answer};
use crate::metrics;
use crate::outage::chain;

/// How long the lease loop may be without a look before it counts as stuck; it looks every five
/// seconds at least.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// How long the database may take to answer before the worker is not ready.
const DATABASE_ANSWER: Duration = Duration::from_secs(5);
/// How often queues are asked how full they are: one call each.
const DEPTH_LOOK: Duration = Duration::from_secs(30);

/// The loops of one worker, none of which ends before the worker does.
#[derive(Default)]
pub(super) struct Pulse {
    loops: Mutex<Vec<AbortHandle>>,
}

impl Pulse {
    pub(super) fn watch(&self, task: AbortHandle) {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    fn has_ended(&self) -> bool {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.iter().any(AbortHandle::is_finished)
    }
}

/// Answers `/livez`, `/readyz` and `/metrics`, for ever.
pub(super) async fn serve(
    shared: Arc<Shared>,
    queues: Vec<Arc<Polled>>,
    exporter: Exporter,
    listener: TcpListener,
) {
    let depths = tokio::spawn(watch_depths(shared.clone(), queues.clone()));
    listen::serve(listener, move |path| {
        let (shared, queues, exporter) = (shared.clone(), queues.clone(), exporter.clone());
        Box::pin(async move {
            match path.as_str() {
                "/livez" => Some(livez(&shared)),
                "/readyz" => Some(readyz(&shared, &queues).await),
                "/metrics" => {
                    set_gauges(&shared, &queues);
                    Some(Answer::ok(exporter.render()))
                }
                _ => None,
            }
        })
    })
    .await;
    depths.abort();
}

/// Whether the loops move. A database or a queue that is away is no reason to start anew.
fn livez(shared: &Shared) -> Answer {
    let is_stopping = shared.stopping.is_cancelled();
    if shared.leases.looked_ago() > STUCK_AFTER {
        return Answer::unavailable("the loop that extends leases is stuck\n".to_owned());
    }
    if !is_stopping && shared.pulse.has_ended() {
        return Answer::unavailable("a loop has ended; the log tells why\n".to_owned());
    }
    Answer::ok("ok\n".to_owned())
}

/// Whether database, queues and modules are usable; a line each.
async fn readyz(shared: &Shared, queues: &[Arc<Polled>]) -> Answer {
    let mut lines = Vec::new();
    let mut is_ready = true;
    let mut tell = |part: &str, state: Result<String, String>| {
        is_ready &= state.is_ok();
        let (Ok(text) | Err(text)) = state;
        lines.push(format!("{part}: {text}\n"));
    };
    if shared.stopping.is_cancelled() {
        tell("worker", Err("stopping".to_owned()));
    }
    let database = tokio::time::timeout(DATABASE_ANSWER, shared.store.now()).await;
    tell(
        "database",
        match database {
            Ok(Ok(_)) => Ok("ok".to_owned()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {} s", DATABASE_ANSWER.as_secs())),
        },
    );
    for polled in queues {
        let state = match polled.receive_outage.is_on() {
            true => Err("can't be received from; the log tells why".to_owned()),
            false if shared.pauses.is_paused(&polled.queue.name) => Ok("paused".to_owned()),
            false => Ok("ok".to_owned()),
        };
        tell(&format!("queue {}", polled.queue.name), state);
    }
    let jobs = shared.registry.snapshot().jobs.len();
    tell(
        "modules",
        match jobs {
            0 => Err("no job is deployed".to_owned()),
            count => Ok(format!("{count} job(s)")),
        },
    );
    let text = lines.concat();
    if is_ready { Answer::ok(text) } else { Answer::unavailable(text) }
}

/// What is known without asking anybody.
fn set_gauges(shared: &Shared, queues: &[Arc<Polled>]) {
    let (total, unused) = shared.slots.counts();
    metrics::gauge(metrics::SLOTS, total as f64);
    metrics::gauge(metrics::SLOTS_UNUSED, unused as f64);
    metrics::gauge(metrics::HELD, shared.leases.count() as f64);
    metrics::gauge(metrics::RUNNING, shared.running.count() as f64);
    for polled in queues {
        let is_paused = shared.pauses.is_paused(&polled.queue.name);
        metrics::queue_gauge(metrics::PAUSED, &polled.queue.name, f64::from(u8::from(is_paused)));
    }
}

/// Asks the queues how full they are, for ever.
async fn watch_depths(shared: Arc<Shared>, queues: Vec<Arc<Polled>>) {
    loop {
        for polled in &queues {
            match shared.broker.depth(&polled.queue).await {
                Ok(depth) => metrics::depth(&polled.queue.name, depth),
                Err(error) => debug!(queue = %polled.queue.name, "depth is not known: {error}"),
            }
        }
        tokio::time::sleep(DEPTH_LOOK).await;
    }
}
