//! Stop receiving, drain, give up at the deadline; a second signal skips the wait.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Listens for SIGTERM and ctrl-c. The first one cancels the returned token: from then on nothing
/// new is begun. The second one ends the process at once; what it held becomes visible again
/// when its visibility timeout runs out.
///
/// # Errors
/// The process may not listen for signals.
pub fn listen() -> std::io::Result<CancellationToken> {
    let stopping = CancellationToken::new();
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stopping.clone();
    tokio::spawn(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_first {
                info!("stopping: nothing more is received; a second signal leaves at once");
                token.cancel();
            } else {
                warn!("leaving at once; what runs becomes visible again when its lease ends");
                std::process::exit(1);
            }
        }
    });
    Ok(stopping)
}
