//! A small HTTP server for guests to be let to, or kept from.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::wait;

/// A server on a loopback port that answers `GET /` with `hello` and `GET /to?URL` with a redirect
/// there. It counts connections, and ends with the test's process.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Whether answers are held back.
    holds: Arc<AtomicBool>,
}

impl HttpServer {
    /// Starts it.
    ///
    /// # Panics
    /// No port is free.
    #[must_use]
    pub fn start() -> Self {
        let server = Self::start_holding();
        server.answer();
        server
    }

    /// Starts one that takes connections, and answers nobody until [`Self::answer`] is called.
    ///
    /// # Panics
    /// No port is free.
    #[must_use]
    pub fn start_holding() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let holds = Arc::new(AtomicBool::new(true));
        let (count, held) = (connections.clone(), holds.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let held = held.clone();
                thread::spawn(move || {
                    wait::until_true("leave to answer", || !held.load(Ordering::SeqCst));
                    let reader = stream.try_clone().unwrap();
                    answer(reader, stream);
                });
            }
        });
        Self { address, connections, holds }
    }

    /// Answers all that have come, and whoever comes.
    pub fn answer(&self) {
        self.holds.store(false, Ordering::SeqCst);
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections it has had.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Answers the requests of one connection, until the client is gone.
pub(crate) fn answer(reader: impl Read, mut writer: impl Write) {
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    while let Some(first) = lines.next() {
        // The head ends with an empty line; none of our guests sends a body.
        let _ = lines.by_ref().take_while(|line| !line.is_empty()).count();
        let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
        let (head, body) = match path.strip_prefix("/to?") {
            Some(url) => (format!("302 Found\r\nlocation: {url}"), ""),
            None => ("200 OK".to_owned(), "hello"),
        };
        let length = body.len();
        let text = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}");
        if writer.write_all(text.as_bytes()).and_then(|()| writer.flush()).is_err() {
            return;
        }
    }
}

/// Like [`HttpServer`], by TLS, with a certificate of its own for `localhost`.
#[derive(Debug)]
pub struct TlsServer {
    address: SocketAddr,
    authority: String,
}

impl TlsServer {
    /// Starts it.
    ///
    /// # Panics
    /// No port is free, or no certificate can be made.
    #[must_use]
    pub fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let authority = made.cert.pem();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let config = config.clone();
                thread::spawn(move || {
                    let connection = ServerConnection::new(config).unwrap();
                    let stream = Rc::new(RefCell::new(StreamOwned::new(connection, stream)));
                    answer(Half(stream.clone()), Half(stream));
                });
            }
        });
        Self { address, authority }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The certificate that a client must trust, as PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// One of the two ends of a stream that can't be cloned.
struct Half(Rc<RefCell<StreamOwned<ServerConnection, TcpStream>>>);

impl Read for Half {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

impl Write for Half {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.borrow_mut().flush()
    }
}
