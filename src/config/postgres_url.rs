//! The URL of a PostgreSQL database. Checks which of libpq's forms the driver accepts, and converts
//! the others into a form that it does (postgresql.org/docs/current/libpq-connect.html, "Connection
//! URIs"). No message contains a part of the URL, because any part of it may belong to a password
//! that was not escaped.

use crate::crypto::SecretText;

/// The parameters that a URL may have after its `?`. The driver would ignore any other silently.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "application_name",
    "options",
    "pgbouncer",
];

/// The parameters that libpq accepts and byok does not. If one is present, the message names it.
const OF_LIBPQ: [&str; 22] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "passfile",
    "replication",
    "require_auth",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcrl",
    "sslnegotiation",
    "sslpassword",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
];

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// Returns whether this is a URL of PostgreSQL at all.
pub(super) fn has_scheme(url: &str) -> bool {
    SCHEMES.iter().any(|scheme| url.starts_with(scheme))
}

/// Returns what is wrong with a URL that [`has_scheme`] accepts, if anything is known to be wrong.
pub(super) fn problem(url: &str) -> Option<String> {
    let names: Vec<&str> = parameters(url).map(name_of).collect();
    if url.split_once('?').is_some_and(|(_, query)| query.contains('@')) {
        return Some("has an `@` after a `?`: in a password, write `?` as `%3F`".to_owned());
    }
    let known = PARAMETERS.join(", ");
    if let Some(name) = OF_LIBPQ.iter().find(|name| names.contains(name)) {
        return Some(format!("has the parameter `{name}`, which is not supported; it takes {known}"));
    }
    if !names.iter().all(|name| PARAMETERS.contains(name)) {
        return Some(format!("has a parameter after its `?` that is none of {known}"));
    }
    let hosts = parameters(url).filter(|pair| ["host", "hostaddr", "port"].contains(&name_of(pair)));
    let Parts { host, port, .. } = Parts::of(url);
    if hosts.chain([host, port]).any(|host| host.contains(',')) {
        let one = "names several hosts; it takes one, such as that of a proxy that leads to the primary";
        return Some(one.to_owned());
    }
    None
}

/// Returns the URL in the form that the driver accepts, without byok's own parameter, and whether
/// that parameter was true.
pub(super) fn for_driver(url: &SecretText) -> (SecretText, bool) {
    let text = url.expose();
    let Parts { scheme, user, password, host, port, path } = Parts::of(text);
    let is_own = |pair: &&str| name_of(pair) == "pgbouncer";
    let asked = parameters(text).any(|pair| pair == "pgbouncer=true");
    let mut query: Vec<String> = Vec::new();
    // Without a host, the driver accepts a user only behind the `?`, where `+` and `&` have a
    // meaning.
    let mut authority = text[scheme.len()..].split(['/', '?']).next().unwrap_or_default();
    if host.is_empty() {
        let given = [("user", user), ("password", password), ("port", port)];
        let given = given.iter().filter(|(_, value)| !value.is_empty());
        query.extend(given.map(|(name, value)| {
            format!("{name}={}", value.replace('+', "%2B").replace('&', "%26").replace('#', "%23"))
        }));
        authority = "";
    }
    query.extend(parameters(text).filter(|pair| !is_own(pair)).map(str::to_owned));
    let separator = if query.is_empty() { "" } else { "?" };
    (SecretText::new(format!("{scheme}{authority}{path}{separator}{}", query.join("&"))), asked)
}

/// The parts of a URL. Nothing is decoded.
struct Parts<'u> {
    scheme: &'u str,
    user: &'u str,
    password: &'u str,
    host: &'u str,
    port: &'u str,
    /// The path, with its slash.
    path: &'u str,
}

impl<'u> Parts<'u> {
    fn of(url: &'u str) -> Self {
        let scheme = SCHEMES
            .into_iter()
            .find(|scheme| url.starts_with(scheme))
            .map_or("", |found| &url[..found.len()]);
        let rest = url[scheme.len()..].split('?').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        // An IPv6 address contains colons itself, within brackets.
        let end = address.rfind(']').map_or(0, |end| end + 1);
        let at = address[end..].find(':').map_or(address.len(), |at| end + at);
        Self {
            scheme,
            user,
            password,
            host: &address[..at],
            port: address[at..].trim_start_matches(':'),
            path,
        }
    }
}

fn parameters(url: &str) -> impl Iterator<Item = &str> {
    url.split_once('?').map_or("", |(_, query)| query).split('&').filter(|pair| !pair.is_empty())
}

fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driven(url: &str) -> String {
        assert_eq!(problem(url), None, "{url}");
        for_driver(&SecretText::new(url.to_owned())).0.expose().to_owned()
    }

    #[test]
    fn a_url_with_a_host_stays_as_it_is() {
        for url in [
            "postgres://u:p@h:5432/d?sslmode=require",
            "postgresql://h",
            "postgres://u@[::1]:5432/d",
            "postgres://h/d?user=u&password=p",
            "postgres:///d",
        ] {
            assert_eq!(driven(url), url);
        }
    }

    #[test]
    fn without_a_host_user_password_and_port_become_query_parameters() {
        for (url, expected) in [
            ("postgresql://u@/d?host=/run/pg", "postgresql:///d?user=u&host=/run/pg"),
            ("postgres://u:a+b%26@:5433/d", "postgres:///d?user=u&password=a%2Bb%26&port=5433"),
            ("postgres://:5433/d?host=/run/pg&pgbouncer=true", "postgres:///d?port=5433&host=/run/pg"),
        ] {
            assert_eq!(driven(url), expected);
        }
    }

    #[test]
    fn what_only_libpq_takes_is_named() {
        let problem = |url| problem(url).unwrap();
        assert!(problem("postgres://h/d?target_session_attrs=primary").contains("`target_session_attrs`"));
        assert!(problem("postgres://a:1,b:2/d").contains("several hosts"));
        assert!(problem("postgres:///d?host=a,b").contains("several hosts"));
    }
}
