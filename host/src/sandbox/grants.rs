//! What one attempt may reach beyond its own memory. An empty [`Grants`] grants nothing.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use super::address::{Network, is_public};

/// Shortest part of a secret that is looked for in what a guest says: shorter ones would black
/// out ordinary words.
const MIN_REDACTED_BYTES: usize = 4;

/// What one attempt may reach. Clocks, random numbers and jobs on its own queue need no grant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Folders of the host.
    pub folders: Vec<Folder>,
    /// Environment variables with their values.
    pub variables: Vec<(String, String)>,
    /// Secrets, which the guest finds among its environment variables.
    pub secrets: Vec<Secret>,
    /// Where HTTP requests may go.
    pub http: Vec<HttpTarget>,
    /// Addresses off the open internet that a listed name may stand for.
    pub private_addresses: Vec<Network>,
    /// Where raw sockets may connect and send to.
    pub sockets: Vec<SocketTarget>,
    /// Queues on which jobs may be added, beside the job's own.
    pub queues: BTreeSet<String>,
    /// Jobs that may be added on any queue.
    pub jobs: BTreeSet<String>,
    /// The table of the configuration that would grant more, for errors:
    /// `[modules.invoices.grants]`.
    pub place: String,
}

/// A folder of the host as a guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The folder itself, without links in its path.
    pub host: PathBuf,
    /// Its path within the guest.
    pub guest: String,
    /// Whether the guest may write in it.
    pub is_writable: bool,
}

/// A secret. Its value is shown by nothing here.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The variable's name in the guest.
    pub name: String,
    /// What must never be seen.
    pub value: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// A host and port that HTTP requests may go to: `api.example.com:443` by TLS,
/// `http://reports.internal:8080` without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTarget {
    is_tls: bool,
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// This name.
    Name(String),
    /// Every name that ends so; begins with a dot.
    Below(String),
    /// This address, written as one.
    Address(IpAddr),
}

/// A host name as it is compared: lower case, no dot at the end.
fn normal(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl HttpTarget {
    /// Whether a request of this scheme to this host and port is meant.
    #[must_use]
    pub fn allows(&self, is_tls: bool, host: &str, port: u16) -> bool {
        let host = normal(host);
        let is_host = match &self.host {
            Host::Name(name) => *name == host,
            Host::Below(end) => host.len() > end.len() && host.ends_with(end.as_str()),
            Host::Address(address) => {
                host.parse::<IpAddr>().is_ok_and(|found| found.to_canonical() == *address)
            }
        };
        is_host && self.is_tls == is_tls && self.port == port
    }
}

impl FromStr for HttpTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected `HOST:PORT` as in `api.example.com:443`, or `http://HOST:PORT` for one without TLS, found `{text}`"
            )
        };
        let (is_tls, rest) = match text.split_once("://") {
            None => (true, text),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(expected()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(expected)?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let name = normal(host);
        let host = if let Ok(address) = name.parse::<IpAddr>() {
            if address.is_ipv6() && !is_bracketed {
                return Err(expected());
            }
            Host::Address(address.to_canonical())
        } else if let Some(end) = name.strip_prefix('*') {
            Host::Below(end.to_owned())
        } else {
            Host::Name(name.clone())
        };
        let checked = match &host {
            Host::Below(end) => end.strip_prefix('.').ok_or_else(expected)?,
            _ => name.as_str(),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let is_address = matches!(host, Host::Address(_));
        if checked.is_empty() || (!is_address && !checked.chars().all(is_name)) {
            return Err(expected());
        }
        Ok(Self { is_tls, host, port })
    }
}

/// Addresses that raw sockets may connect or send to: `10.1.2.3:5432`, `10.0.0.0/8:5432`,
/// `[fd00::/8]:*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketTarget {
    network: Network,
    port: Option<u16>,
}

impl SocketTarget {
    /// Whether this address is meant.
    #[must_use]
    pub fn allows(&self, address: SocketAddr) -> bool {
        self.network.contains(address.ip()) && self.port.is_none_or(|port| port == address.port())
    }
}

impl FromStr for SocketTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected `ADDRESS:PORT` as in `10.1.2.3:5432`, `10.0.0.0/8:*` or `[fd00::1]:6379`, found `{text}`"
            )
        };
        let (network, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let network = match network.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(expected)?,
            None if network.contains(':') => return Err(expected()),
            None => network,
        };
        let network = network.parse().map_err(|_| expected())?;
        let port = match port {
            "*" => None,
            port => Some(port.parse().map_err(|_| expected())?),
        };
        Ok(Self { network, port })
    }
}

impl Grants {
    /// Whether a request may go to this host, by its name.
    #[must_use]
    pub fn allows_http(&self, is_tls: bool, host: &str, port: u16) -> bool {
        self.http.iter().any(|target| target.allows(is_tls, host, port))
    }

    /// Whether a request to a listed host may go to this address, for which its name stands now.
    /// `is_literal` tells that the host was listed as an address.
    #[must_use]
    pub fn allows_address(&self, address: IpAddr, is_literal: bool) -> bool {
        is_literal
            || is_public(address)
            || self.private_addresses.iter().any(|network| network.contains(address))
    }

    /// Whether a raw socket may connect or send to this address.
    #[must_use]
    pub fn allows_socket(&self, address: SocketAddr) -> bool {
        self.sockets.iter().any(|target| target.allows(address))
    }

    /// Whether a job of this name may be added on this queue, which is not the job's own.
    #[must_use]
    pub fn allows_add(&self, queue: &str, job: &str) -> bool {
        self.queues.contains(queue) || self.jobs.contains(job)
    }

    /// The text with every secret in it blacked out. A secret of several lines is found line by
    /// line, since what guests say is kept so.
    #[must_use]
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.secrets {
            let lines = secret.value.lines().map(str::trim);
            for part in lines.filter(|part| part.len() >= MIN_REDACTED_BYTES) {
                if text.contains(part) {
                    text = Cow::Owned(text.replace(part, &format!("[secret {}]", secret.name)));
                }
            }
        }
        text
    }

    /// [`Self::redact`] of a text that is owned already.
    #[must_use]
    pub fn redacted(&self, text: String) -> String {
        match self.redact(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(redacted) => redacted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> HttpTarget {
        text.parse().unwrap()
    }

    #[test]
    fn a_request_goes_only_to_a_listed_scheme_host_and_port() {
        let api = target("api.example.com:443");
        assert!(api.allows(true, "API.example.com.", 443));
        assert!(!api.allows(false, "api.example.com", 443));
        assert!(!api.allows(true, "api.example.com", 8443));
        assert!(!api.allows(true, "api.example.com.evil.org", 443));
        assert!(!api.allows(true, "example.com", 443));
        assert!(target("http://a.b:80").allows(false, "a.b", 80));
        let below = target("*.example.com:443");
        assert!(below.allows(true, "a.b.example.com", 443));
        assert!(!below.allows(true, "example.com", 443));
        assert!(!below.allows(true, "badexample.com", 443));
        assert!(target("http://[::1]:80").allows(false, "[::1]", 80));
        assert!(target("http://127.0.0.1:80").allows(false, "::ffff:127.0.0.1", 80));
        assert!(!target("localhost:80").allows(true, "127.0.0.1", 80));
    }

    #[test]
    fn a_target_that_is_not_well_formed_is_a_fault() {
        for wrong in [
            "api.example.com",
            "ftp://a:1",
            "a b:1",
            "*:443",
            "*a:1",
            ":443",
            "a:0",
            "::1:80",
            "a:99999",
            "u@a:1",
        ] {
            assert!(wrong.parse::<HttpTarget>().is_err(), "{wrong}");
        }
        for wrong in
            ["10.0.0.1", "db.internal:5432", "::1:80", "[::1:80", "10.0.0.0/40:1", "10.0.0.1:x"]
        {
            assert!(wrong.parse::<SocketTarget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_listed_name_stands_for_public_addresses_and_for_those_granted() {
        let mut grants = Grants::default();
        let inner: IpAddr = "10.1.2.3".parse().unwrap();
        assert!(grants.allows_address("1.1.1.1".parse().unwrap(), false));
        assert!(!grants.allows_address(inner, false));
        assert!(grants.allows_address(inner, true));
        grants.private_addresses = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(grants.allows_address(inner, false));
        assert!(!grants.allows_address("127.0.0.1".parse().unwrap(), false));
    }

    #[test]
    fn raw_sockets_reach_listed_addresses_only() {
        let grants = Grants {
            sockets: vec!["10.0.0.0/8:5432".parse().unwrap(), "[::1]:*".parse().unwrap()],
            ..Grants::default()
        };
        assert!(grants.allows_socket("10.9.9.9:5432".parse().unwrap()));
        assert!(!grants.allows_socket("10.9.9.9:80".parse().unwrap()));
        assert!(grants.allows_socket("[::1]:9".parse().unwrap()));
        assert!(!grants.allows_socket("1.1.1.1:5432".parse().unwrap()));
    }

    #[test]
    fn a_secret_is_blacked_out_wherever_it_stands_line_by_line_if_it_has_several() {
        let secret = |name: &str, value: &str| Secret { name: name.into(), value: value.into() };
        let grants = Grants {
            secrets: vec![
                secret("KEY", "hunter2"),
                secret("PEM", "line-one\nline-two\n"),
                secret("X", "ab"),
            ],
            ..Grants::default()
        };
        assert_eq!(grants.redact("a hunter2 b hunter2"), "a [secret KEY] b [secret KEY]");
        assert_eq!(grants.redact("> line-two <"), "> [secret PEM] <");
        assert_eq!(grants.redact("absolutely"), "absolutely");
        assert!(!format!("{grants:?}").contains("hunter2"));
    }
}
