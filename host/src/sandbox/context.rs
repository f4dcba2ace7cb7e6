//! The store data of one attempt: a WASI context with what was granted and nothing else, and what
//! the guest said.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::sync::watch;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::WasiHttpCtx;

use super::grants::Grants;
use super::imports::Outgoing;
use super::limits::{Limits, MemoryMeter};
use crate::sender::Sender;
use crate::store::enqueue::NewJob;
use crate::store::unique::UniqueRules;
use crate::text::printable;

/// How far an attempt is: the share done, and what goes on.
pub type Progress = Option<(f64, Option<String>)>;

/// Which attempt this is, for log lines and for the jobs it adds.
#[derive(Debug, Clone, Default)]
pub(super) struct AttemptLabel {
    pub(super) job_id: String,
    pub(super) job: String,
    pub(super) queue: String,
    pub(super) address: String,
    pub(super) module: String,
    pub(super) attempt: u32,
    pub(super) generation: u32,
}

/// What the guest said, shared by its log calls and its standard output.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Log lines and output, in order.
    pub(super) text: String,
    /// The message of the last panic.
    pub(super) panic: Option<String>,
    /// Whether a line was left out: nothing more is kept.
    pub(super) is_full: bool,
}

/// Everything that one attempt's instance can reach.
pub struct AttemptContext {
    pub(super) label: Arc<AttemptLabel>,
    pub(super) memory: MemoryMeter,
    pub(super) said: Arc<Mutex<Said>>,
    pub(super) progress: watch::Sender<Progress>,
    /// Jobs to be sent when the attempt has succeeded.
    pub(super) added: Vec<NewJob>,
    /// How many jobs the attempt has added, those sent at once included.
    pub(super) adds: usize,
    /// Where jobs go that are to be sent at once; eager runs have none.
    pub(super) outlet: Option<Sender>,
    /// Which calls of the deployed jobs count as the same.
    pub(super) unique: Arc<UniqueRules>,
    pub(super) limits: Limits,
    pub(super) grants: Arc<Grants>,
    pub(super) http: WasiHttpCtx,
    pub(super) outgoing: Outgoing,
    pub(super) table: ResourceTable,
    wasi: WasiCtx,
}

impl AttemptContext {
    /// # Errors
    /// A granted folder can't be opened, and why.
    pub(super) fn new(
        label: Arc<AttemptLabel>,
        limits: Limits,
        grants: Arc<Grants>,
        said: Arc<Mutex<Said>>,
        progress: watch::Sender<Progress>,
    ) -> Result<Self, String> {
        let output = |is_error| GuestOutput {
            said: said.clone(),
            label: label.clone(),
            grants: grants.clone(),
            limit: limits.log_bytes,
            line: Arc::default(),
            is_error,
        };
        // No folder, variable, argument or address: wasmtime-wasi denies what is not granted.
        let mut wasi = WasiCtx::builder();
        wasi.stdout(output(false))
            .stderr(output(true))
            .max_random_size(limits.host_memory_bytes as u64);
        grant(&mut wasi, &grants, limits.connections)?;
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles);
        let outgoing = Outgoing::new(
            grants.clone(),
            limits.connections,
            said.clone(),
            label.clone(),
            limits.log_bytes,
        );
        Ok(Self {
            label,
            memory: MemoryMeter::new(limits.memory_bytes),
            said,
            progress,
            added: Vec::new(),
            adds: 0,
            outlet: None,
            unique: Arc::default(),
            limits,
            grants,
            http: WasiHttpCtx::new(),
            outgoing,
            table,
            wasi: wasi.build(),
        })
    }
}

/// Adds what was granted to a context that denies everything.
fn grant(
    wasi: &mut WasiCtxBuilder,
    grants: &Arc<Grants>,
    connections: usize,
) -> Result<(), String> {
    for (name, value) in &grants.variables {
        wasi.env(name, value);
    }
    for secret in &grants.secrets {
        wasi.env(&secret.name, &secret.value);
    }
    for folder in &grants.folders {
        let permissions = if folder.is_writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        wasi.preopened_dir(&folder.host, &folder.guest, permissions).map_err(|error| {
            format!("the granted folder `{}` can't be opened: {error}", folder.host.display())
        })?;
    }
    if !grants.sockets.is_empty() {
        let (grants, opened) = (grants.clone(), Arc::new(AtomicUsize::new(0)));
        wasi.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true).socket_addr_check(
            move |address, usage| {
                let is_allowed = match usage {
                    SocketAddrUse::TcpConnect => {
                        grants.allows_socket(address)
                            && opened.fetch_add(1, Ordering::Relaxed) < connections
                    }
                    SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                        grants.allows_socket(address)
                    }
                    // What the system binds for a connection of the guest; a port of its own
                    // choice would be a server's.
                    SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
                        address.ip().is_unspecified() && address.port() == 0
                    }
                    _ => false,
                };
                Box::pin(std::future::ready(is_allowed))
            },
        );
    }
    Ok(())
}

impl WasiView for AttemptContext {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// How Rust begins to tell of a panic, behind the thread's name.
const PANICKED_AT: &str = "panicked at ";

impl Said {
    /// Takes the message of a panic from standard error, where a module without our SDK tells it:
    /// Rust's own has the place in one line and the message in the next.
    fn note_panic(&mut self, line: &str) {
        let place = self.panic.as_deref().and_then(|told| told.strip_prefix(PANICKED_AT));
        if let Some(place) = place.and_then(|place| place.strip_suffix(':')) {
            self.panic = Some(format!("panic: {line} (at {place})"));
        } else if let Some(at) = line.find(PANICKED_AT) {
            self.panic = Some(line[at..].to_owned());
        }
    }

    /// Keeps a line, up to `limit` bytes in all; tells whether it was kept.
    pub(super) fn keep(&mut self, line: &str, limit: usize) -> bool {
        if self.is_full {
            return false;
        }
        let left = limit.saturating_sub(self.text.len());
        if line.len() < left {
            self.text.push_str(line);
            self.text.push('\n');
            return true;
        }
        self.is_full = true;
        self.text.push_str(&line[..line.floor_char_boundary(left)]);
        self.text.push_str("\n[… cut: the attempt said more than it may]\n");
        false
    }
}

/// Standard output or error of a guest: whole lines go to the attempt's text and to the log.
#[derive(Clone)]
struct GuestOutput {
    said: Arc<Mutex<Said>>,
    label: Arc<AttemptLabel>,
    grants: Arc<Grants>,
    limit: usize,
    line: Arc<Mutex<Vec<u8>>>,
    is_error: bool,
}

/// Longest line of standard output; a longer one is broken here, so that a guest that never ends
/// its line makes the host keep no more than this.
const MAX_LINE_BYTES: usize = 8 << 10;

impl GuestOutput {
    fn take(&self, bytes: &[u8]) {
        let mut line = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for &byte in bytes {
            if byte == b'\n' || line.len() >= MAX_LINE_BYTES {
                self.emit(&line);
                line.clear();
            }
            if byte != b'\n' {
                line.push(byte);
            }
        }
    }

    fn emit(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = self.grants.redact(&text);
        let stream = if self.is_error { "stderr" } else { "stdout" };
        let is_kept = {
            let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if self.is_error {
                said.note_panic(&text);
            }
            said.keep(&format!("{stream}: {text}"), self.limit)
        };
        if is_kept && !self.label.job_id.is_empty() {
            let label = &self.label;
            tracing::info!(
                target: "sqjobs::guest",
                { job.id = %printable(&label.job_id), module = %label.module, attempt = label.attempt, stream },
                "{}: {}", printable(&label.job), printable(&text)
            );
        }
    }
}

impl Drop for GuestOutput {
    /// The last line may lack its end. Every clone shares it, so only the last one emits.
    fn drop(&mut self) {
        if Arc::strong_count(&self.line) == 1 {
            let line = std::mem::take(
                &mut *self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            );
            if !line.is_empty() {
                self.emit(&line);
            }
        }
    }
}

impl AsyncWrite for GuestOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn wasmtime_wasi::p2::OutputStream> {
        Box::new(self.clone())
    }
}

impl wasmtime_wasi::p2::OutputStream for GuestOutput {
    fn write(&mut self, bytes: bytes::Bytes) -> wasmtime_wasi::p2::StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> wasmtime_wasi::p2::StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> wasmtime_wasi::p2::StreamResult<usize> {
        Ok(64 << 10)
    }
}

#[async_trait::async_trait]
impl wasmtime_wasi::p2::Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_only_printed_is_told_with_its_message() {
        let mut said = Said::default();
        for line in ["before", "thread 'main' panicked at src/lib.rs:1:2:", "no way", "after"] {
            said.note_panic(line);
        }
        let told = said.panic.as_deref();
        assert_eq!(told, Some("panic: no way (at src/lib.rs:1:2)"));
    }

    #[test]
    fn what_a_guest_says_beyond_its_limit_is_cut_once_with_a_mark() {
        let mut said = Said::default();
        assert!(said.keep("one", 10));
        assert!(!said.keep("two and three", 10));
        assert!(!said.keep("four", 10));
        assert_eq!(said.text, "one\ntwo an\n[… cut: the attempt said more than it may]\n");
    }
}
