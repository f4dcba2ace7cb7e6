//! As much of HTTP/1.1 as SQS clients and the test server speak.

use std::io;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// One call.
pub(super) struct Request {
    pub(super) head: String,
    pub(super) action: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Whether the call is about a FIFO queue.
    pub(super) fn is_of_fifo_queue(&self) -> bool {
        self.asked()["QueueUrl"].as_str().is_some_and(|url| url.ends_with(".fifo"))
    }

    /// Whether the call is about the queue of this name.
    pub(super) fn is_of_queue(&self, name: &str) -> bool {
        let asked = self.asked();
        let url = asked["QueueUrl"].as_str().unwrap_or_default();
        url.rsplit('/').next() == Some(name) || asked["QueueName"].as_str() == Some(name)
    }

    /// How many entries a batch has.
    pub(super) fn entries(&self) -> usize {
        self.asked()["Entries"].as_array().map_or(0, Vec::len)
    }

    fn asked(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The answer to a call.
pub(super) struct Reply {
    pub(super) status: String,
    pub(super) body: Vec<u8>,
}

/// Makes one call on a connection of its own.
pub(super) async fn forward(upstream: &str, request: &Request, body: &[u8]) -> io::Result<Reply> {
    let mut server = BufReader::new(TcpStream::connect(upstream).await?);
    let mut head = String::new();
    for line in request.head.lines() {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !["connection", "content-length"].contains(&name.as_str()) {
            head.push_str(line);
            head.push_str("\r\n");
        }
    }
    head.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()));
    server.write_all(head.as_bytes()).await?;
    server.write_all(body).await?;
    server.flush().await?;

    let head = read_head(&mut server).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head
        .lines()
        .next()
        .and_then(|line| line.split_once(' '))
        .map_or("502 Bad Gateway", |(_, rest)| rest);
    let body = read_body(&mut server, &head).await?;
    Ok(Reply { status: status.to_owned(), body })
}

pub(super) async fn read_request(client: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let Some(head) = read_head(client).await? else { return Ok(None) };
    let action = header(&head, "x-amz-target")
        .and_then(|target| target.rsplit('.').next())
        .unwrap_or_default();
    let action = action.to_owned();
    let body = read_body(client, &head).await?;
    Ok(Some(Request { head, action, body }))
}

/// Reads up to the empty line; `None` at the end of the connection.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line == "\r\n" {
            return Ok(Some(head));
        }
        head.push_str(&line);
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then(|| value.trim()))
}

async fn read_body(stream: &mut BufReader<TcpStream>, head: &str) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length: usize =
        header(head, "content-length").unwrap_or("0").parse().map_err(io::Error::other)?;
    body.resize(length, 0);
    stream.read_exact(&mut body).await?;
    Ok(body)
}
