//! The SDK's clients, configured to do nothing of their own accord: no retries of their own, no
//! time limits beside ours, no proxy or endpoint from the environment, no redirects (the SDK
//! follows none), and TLS over `ring` with the system's certificates.
//!
//! Copies that the SDK makes: the plaintext in an answer passes through the buffers of hyper and
//! rustls and the SDK's own copy of the body, which only the allocator wipes when they are freed;
//! the `Blob` that it is decoded to becomes ours and is wiped. A DEK that is to be wrapped is
//! copied to a `Blob` and the request's body likewise; `generate` sends none.

use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{
    AppName, BehaviorVersion, IdentityCache, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;

use crate::config::AwsSettings;

use super::session::Slot;

/// A builder of clients that share their connections.
#[derive(Clone)]
pub(super) struct Clients {
    http: SharedHttpClient,
}

/// One configuration for KMS and STS, whose builders have the same shape and different types.
macro_rules! configured {
    ($sdk:ident, $clients:expr, $settings:expr, $slot:expr, $endpoint:expr) => {{
        let settings: &AwsSettings = $settings;
        // A host that takes no connection is out of reach, and not slow: it is tried again within
        // the deadline.
        let timeouts = TimeoutConfig::builder().connect_timeout(settings.timeout / 4).build();
        let mut config = $sdk::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .app_name(AppName::new("byok").expect("a plain word"))
            .region(Region::new(settings.key.region.clone()))
            .http_client($clients.http.clone())
            .credentials_provider($slot)
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        config = match $endpoint {
            Some(endpoint) => config.endpoint_url(endpoint.as_str()),
            None => config.use_fips(settings.fips),
        };
        $sdk::Client::from_conf(config.build())
    }};
}

impl Clients {
    pub(super) fn new() -> Self {
        Self { http: Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https() }
    }

    pub(super) fn http(&self) -> SharedHttpClient {
        self.http.clone()
    }

    pub(super) fn kms(&self, settings: &AwsSettings, slot: Slot) -> aws_sdk_kms::Client {
        configured!(aws_sdk_kms, self, settings, slot, &settings.endpoint)
    }

    pub(super) fn sts(&self, settings: &AwsSettings, slot: Slot) -> aws_sdk_sts::Client {
        configured!(aws_sdk_sts, self, settings, slot, &settings.sts_endpoint)
    }
}
