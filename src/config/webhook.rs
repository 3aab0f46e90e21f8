//! Webhooks, for announcements of incidents and for other posts: their URL and the key that signs
//! posts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use zeroize::Zeroizing;

use super::Reader;
use super::kms::is_loopback;

const URL: &str = "BYOK_INCIDENT_WEBHOOK_URL";
const SECRET: &str = "BYOK_INCIDENT_WEBHOOK_SECRET";
/// The allowed length of a key (Standard Webhooks 1.0, "Signature scheme": 24 to 64 bytes).
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A webhook: its URL, and the key that signs announcements to it.
pub struct Webhook {
    /// `BYOK_INCIDENT_WEBHOOK_URL`: https, or http to this machine. It may contain a secret of the
    /// receiver, so it is never shown.
    pub url: Url,
    /// `BYOK_INCIDENT_WEBHOOK_SECRET`.
    pub key: WebhookKey,
}

/// A key for HMAC-SHA256, 24 to 64 bytes.
pub struct WebhookKey(Zeroizing<Vec<u8>>);

impl WebhookKey {
    /// Parses the form in which Standard Webhooks gives a secret: `whsec_`, then base64.
    fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.strip_prefix("whsec_")?).ok()?);
        KEY_BYTES.contains(&bytes.len()).then_some(Self(bytes))
    }

    /// Returns the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Webhook {
    /// Reads the section. Returns `None` if neither variable is set, or if an error was recorded.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Self::read_from(reader, URL, SECRET)
    }

    /// Reads a webhook from these two variables.
    pub(super) fn read_from(reader: &mut Reader<'_>, url_name: &str, secret_name: &str) -> Option<Self> {
        for (one, other) in [(url_name, secret_name), (secret_name, url_name)] {
            if reader.is_set(one) && !reader.is_set(other) {
                reader.error(other, format!("is not set, but {one} is"));
            }
        }
        let url = reader.secret(url_name);
        let url = url
            .and_then(|text| address(text.expose()).map_err(|problem| reader.error(url_name, problem)).ok());
        let key = reader.secret(secret_name);
        let key = key.and_then(|text| {
            let key = WebhookKey::parse(text.expose());
            if key.is_none() {
                reader.error(secret_name, "is not `whsec_` and 24 to 64 bytes in base64");
            }
            key
        });
        Some(Self { url: url?, key: key? })
    }
}

/// Parses the address, or returns what is wrong with it without quoting any of it.
fn address(text: &str) -> Result<Url, &'static str> {
    let Ok(url) = Url::parse(text) else {
        return Err("is not an address such as `https://example.com/incidents`");
    };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err("is plain HTTP to another machine: use https"),
        _ => return Err("is neither https nor http"),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(
            "has a user, a password or a fragment, which is not sent to webhooks: the signature identifies the sender",
        );
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    const KEY: &str = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";

    fn read(url: &str, secret: &str) -> (Option<Webhook>, Vec<String>) {
        let env = Env::from_pairs([(URL, url), (SECRET, secret)]);
        let mut reader = Reader::new(&env);
        let webhook = Webhook::read(&mut reader);
        let errors: Vec<_> = reader.into_errors().iter().map(ToString::to_string).collect();
        assert!(errors.iter().all(|error| !error.contains("canary") && !error.contains("Y2FuYXJ5")));
        (webhook, errors)
    }

    fn is_rejected(url: &str, secret: &str, variable: &str) {
        let (webhook, errors) = read(url, secret);
        assert!(webhook.is_none());
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with(variable), "{errors:?}");
    }

    #[test]
    fn both_variables_make_a_webhook_and_neither_makes_none() {
        let (webhook, errors) = read("https://example.com/in?token=canary", KEY);
        assert_eq!(webhook.unwrap().key.expose(), b"canary-canary-canary-canary");
        assert_eq!(errors, [""; 0]);
        let (webhook, errors) = read("", "");
        assert!(webhook.is_none() && errors.is_empty());
    }

    #[test]
    fn one_variable_without_the_other_is_an_error() {
        is_rejected("https://example.com/in", "", SECRET);
        is_rejected("", KEY, URL);
    }

    #[test]
    fn plain_http_goes_to_this_machine_only() {
        for local in ["http://127.0.0.1:9/in", "http://localhost/in", "http://[::1]:9"] {
            assert!(read(local, KEY).0.is_some(), "{local}");
        }
        for other in ["http://example.com/canary", "http://10.0.0.1", "ftp://127.0.0.1", "canary", "/in"] {
            is_rejected(other, KEY, URL);
        }
    }

    #[test]
    fn an_address_with_credentials_is_an_error() {
        for address in
            ["https://canary@example.com", "https://u:canary@example.com", "https://example.com/#canary"]
        {
            is_rejected(address, KEY, URL);
        }
    }

    #[test]
    fn a_secret_has_its_prefix_and_24_to_64_bytes() {
        let of = |bytes| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        for good in [24, 32, 64] {
            assert!(read("https://example.com", &of(good)).0.is_some(), "{good}");
        }
        for bad in
            [of(23), of(65), of(32).replace("whsec_", ""), "whsec_canary!".to_owned(), "whsec_".to_owned()]
        {
            is_rejected("https://example.com", &bad, SECRET);
        }
    }
}
