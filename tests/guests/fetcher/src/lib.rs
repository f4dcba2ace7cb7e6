//! Sends HTTP requests wherever it is told to.

use sqjobs_sdk::prelude::*;
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{ErrorCode, Fields, IncomingResponse, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

/// `fetch URL`: returns status and body, or the error; follows redirects, as a library would.
#[derive(Default)]
struct Fetch;

impl Job for Fetch {
    const NAME: &str = "fetch";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let mut url: String = call.arg(0)?;
        for _ in 0..5 {
            let response = match get(&url) {
                Ok(response) => response,
                Err(error) => return Ok(format!("error: {error:?}")),
            };
            let location = response.headers().get("location");
            if let (301..=308, Some(location)) = (response.status(), location.first()) {
                url = String::from_utf8_lossy(location).into_owned();
                continue;
            }
            return Ok(format!("{} {}", response.status(), body(&response)));
        }
        Ok("error: too many redirects".to_owned())
    }
}

/// `fetch_at_once URL COUNT`: begins so many requests before it looks at an answer; logs how each
/// ended, as soon as it did, and returns that in the order in which they were begun.
#[derive(Default)]
struct FetchAtOnce;

impl Job for FetchAtOnce {
    const NAME: &str = "fetch_at_once";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let (url, count): (String, usize) = (call.arg(0)?, call.arg(1)?);
        let begun: Vec<_> = (0..count).filter_map(|_| begin(&url).ok()).collect();
        let mut ends = vec![String::new(); begun.len()];
        let mut kept = Vec::new();
        while ends.iter().any(String::is_empty) {
            let waiting: Vec<usize> = (0..begun.len()).filter(|&at| ends[at].is_empty()).collect();
            let pollables: Vec<_> = waiting.iter().map(|&at| begun[at].subscribe()).collect();
            for ready in wasip2::io::poll::poll(&pollables.iter().collect::<Vec<_>>()) {
                let at = waiting[ready as usize];
                ends[at] = match begun[at].get() {
                    Some(Ok(Ok(response))) => {
                        let status = response.status().to_string();
                        kept.push(response);
                        status
                    }
                    Some(Ok(Err(error))) => format!("{error:?}"),
                    _ => "gone".to_owned(),
                };
                info!("one ended: {}", ends[at]);
            }
        }
        Ok(ends)
    }
}

sqjobs_sdk::export!(Fetch, FetchAtOnce);

type Pending = wasip2::http::types::FutureIncomingResponse;

fn begin(url: &str) -> Result<Pending, ErrorCode> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some((_, rest)) => (Scheme::Https, rest),
        None => (Scheme::Https, url),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let request = OutgoingRequest::new(Fields::new());
    let is_set = request.set_scheme(Some(&scheme)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    if !is_set {
        return Err(ErrorCode::HttpRequestUriInvalid);
    }
    handle(request, None)
}

fn get(url: &str) -> Result<IncomingResponse, ErrorCode> {
    let future = begin(url)?;
    future.subscribe().block();
    match future.get() {
        Some(Ok(ended)) => ended,
        _ => Err(ErrorCode::InternalError(None)),
    }
}

fn body(response: &IncomingResponse) -> String {
    let Ok(body) = response.consume() else { return String::new() };
    let Ok(stream) = body.stream() else { return String::new() };
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(part) => bytes.extend(part),
            Err(StreamError::Closed) => break,
            Err(error) => return format!("error: {error:?}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
