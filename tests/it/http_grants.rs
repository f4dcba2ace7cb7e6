//! HTTP of guests: to the listed hosts and ports and to nobody else, whatever a name stands for
//! and wherever an answer points.

use support::http::HttpServer;
use support::{Output, Project, WorkerProcess, wait};

/// Runs `fetch URL` under these grants.
fn fetch_in(project: &Project, grants: &str, url: &str) -> Output {
    project.write("sqjobs.toml", format!("[modules.fetcher.grants]\n{grants}\n"));
    project.run(&["run", "--job", "fetch", "jobs/fetcher.wasm", &format!("\"{url}\"")])
}

/// What `fetch URL` returns under these grants, and what is logged meanwhile.
fn fetch(grants: &str, url: &str) -> Output {
    fetch_in(&Project::with_guests(&["fetcher"]), grants, url).ok()
}

#[test]
fn a_listed_host_and_port_is_reached() {
    let server = HttpServer::start();
    let host = format!("http://127.0.0.1:{}", server.port());
    let fetched = fetch(&format!("http = [\"{host}\"]"), &format!("{host}/"));
    assert_eq!(fetched.line(), "\"200 hello\"");
    assert_eq!(server.connections(), 1);
}

#[test]
fn what_is_not_listed_is_refused_with_the_line_that_would_grant_it() {
    let (listed, other) = (HttpServer::start(), HttpServer::start());
    let grants = format!("http = [\"http://127.0.0.1:{}\"]", listed.port());
    let entry = format!("http://127.0.0.1:{}", other.port());
    let fetched = fetch(&grants, &format!("{entry}/"));
    assert!(fetched.line().contains("HttpRequestDenied"), "{fetched}");
    fetched.says(&[&format!("add `{entry}` to `http` in [modules.fetcher.grants]")]);
    // Listed without TLS is not listed with it.
    let secure = fetch(&grants, &format!("https://127.0.0.1:{}/", listed.port()));
    assert!(secure.line().contains("HttpRequestDenied"), "{secure}");
    assert_eq!(listed.connections() + other.connections(), 0);
}

#[test]
fn a_module_that_imports_http_is_refused_without_a_grant_and_told_which() {
    let project = Project::with_guests(&["fetcher", "adder"]);
    // What is refused is listed behind what serves.
    let served = |jobs: &Output| jobs.stdout.split("refused:").next().unwrap().to_owned();
    let refused = |jobs: &Output| {
        jobs.says(&["wasi:http", "was not granted", "[modules.fetcher.grants]", "http = ["]);
        let served = served(jobs);
        assert!(!served.contains("fetch") && served.contains("adder_job"), "{jobs}");
    };
    refused(&project.run(&["jobs"]).ok());
    // A grant for a job of another module is none for this one.
    project.write("sqjobs.toml", "[jobs.adder_job.grants]\nhttp = [\"a.example:443\"]\n");
    refused(&project.run(&["jobs"]).ok());
    project.write("sqjobs.toml", "[jobs.fetch.grants]\nhttp = [\"a.example:443\"]\n");
    assert!(served(&project.run(&["jobs"]).ok()).contains("fetch"));
}

#[test]
fn a_grant_of_one_job_is_none_of_its_neighbour_in_the_module() {
    let server = HttpServer::start();
    let project = Project::with_guests(&["fetcher"]);
    let host = format!("http://127.0.0.1:{}", server.port());
    project.write("sqjobs.toml", format!("[jobs.fetch_at_once.grants]\nhttp = [\"{host}\"]\n"));
    let run = |job: &str, more: &[&str]| {
        let url = format!("\"{host}/\"");
        project.run(&[&["run", "--job", job, "jobs/fetcher.wasm", &url], more].concat()).ok()
    };
    assert!(run("fetch", &[]).line().contains("HttpRequestDenied"));
    assert_eq!(run("fetch_at_once", &["1"]).line(), "[\"200\"]");
}

#[test]
fn a_listed_name_that_stands_for_loopback_is_refused_until_that_is_granted() {
    let server = HttpServer::start();
    let host = format!("http://localhost:{}", server.port());
    let grants = format!("http = [\"{host}\"]");
    let fetched = fetch(&grants, &format!("{host}/"));
    assert!(fetched.line().contains("DestinationIpProhibited"), "{fetched}");
    fetched.says(&["localhost", "`private-addresses` in [modules.fetcher.grants]"]);
    assert_eq!(server.connections(), 0);

    let grants = format!("{grants}\nprivate-addresses = [\"127.0.0.0/8\", \"::1\"]");
    assert_eq!(fetch(&grants, &format!("{host}/")).line(), "\"200 hello\"");
}

#[test]
fn the_metadata_address_is_refused_in_every_spelling() {
    for host in ["169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe"] {
        let fetched = fetch("http = [\"http://api.example.com:80\"]", &format!("http://{host}/"));
        assert!(fetched.line().contains("HttpRequestDenied"), "{host}: {fetched}");
    }
}

#[test]
fn a_redirect_is_a_new_request_and_checked_as_one() {
    let (server, hidden) = (HttpServer::start(), HttpServer::start());
    let host = format!("http://127.0.0.1:{}", server.port());
    let grants = format!("http = [\"{host}\"]");
    for target in ["http://169.254.169.254/latest", &format!("http://127.0.0.1:{}/", hidden.port())]
    {
        let fetched = fetch(&grants, &format!("{host}/to?{target}"));
        assert!(fetched.line().contains("HttpRequestDenied"), "{target}: {fetched}");
    }
    assert_eq!(hidden.connections(), 0);
    let fetched = fetch(&grants, &format!("{host}/to?{host}/"));
    assert_eq!(fetched.line(), "\"200 hello\"");
}

#[test]
fn no_proxy_is_taken_from_the_environment() {
    let (server, proxy) = (HttpServer::start(), HttpServer::start());
    let mut project = Project::with_guests(&["fetcher"]);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        project.set(name, &format!("http://127.0.0.1:{}", proxy.port()));
    }
    let host = format!("http://127.0.0.1:{}", server.port());
    let fetched = fetch_in(&project, &format!("http = [\"{host}\"]"), &format!("{host}/")).ok();
    assert_eq!(fetched.line(), "\"200 hello\"");
    assert_eq!((server.connections(), proxy.connections()), (1, 0));
}

#[test]
fn requests_beyond_the_limit_are_refused() {
    let server = HttpServer::start();
    let host = format!("http://127.0.0.1:{}", server.port());
    let project = Project::with_guests(&["fetcher"]);
    let grants = format!("http = [\"{host}\"]\n[defaults]\nconnections = 0");
    let fetched = fetch_in(&project, &grants, &format!("{host}/")).ok();
    assert!(fetched.line().contains("ConnectionLimitReached"), "{fetched}");
    assert_eq!(server.connections(), 0);
}

/// Of three requests at once one is refused, at once, while the server answers nobody.
#[test]
fn so_many_requests_as_are_allowed_are_under_way_at_once() {
    let server = HttpServer::start_holding();
    let host = format!("http://127.0.0.1:{}", server.port());
    let project = Project::with_guests(&["fetcher"]);
    let settings =
        format!("[defaults]\nconnections = 2\n[modules.fetcher.grants]\nhttp = [\"{host}\"]\n");
    project.write("sqjobs.toml", settings);
    let url = format!("\"{host}/\"");
    let mut run = WorkerProcess::spawn(project.command(&[
        "run",
        "--job",
        "fetch_at_once",
        "jobs/fetcher.wasm",
        &url,
        "3",
    ]));
    run.wait_for_line(&["one ended: ", "ConnectionLimitReached"]);
    wait::until_true("two connections", || server.connections() == 2);
    server.answer();
    assert_eq!(run.wait_for_exit().code(), Some(0));
    let answered = run.log().iter().filter(|line| line.contains("one ended: 200")).count();
    assert_eq!((answered, server.connections()), (2, 2), "{}", run.shown());
}

/// The server's certificate is checked against the authorities that the host trusts, and its name
/// against the one that was listed.
#[test]
fn tls_is_checked() {
    let server = support::http::TlsServer::start();
    let mut project = Project::with_guests(&["fetcher"]);
    let host = format!("localhost:{}", server.port());
    let grants = format!(
        "http = [\"{host}\", \"127.0.0.1:{}\"]\nprivate-addresses = [\"127.0.0.0/8\", \"::1\"]",
        server.port()
    );
    let authority = project.write("authority.pem", server.authority()).display().to_string();
    project.set("SSL_CERT_FILE", &authority);
    let fetched = fetch_in(&project, &grants, &format!("https://{host}/")).ok();
    assert_eq!(fetched.line(), "\"200 hello\"");
    // Its certificate is for the name, not for the address.
    let url = format!("https://127.0.0.1:{}/", server.port());
    let fetched = fetch_in(&project, &grants, &url).ok();
    assert!(fetched.line().contains("Tls"), "{fetched}");

    let other = support::http::TlsServer::start();
    project.write("authority.pem", other.authority());
    let fetched = fetch_in(&project, &grants, &format!("https://{host}/")).ok();
    assert!(fetched.line().contains("Tls"), "{fetched}");
}
