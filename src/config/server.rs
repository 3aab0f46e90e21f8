//! The address that the server listens on, and the limits on its simultaneous work.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::{Network, Reader};

/// The files of inbound TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// `BYOK_TLS_CERT_FILE`: the certificate chain, PEM.
    pub certificates: PathBuf,
    /// `BYOK_TLS_KEY_FILE`: its private key, PEM.
    pub key: PathBuf,
}

/// The listener and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `BYOK_LISTEN`: address and port.
    pub listen: SocketAddr,
    /// Inbound TLS, when both files are named.
    pub tls: Option<Tls>,
    /// `BYOK_REQUEST_TIMEOUT_SECONDS`: the time after which a request is answered `UNAVAILABLE`.
    /// Its client then has as much time again to receive the answer.
    pub request_timeout: Duration,
    /// `BYOK_MAX_IN_FLIGHT`: the number of requests that are processed at once.
    pub in_flight: usize,
    /// `BYOK_MAX_BYTES_IN_FLIGHT`: the number of bytes of request and answer bodies that are held
    /// at once.
    pub bytes_in_flight: usize,
    /// `BYOK_IDLE_SECONDS`: how long a connection may be without a request. It should be longer
    /// than proxies in between keep their connections (usually 60 s): otherwise a proxy sends a
    /// request on a connection that was just closed.
    pub idle: Duration,
    /// `BYOK_DRAIN_SECONDS`: how long a stop waits for requests in flight.
    pub drain: Duration,
    /// `BYOK_CONSOLE`: whether GraphiQL is served.
    pub console: bool,
    /// `BYOK_TRUSTED_PROXIES`: the proxies whose `X-Forwarded-For` is trusted to name the origin of
    /// a request.
    pub trusted_proxies: Vec<Network>,
    /// `BYOK_CORS_ORIGINS`: the origins whose pages may read answers, each in the form that
    /// browsers send.
    pub cors_origins: Vec<String>,
    /// `BYOK_METRICS_LISTEN`: the only address where metrics are served, if it is set.
    pub metrics_listen: Option<SocketAddr>,
}

impl Server {
    /// The default address: port 3741, on this machine only.
    pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3741);

    /// Reads only the address to listen on.
    pub fn read_listen(reader: &mut Reader<'_>) -> SocketAddr {
        address(reader, "BYOK_LISTEN").unwrap_or(Self::DEFAULT_LISTEN)
    }

    /// Reads only the files of inbound TLS.
    pub fn read_tls(reader: &mut Reader<'_>) -> Option<Tls> {
        match (reader.file("BYOK_TLS_CERT_FILE"), reader.file("BYOK_TLS_KEY_FILE")) {
            (Some(certificates), Some(key)) => Some(Tls { certificates, key }),
            (None, None) => None,
            (Some(_), None) => {
                reader.error("BYOK_TLS_KEY_FILE", "is not set, but BYOK_TLS_CERT_FILE is");
                None
            }
            (None, Some(_)) => {
                reader.error("BYOK_TLS_CERT_FILE", "is not set, but BYOK_TLS_KEY_FILE is");
                None
            }
        }
    }

    /// Reads the section. `console` tells whether GraphiQL is served if the environment does not
    /// say, and `body_bytes` is the largest length of a body.
    pub fn read(reader: &mut Reader<'_>, console: bool, body_bytes: usize) -> Self {
        let listen = Self::read_listen(reader);
        let metrics_listen = address(reader, "BYOK_METRICS_LISTEN");
        let tls = Self::read_tls(reader);
        // One caller gets at most half of the bytes. With fewer, the largest body would always be
        // refused.
        let bytes_in_flight = reader.number("BYOK_MAX_BYTES_IN_FLIGHT", 4 * body_bytes, 1_024..=1 << 40);
        if bytes_in_flight / 2 < body_bytes {
            reader.error("BYOK_MAX_BYTES_IN_FLIGHT", "is less than twice BYOK_MAX_BODY_BYTES");
        }
        Self {
            listen,
            tls,
            request_timeout: Duration::from_secs(reader.number("BYOK_REQUEST_TIMEOUT_SECONDS", 30, 1..=600)),
            in_flight: reader.number("BYOK_MAX_IN_FLIGHT", 2_048, 1..=1_000_000),
            bytes_in_flight,
            idle: Duration::from_secs(reader.number("BYOK_IDLE_SECONDS", 75, 1..=3_600)),
            drain: Duration::from_secs(reader.number("BYOK_DRAIN_SECONDS", 15, 0..=600)),
            console: reader.flag("BYOK_CONSOLE", console),
            trusted_proxies: networks(reader, "BYOK_TRUSTED_PROXIES"),
            cors_origins: origins(reader, "BYOK_CORS_ORIGINS"),
            metrics_listen,
        }
    }
}

fn address(reader: &mut Reader<'_>, name: &str) -> Option<SocketAddr> {
    let address = reader.text(name)?.parse();
    if address.is_err() {
        reader.error(name, "is not an address and a port, such as `0.0.0.0:3741`");
    }
    address.ok()
}

fn networks(reader: &mut Reader<'_>, name: &str) -> Vec<Network> {
    let text = reader.text(name).unwrap_or_default();
    let networks =
        text.split(',').map(str::trim).filter(|network| !network.is_empty()).map(str::parse::<Network>);
    networks.collect::<Result<_, _>>().unwrap_or_else(|_| {
        reader.error(name, "is not a list of addresses and networks, such as `10.0.0.0/8,192.0.2.7`");
        Vec::new()
    })
}

/// Reads a list of exact origins. `*` is not accepted: a page of any site could then use a token
/// that it obtained in its reader's own network. Plain http is accepted only to this machine:
/// anyone on the network path could change the page, which holds the token.
fn origins(reader: &mut Reader<'_>, name: &str) -> Vec<String> {
    let text = reader.text(name).unwrap_or_default();
    let origins: Vec<&str> = text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if text.contains('*') {
        reader
            .error(name, "has `*`: name each origin whose pages may call, such as `https://app.example.com`");
    } else if !origins.iter().all(|origin| is_origin(origin)) {
        let problem = "is not a list of origins as browsers write them, such as `https://app.example.com,http://localhost:3000`: \
                       https, or http to this machine, without a path, a `/` at the end or the scheme's own port";
        reader.error(name, problem);
    }
    origins.into_iter().map(str::to_owned).collect()
}

fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    (url.scheme() == "https" || (url.scheme() == "http" && is_here))
        && url.origin().ascii_serialization() == text
}

#[cfg(test)]
mod tests {
    use super::super::Env;
    use super::*;

    fn read(variables: &[(&str, &str)], body_bytes: usize) -> (Server, usize) {
        let pairs = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = Env::from_pairs(pairs.collect::<Vec<_>>());
        let mut reader = Reader::new(&env);
        let server = Server::read(&mut reader, false, body_bytes);
        (server, reader.error_count())
    }

    #[test]
    fn four_of_the_largest_bodies_may_be_held_by_default() {
        let (server, errors) = read(&[], 1 << 20);
        assert_eq!((server.in_flight, server.bytes_in_flight, errors), (2_048, 4 << 20, 0));
    }

    #[test]
    fn a_bound_below_the_largest_body_is_an_error() {
        let bytes = [("BYOK_MAX_BYTES_IN_FLIGHT", "2097151")];
        assert_eq!(read(&bytes, 1 << 20).1, 1);
        assert_eq!(read(&bytes, (1 << 20) - 1).1, 0);
    }

    #[test]
    fn origins_are_named_one_by_one_as_browsers_write_them() {
        let origins = |list: &str| {
            let (server, errors) = read(&[("BYOK_CORS_ORIGINS", list)], 1 << 20);
            (server.cors_origins, errors)
        };
        let two = ["https://app.example.com", "http://localhost:3000"].map(str::to_owned).to_vec();
        assert_eq!(origins("https://app.example.com, http://localhost:3000,"), (two, 0));
        assert_eq!(origins(""), (Vec::new(), 0));
        for bad in [
            "*",
            "https://app.example.com,*",
            "https://*.example.com",
            "app.example.com",
            "https://app.example.com/",
            "https://app.example.com/page",
            "https://app.example.com:443",
            "https://App.example.com",
            "https://user@app.example.com",
            "http://app.example.com",
            "null",
            "file://",
        ] {
            assert_eq!(origins(bad).1, 1, "{bad}");
        }
    }

    #[test]
    fn proxies_are_a_list_of_addresses_and_networks() {
        let proxies = |list: &str| {
            let (server, errors) = read(&[("BYOK_TRUSTED_PROXIES", list)], 1 << 20);
            (server.trusted_proxies.len(), errors)
        };
        assert_eq!(proxies(""), (0, 0));
        assert_eq!(proxies("10.0.0.0/8, 192.0.2.7,fd00::/8"), (3, 0));
        assert_eq!(proxies("10.0.0.0/8, proxy"), (0, 1));
        assert_eq!(read(&[("BYOK_METRICS_LISTEN", "9090")], 1 << 20).1, 1);
    }
}
