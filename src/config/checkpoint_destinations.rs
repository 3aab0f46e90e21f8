//! The destinations where the customer keeps checkpoints of the audit log.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::kms::{AwsCredentials, aws_credentials, is_loopback};
use super::{Reader, Webhook};

const DIRECTORY: &str = "BYOK_AUDIT_CHECKPOINT_DIR";
const WEBHOOK_URL: &str = "BYOK_AUDIT_CHECKPOINT_WEBHOOK_URL";
const WEBHOOK_SECRET: &str = "BYOK_AUDIT_CHECKPOINT_WEBHOOK_SECRET";
const BUCKET: &str = "BYOK_AUDIT_CHECKPOINT_S3_BUCKET";
const PREFIX: &str = "BYOK_AUDIT_CHECKPOINT_S3_PREFIX";
const REGION: &str = "BYOK_AUDIT_CHECKPOINT_S3_REGION";
const ENDPOINT: &str = "BYOK_AUDIT_CHECKPOINT_S3_ENDPOINT";
const RETAIN_DAYS: &str = "BYOK_AUDIT_CHECKPOINT_S3_RETAIN_DAYS";

/// The destinations of checkpoints, and how often checkpoints are published.
pub struct CheckpointDestinations {
    /// `BYOK_AUDIT_CHECKPOINT_DIR`.
    pub directory: Option<PathBuf>,
    /// `BYOK_AUDIT_CHECKPOINT_S3_BUCKET` and its related variables.
    pub bucket: Option<CheckpointBucket>,
    /// `BYOK_AUDIT_CHECKPOINT_WEBHOOK_URL` and `…_SECRET`.
    pub webhook: Option<Webhook>,
    /// `BYOK_AUDIT_CHECKPOINT_SECONDS`: the shortest time between two publications at one
    /// destination.
    pub every: Duration,
}

/// An S3-compatible bucket with object lock.
pub struct CheckpointBucket {
    /// The bucket's name.
    pub name: String,
    /// The prefix of the names of its objects: empty, or ending with a slash.
    pub prefix: String,
    /// The bucket's region.
    pub region: String,
    /// The endpoint, if it is not AWS's own.
    pub endpoint: Option<Url>,
    /// How many days each checkpoint is locked.
    pub retain_days: u32,
    /// byok's credentials for the bucket.
    pub credentials: AwsCredentials,
}

impl CheckpointDestinations {
    /// Reads the section.
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            directory: reader.text(DIRECTORY).map(PathBuf::from),
            bucket: bucket(reader),
            webhook: Webhook::read_from(reader, WEBHOOK_URL, WEBHOOK_SECRET),
            every: Duration::from_secs(reader.number("BYOK_AUDIT_CHECKPOINT_SECONDS", 60, 1..=86_400)),
        }
    }

    /// Returns the variable of a destination that is set, if any.
    pub(super) fn is_set(reader: &Reader<'_>) -> Option<&'static str> {
        [DIRECTORY, WEBHOOK_URL, BUCKET].into_iter().find(|name| reader.is_set(name))
    }
}

fn bucket(reader: &mut Reader<'_>) -> Option<CheckpointBucket> {
    let Some(name) = reader.text(BUCKET) else {
        for lonely in [PREFIX, REGION, ENDPOINT, RETAIN_DAYS] {
            if reader.is_set(lonely) {
                reader.error(lonely, format!("is set without {BUCKET}"));
            }
        }
        return None;
    };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    if !(3..=63).contains(&name.len()) || !name.bytes().all(plain) {
        reader.error(BUCKET, "is not the name of a bucket: 3 to 63 lower-case letters, digits, `.` and `-`");
    }
    let region = reader.required(REGION, "the bucket's region");
    if !region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        reader.error(REGION, "is not a region such as `eu-west-1`");
    }
    let endpoint = reader.text(ENDPOINT).and_then(|text| match Url::parse(&text) {
        Ok(url) if url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url)) => Some(url),
        Ok(_) | Err(_) => {
            reader.error(ENDPOINT, "is neither an https address nor http on this machine");
            None
        }
    });
    let mut prefix = reader.text(PREFIX).unwrap_or_default();
    if !prefix.is_empty() && !prefix.ends_with('/') {
        prefix.push('/');
    }
    let retain_days = reader.number(RETAIN_DAYS, 3_650, 1..=36_500);
    let credentials = aws_credentials(reader)?;
    Some(CheckpointBucket { name, prefix, region, endpoint, retain_days, credentials })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> (CheckpointDestinations, Vec<String>) {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let destinations = CheckpointDestinations::read(&mut reader);
        (destinations, reader.into_errors().into_iter().map(|error| error.variable).collect())
    }

    #[test]
    fn a_bucket_has_a_region_and_a_retention() {
        let (destinations, errors) =
            read(&[(BUCKET, "our-checkpoints"), (REGION, "eu-west-1"), (PREFIX, "byok")]);
        assert_eq!(errors, [""; 0]);
        let bucket = destinations.bucket.unwrap();
        assert_eq!((&*bucket.prefix, bucket.retain_days), ("byok/", 3_650));
        assert_eq!(read(&[(BUCKET, "our-checkpoints")]).1, [REGION]);
    }

    #[test]
    fn what_cannot_be_a_place_is_an_error() {
        let good = [(BUCKET, "our-checkpoints"), (REGION, "eu-west-1")];
        for (name, bad) in [
            (BUCKET, "Not A Bucket"),
            (REGION, "evil.example/"),
            (ENDPOINT, "http://s3.example.com"),
            (RETAIN_DAYS, "0"),
        ] {
            let mut pairs: Vec<_> = good.into_iter().filter(|(known, _)| *known != name).collect();
            pairs.push((name, bad));
            assert_eq!(read(&pairs).1, [name], "{bad}");
        }
        assert_eq!(read(&[(PREFIX, "x")]).1, [PREFIX]);
        assert_eq!(read(&[(WEBHOOK_URL, "https://example.com/")]).1, [WEBHOOK_SECRET]);
    }
}
