//! An S3-compatible bucket with object lock. Each note is put with a retention in compliance mode,
//! during which nobody, not even the root user of the account, can delete or replace that version
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html>). The copy of the
//! newest note is not locked, since it is replaced each time.
//!
//! Requests go only to the configured address: no redirect is followed, and no proxy is taken from
//! the environment. Bodies of errors are not read.

use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sdk_kms::config::Region;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode};

use crate::config::{AwsCredentials, CheckpointBucket};
use crate::crypto::sha256;
use crate::model::Timestamp;

use super::{ArchiveError, LATEST, MAX_NOTE_BYTES, encoded, note_of};

/// The largest list: a thousand names with their metadata.
const MAX_LIST_BYTES: usize = 4 << 20;
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A bucket of notes.
pub struct Bucket {
    client: Client,
    settings: CheckpointBucket,
    /// The URL of the bucket, without a trailing slash.
    base: String,
}

impl Bucket {
    pub(super) fn new(settings: CheckpointBucket) -> Option<Self> {
        let client = Client::builder()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("byok/", env!("CARGO_PKG_VERSION")))
            .build()
            .ok()?;
        let (name, region) = (&settings.name, &settings.region);
        let base = match &settings.endpoint {
            // Services other than AWS rarely have a host name for each bucket.
            Some(endpoint) => format!("{}/{name}", endpoint.as_str().trim_end_matches('/')),
            // A host name with a dot in the bucket's name would not match AWS's certificate.
            None if name.contains('.') => format!("https://s3.{region}.{}/{name}", domain(region)),
            None => format!("https://{name}.s3.{region}.{}", domain(region)),
        };
        Some(Self { client, settings, base })
    }

    pub(super) fn address(&self) -> String {
        format!("{}/{}", self.base, self.settings.prefix)
    }

    pub(super) async fn put(
        &self,
        folder: &str,
        name: &str,
        note: &str,
        now: Timestamp,
    ) -> Result<(), ArchiveError> {
        let until = now.plus(DAY * self.settings.retain_days);
        // In whole seconds, as S3 requires.
        let until = Timestamp(until.unix_seconds() * 1_000_000).to_string();
        let locked =
            [("x-amz-object-lock-mode", "COMPLIANCE"), ("x-amz-object-lock-retain-until-date", &until)];
        self.put_one(folder, name, note, &locked, now).await?;
        self.put_one(folder, LATEST, note, &[], now).await
    }

    /// Up to a thousand names in the folder after this one, in order, and whether there are more
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>).
    pub(super) async fn names(
        &self,
        folder: &str,
        after: &str,
        now: Timestamp,
    ) -> Result<(Vec<String>, bool), ArchiveError> {
        let within = format!("{}{folder}/", self.settings.prefix);
        let after = encoded(&format!("{within}{after}"));
        let url = format!("{}?list-type=2&prefix={}&start-after={after}", self.base, encoded(&within));
        let response = self.send(Method::GET, &url, &[], "", now).await?;
        if response.status() != StatusCode::OK {
            return Err(ArchiveError::Status(response.status().as_u16()));
        }
        let text = String::from_utf8(read_body(response, MAX_LIST_BYTES).await?)
            .map_err(|_| ArchiveError::NoNote)?;
        // Only the last part of a key is used, in which nothing is escaped.
        let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        let names = keys.filter_map(|key| key.rsplit('/').next()).map(str::to_owned).collect();
        Ok((names, text.contains("<IsTruncated>true</IsTruncated>")))
    }

    pub(super) async fn note(
        &self,
        folder: &str,
        name: &str,
        now: Timestamp,
    ) -> Result<Option<String>, ArchiveError> {
        let response = self.send(Method::GET, &self.url(folder, name), &[], "", now).await?;
        match response.status() {
            StatusCode::OK => note_of(read_body(response, MAX_NOTE_BYTES).await?).map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(ArchiveError::Status(status.as_u16())),
        }
    }

    async fn put_one(
        &self,
        folder: &str,
        name: &str,
        note: &str,
        headers: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<(), ArchiveError> {
        let checksum = STANDARD.encode(sha256(note.as_bytes()));
        let mut all = vec![
            ("content-type", "text/plain; charset=utf-8"),
            // S3 requires a checksum for an object with a retention.
            ("x-amz-sdk-checksum-algorithm", "SHA256"),
            ("x-amz-checksum-sha256", &checksum),
        ];
        all.extend_from_slice(headers);
        match self.send(Method::PUT, &self.url(folder, name), &all, note, now).await?.status() {
            status if status.is_success() => Ok(()),
            status => Err(ArchiveError::Status(status.as_u16())),
        }
    }

    fn url(&self, folder: &str, name: &str) -> String {
        // The names of folder and note are percent-encoded already; as path segments they are
        // encoded again.
        let prefix: String = self.settings.prefix.split_inclusive('/').map(segment).collect();
        format!("{}/{prefix}{}/{}", self.base, encoded(folder), encoded(name))
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
        now: Timestamp,
    ) -> Result<Response, ArchiveError> {
        let mut request = self.client.request(method.clone(), url).body(body.to_owned());
        for (header, value) in headers.iter().copied() {
            request = request.header(header, value);
        }
        let credentials = self.credentials().await?;
        for (header, value) in signed(&credentials, &self.settings.region, &method, url, headers, body, now)?
        {
            request = request.header(header, value);
        }
        request.send().await.map_err(|_| ArchiveError::Unreachable)
    }

    async fn credentials(&self) -> Result<Credentials, ArchiveError> {
        if let AwsCredentials::Keys { access_key_id, secret_access_key, session_token } =
            &self.settings.credentials
        {
            let secret = secret_access_key.expose().to_owned();
            let token = session_token.as_ref().map(|token| token.expose().to_owned());
            return Ok(Credentials::new(access_key_id.as_str(), secret, token, None, "byok"));
        }
        // A new chain each time, since a chain reads a profile only once. Notes are put once a
        // minute.
        let region = Region::new(self.settings.region.clone());
        let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let config = ProviderConfig::without_region()
            .with_region(Some(region.clone()))
            .with_http_client(http)
            .with_retry_config(RetryConfig::disabled());
        let chain = DefaultCredentialsChain::builder().configure(config).region(region).build().await;
        // The error may quote what it has read.
        chain.provide_credentials().await.map_err(|_| ArchiveError::NoCredentials)
    }
}

/// The whole body, if it is not longer than `max`.
async fn read_body(mut response: Response, max: usize) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| ArchiveError::Unreachable)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > max {
            return Err(ArchiveError::NoNote);
        }
    }
    Ok(bytes)
}

/// The headers that sign a request (AWS Signature Version 4).
fn signed(
    credentials: &Credentials,
    region: &str,
    method: &Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
    now: Timestamp,
) -> Result<Vec<(String, String)>, ArchiveError> {
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("s3")
        .time(now.to_datetime().into())
        .settings(settings)
        .build();
    let parameters = parameters.map_err(|_| ArchiveError::NoCredentials)?.into();
    let body = SignableBody::Bytes(body.as_bytes());
    let request = SignableRequest::new(method.as_str(), url, headers.iter().copied(), body);
    let output = request.and_then(|request| sign(request, &parameters));
    let (instructions, _) = output.map_err(|_| ArchiveError::NoCredentials)?.into_parts();
    Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn segment(part: &str) -> String {
    match part.strip_suffix('/') {
        Some(name) => format!("{}/", encoded(name)),
        None => encoded(part),
    }
}

fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}
