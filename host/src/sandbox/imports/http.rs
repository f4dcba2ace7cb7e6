//! `wasi:http`: requests to listed hosts, by HTTP/1.1 over TLS or, where that was granted,
//! without.
//!
//! A name is looked up once; every address that it stands for is checked, and the connection
//! goes to one of those very addresses. A redirect is an answer like any other: when the guest
//! follows it, that is a new request, and checked as one. No proxy is taken from the environment.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::http::uri::{Scheme, Uri};
use hyper::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::sandbox::context::{AttemptContext, AttemptLabel, Said};
use crate::sandbox::grants::Grants;
use crate::text::printable;

/// How long a look-up, connection and handshake may take together, unless the guest says less or
/// more. Everything else is bounded by the attempt's own timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

/// The HTTP client of one attempt.
#[derive(Clone)]
pub(in crate::sandbox) struct Outgoing {
    grants: Arc<Grants>,
    slots: Arc<Semaphore>,
    said: Arc<Mutex<Said>>,
    label: Arc<AttemptLabel>,
    log_bytes: usize,
}

impl WasiHttpView for AttemptContext {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, Error>> + Send> {
        let client = self.clone();
        Box::new(async move { client.send(request, options.unwrap_or_default()).await })
    }

    // The guest is told what went wrong; the operator's log need not hold it as well.

    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        tracing::debug!("an HTTP exchange of a guest failed: {error}");
        if error.is_incomplete_message() {
            return ErrorCode::HttpResponseIncomplete;
        }
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, error: &std::io::Error) -> ErrorCode {
        tracing::debug!("a guest's connection failed: {error}");
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
            std::io::ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
            _ => ErrorCode::DestinationUnavailable,
        }
    }

    fn p2_error_from_tls(&mut self, error: &std::io::Error) -> ErrorCode {
        tracing::debug!("TLS of a guest's connection failed: {error}");
        match error.get_ref().map(ToString::to_string) {
            Some(text) if text.contains("certificate") => ErrorCode::TlsCertificateError,
            _ => ErrorCode::TlsProtocolError,
        }
    }
}

/// Where a request wants to go.
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
}

impl Target {
    fn of(uri: &Uri) -> Result<Self, Error> {
        let is_tls = uri.scheme() != Some(&Scheme::HTTP);
        let host =
            uri.host().filter(|host| !host.is_empty()).ok_or(Error::HttpRequestUriInvalid)?;
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { is_tls, host, port })
    }

    /// How an entry of `http` would name it.
    fn entry(&self) -> String {
        let scheme = if self.is_tls { "" } else { "http://" };
        let host = printable(&self.host);
        if host.contains(':') {
            format!("{scheme}[{host}]:{}", self.port)
        } else {
            format!("{scheme}{host}:{}", self.port)
        }
    }
}

/// The addresses that a name stands for now.
async fn look_up(host: String, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

impl Outgoing {
    pub(in crate::sandbox) fn new(
        grants: Arc<Grants>,
        connections: usize,
        said: Arc<Mutex<Said>>,
        label: Arc<AttemptLabel>,
        log_bytes: usize,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Self { grants, slots, said, label, log_bytes }
    }

    async fn send(
        self,
        mut request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Answer, Error> {
        let target = Target::of(request.uri())?;
        if !self.grants.allows_http(target.is_tls, &target.host, target.port) {
            let place = &self.grants.place;
            let entry = target.entry();
            self.refuse(&format!(
                "an HTTP request to {entry} is not granted; to grant it, add `{entry}` to `http` in {place}"
            ));
            return Err(Error::HttpRequestDenied);
        }
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return Err(Error::ConnectionLimitReached);
        };
        let wait = options.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let opened = timeout(wait, self.open(&target, look_up)).await;
        let stream = opened.map_err(|_| Error::ConnectionTimeout)??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = Driver(tokio::spawn(connection));
        // Only a proxy wants the whole URI.
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
        let wait = options.first_byte_timeout.unwrap_or(Duration::MAX);
        let response = timeout(wait, sender.send_request(request))
            .await
            .map_err(|_| Error::ConnectionReadTimeout)??;
        let idle = options.between_bytes_timeout;
        let response = response.map(|body| Received::new(body, idle).boxed_unsync());
        let driven = async move {
            let _slot = slot; // free again when the exchange is over
            driver.join().await
        };
        Ok((response, Box::new(driven)))
    }

    /// Connects to one of the addresses that the host stands for now, all of which must be
    /// allowed: a name with one forbidden address among them is no name to trust.
    async fn open<L>(
        &self,
        target: &Target,
        look_up: impl FnOnce(String, u16) -> L,
    ) -> Result<Box<dyn Stream>, Error>
    where
        L: Future<Output = std::io::Result<Vec<SocketAddr>>>,
    {
        let literal: Option<IpAddr> = target.host.parse().ok();
        let addresses = match literal {
            Some(address) => vec![SocketAddr::new(address, target.port)],
            None => look_up(target.host.clone(), target.port).await.map_err(|error| {
                Error::DnsError { rcode: Some(error.to_string()), info_code: None }
            })?,
        };
        for address in &addresses {
            if !self.grants.allows_address(address.ip(), literal.is_some()) {
                let (name, place) = (printable(&target.host), &self.grants.place);
                self.refuse(&format!(
                    "an HTTP request to {name} is refused: the name stands for {}, which is not on the open internet; to grant it, add that address to `private-addresses` in {place}",
                    address.ip()
                ));
                return Err(Error::DestinationIpProhibited);
            }
        }
        let stream = connect(&addresses).await?;
        if !target.is_tls {
            return Ok(Box::new(stream));
        }
        let name = match literal {
            Some(address) => ServerName::from(address),
            None => ServerName::try_from(target.host.clone())
                .map_err(|_| Error::HttpRequestUriInvalid)?,
        };
        let stream = tls().await?.connect(name, stream).await.map_err(Error::Tls)?;
        Ok(Box::new(stream))
    }

    /// Says among the attempt's own lines why a request was refused, and what would grant it: the
    /// guest itself is told no more than an error code.
    fn refuse(&self, reason: &str) {
        // A secret may stand in the name that the guest asked for.
        let reason = self.grants.redact(reason);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.keep(&format!("WARN: {reason}"), self.log_bytes) {
            let label = &self.label;
            tracing::warn!(
                target: "sqjobs::guest",
                { job.id = %printable(&label.job_id), module = %label.module, attempt = label.attempt },
                "{}: {reason}", printable(&label.job)
            );
        }
    }
}

/// The first of the addresses that answers.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true); // slower without, not wrong
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(Error::DestinationNotFound, Error::Connect))
}

/// The client side of TLS, with the certificate authorities that this machine trusts (or those of
/// `SSL_CERT_FILE`), read once.
async fn tls() -> Result<TlsConnector, Error> {
    static TLS: OnceCell<TlsConnector> = OnceCell::const_new();
    let unusable = |error: String| {
        tracing::warn!("jobs can't use TLS: {error}");
        Error::ConfigurationError
    };
    let connector = TLS.get_or_try_init(|| async {
        let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
        let found = read.await.map_err(|error| error.to_string())?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err("no certificate authority was found; install ca-certificates".to_owned());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    });
    connector.await.cloned().map_err(unusable)
}

/// What a connection runs on: TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The task that moves a connection's bytes; it ends with whoever waits for it.
struct Driver(JoinHandle<Result<(), hyper::Error>>);

impl Driver {
    async fn join(mut self) -> Result<(), Error> {
        match (&mut self.0).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Error::ConnectionTerminated),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response's body, under the guest's limit of the time between two parts of it.
struct Received {
    body: Incoming,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Received {
    fn new(body: Incoming, idle: Option<Duration>) -> Self {
        Self { body, idle: idle.map(|limit| (limit, Box::pin(sleep(limit)))) }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Some((limit, timer)) = &mut self.idle else {
            return polled.map_err(Error::from);
        };
        match polled {
            Poll::Ready(frame) => {
                let next = Instant::now() + *limit;
                timer.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => match timer.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn client(private: &[&str]) -> Outgoing {
        let grants = Grants {
            http: vec!["http://changes.example:80".parse().unwrap()],
            private_addresses: private.iter().map(|text| text.parse().unwrap()).collect(),
            place: "[modules.m.grants]".into(),
            ..Grants::default()
        };
        Outgoing::new(Arc::new(grants), 1, Arc::default(), Arc::default(), 1 << 10)
    }

    fn target(port: u16) -> Target {
        Target { is_tls: false, host: "changes.example".into(), port }
    }

    /// A name that changes its address after the check: there is no second look-up to change it
    /// for.
    #[tokio::test]
    async fn the_connection_goes_to_the_address_that_was_checked() {
        let checked = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = checked.local_addr().unwrap();
        let lookups = Cell::new(0);
        let client = client(&["127.0.0.1"]);
        let target = target(address.port());
        let opened = client.open(&target, |_, _| {
            lookups.set(lookups.get() + 1);
            std::future::ready(Ok(vec![address]))
        });
        assert!(opened.await.is_ok());
        assert_eq!(lookups.get(), 1);
        assert!(checked.accept().await.is_ok());
    }

    #[tokio::test]
    async fn a_name_that_stands_for_a_private_address_too_is_refused_and_the_remedy_told() {
        let client = client(&[]);
        let stands_for = |texts: &[&str]| {
            let addresses: Vec<SocketAddr> =
                texts.iter().map(|text| text.parse().unwrap()).collect();
            |_, _| std::future::ready(Ok(addresses))
        };
        for addresses in [
            &["169.254.169.254:80"][..],
            &["[::ffff:127.0.0.1]:80"],
            &["192.0.2.1:80", "10.0.0.1:80"],
        ] {
            let refused = client.open(&target(80), stands_for(addresses)).await;
            assert!(matches!(refused, Err(Error::DestinationIpProhibited)), "{addresses:?}");
        }
        let said = client.said.lock().unwrap().text.clone();
        assert!(said.contains("private-addresses` in [modules.m.grants]"), "{said}");
    }
}
