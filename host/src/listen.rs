//! The little HTTP that probes and scrapers need: GET a path, get a text, and the connection
//! closes. Off unless `--listen` asks for it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::debug;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// How long one connection may take.
const CONNECTION: Duration = Duration::from_secs(15);
/// Connections at once; others wait.
const MAX_CONNECTIONS: usize = 32;

/// The address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; choose another address or a free port with --listen")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// What a path is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    status: &'static str,
    text: String,
}

impl Answer {
    /// 200.
    #[must_use]
    pub fn ok(text: String) -> Self {
        Self { status: "200 OK", text }
    }

    /// 503.
    #[must_use]
    pub fn unavailable(text: String) -> Self {
        Self { status: "503 Service Unavailable", text }
    }
}

/// The answer to a path; `None`: there is no such path.
pub type Answering = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// Takes the address.
///
/// # Errors
/// Another program has it, or it is none of this machine.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Answers requests, for ever.
pub async fn serve(
    listener: TcpListener,
    answer: impl Fn(String) -> Answering + Send + Sync + 'static,
) {
    let (answer, turns) = (Arc::new(answer), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        // Never closed: the semaphore lives as long as this loop.
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("a connection was not taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let _turn = turn;
            // Whoever hangs up or is slow harms itself only.
            let _ = tokio::time::timeout(CONNECTION, converse(stream, &*answer)).await;
        });
    }
}

async fn converse(
    mut stream: TcpStream,
    answer: &(impl Fn(String) -> Answering + Send + Sync),
) -> std::io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (status, text, has_body) = match request(&head) {
        Ok((method, path)) => match answer(path).await {
            Some(answer) => (answer.status, answer.text, method == "GET"),
            None => ("404 Not Found", "not found\n".to_owned(), method == "GET"),
        },
        Err(status) => (status, String::new(), true),
    };
    let mut reply = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\
         content-length: {}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n",
        text.len()
    );
    if has_body {
        reply.push_str(&text);
    }
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// The request up to its empty line, or what came of it.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while head.len() < MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut part).await?;
        if count == 0 {
            break;
        }
        head.extend_from_slice(&part[..count]);
    }
    Ok(head)
}

/// Method and path of a request, or the status that refuses it.
fn request(head: &[u8]) -> Result<(&str, String), &'static str> {
    const BAD: &str = "400 Bad Request";
    if !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let is_long = head.len() >= MAX_HEAD;
        return Err(if is_long { "431 Request Header Fields Too Large" } else { BAD });
    }
    let end = head.windows(2).position(|end| end == b"\r\n").ok_or(BAD)?;
    let line = std::str::from_utf8(&head[..end]).map_err(|_| BAD)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(BAD);
    }
    if !matches!(method, "GET" | "HEAD") {
        return Err("405 Method Not Allowed");
    }
    let path = target.split('?').next().unwrap_or(target);
    Ok((method, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_method_and_path() {
        let read = request(b"GET /metrics?x=1 HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(read, Ok(("GET", "/metrics".to_owned())));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (head, status) in [
            (&b"POST /livez HTTP/1.1\r\n\r\n"[..], "405"),
            (b"GET /livez", "400"),
            (b"\x16\x03\x01\r\n\r\n", "400"),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", "400"),
            (b"GET /livez SMTP\r\n\r\n", "400"),
            (b"\xff\xfe / HTTP/1.1\r\n\r\n", "400"),
        ] {
            let refused = request(head).expect_err("no request");
            assert!(refused.starts_with(status), "{refused}");
        }
        assert!(request(&[b'a'; MAX_HEAD]).expect_err("too long").starts_with("431"));
    }
}
