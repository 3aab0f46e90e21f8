//! AWS KMS: the key, byok's credentials, and the endpoints.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::{endpoint, timeout};
use crate::config::Reader;
use crate::crypto::SecretText;

/// How to reach a key in AWS KMS.
pub struct AwsSettings {
    /// `BYOK_AWS_KEY_ARN`: the ARN of the key or of an alias.
    pub key: AwsKeyArn,
    /// The role that byok assumes to use the key.
    pub role: Option<AwsRole>,
    /// byok's credentials before it assumes that role.
    pub credentials: AwsCredentials,
    /// `BYOK_AWS_ENDPOINT`: the endpoint of KMS, instead of the region's own; for example a VPC
    /// endpoint.
    pub endpoint: Option<Url>,
    /// `BYOK_AWS_STS_ENDPOINT`: the endpoint of STS, instead of the region's own.
    pub sts_endpoint: Option<Url>,
    /// `BYOK_AWS_FIPS`: whether to use the region's FIPS 140 endpoints, of KMS, and of STS if no
    /// STS endpoint is set (few regions have one).
    pub fips: bool,
    /// `BYOK_KMS_TIMEOUT_MS`: how long a call may take, including retries and the session's
    /// renewal.
    pub timeout: Duration,
    /// `BYOK_KMS_CALLS_PER_MINUTE`: the largest number of requests per minute; `None` means no
    /// limit.
    pub calls_per_minute: Option<NonZeroU32>,
}

/// The ARN of a key or alias, parsed
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsKeyArn {
    /// The whole ARN.
    pub arn: String,
    /// The partition: `aws`, `aws-cn`, `aws-us-gov`, …
    pub partition: String,
    /// The region, such as `eu-west-1`.
    pub region: String,
    /// The account: twelve digits.
    pub account: String,
    /// The key or alias that it names.
    pub name: AwsKeyName,
}

/// The key or alias that an ARN of KMS names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsKeyName {
    /// A key, by its id: a UUID, or `mrk-…` for a multi-region key.
    Key(String),
    /// An alias, without `alias/`. The key that it names can change.
    Alias(String),
}

/// byok's credentials at AWS.
pub enum AwsCredentials {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, for a session, `AWS_SESSION_TOKEN`.
    Keys {
        /// The access key id, which is not a secret.
        access_key_id: String,
        /// The key that requests are signed with.
        secret_access_key: SecretText,
        /// The session token of temporary credentials.
        session_token: Option<SecretText>,
    },
    /// `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`, which EKS gives to a pod.
    WebIdentity {
        /// The file with the token. It is read at each renewal.
        token_file: PathBuf,
        /// The role that the token is for.
        role_arn: String,
    },
    /// The rest of the SDK's credential chain: profile, ECS, EC2.
    Chain,
}

/// A role, and what its trust policy requires.
#[derive(Clone)]
pub struct AwsRole {
    /// `BYOK_AWS_ROLE_ARN`.
    pub arn: String,
    /// `BYOK_AWS_EXTERNAL_ID`.
    pub external_id: Option<String>,
}

impl AwsSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (key, role) = Self::grant(reader);
        if reader.text("BYOK_KEY_VERSION_STRATEGY").is_some_and(|text| text != "latest") {
            reader.error(
                "BYOK_KEY_VERSION_STRATEGY",
                "must be `latest`: AWS KMS always wraps under a key's current material and pins no version",
            );
        }
        let region = reader.text("BYOK_AWS_REGION");
        if let (Some(region), Some(key)) = (&region, &key)
            && *region != key.region
        {
            reader.error(
                "BYOK_AWS_REGION",
                format!("is not the region of BYOK_AWS_KEY_ARN, which is {}: a key is used in its own region only", key.region),
            );
        }
        let credentials = credentials(reader);
        // With the chain, the SDK assumes a profile's role by itself, at the endpoint that these
        // variables name, and this cannot be changed.
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"] {
            if matches!(credentials, Some(AwsCredentials::Chain)) && reader.is_set(name) {
                reader.error(
                    name,
                    "would send a profile's calls to another STS: unset it; BYOK_AWS_ENDPOINT and BYOK_AWS_STS_ENDPOINT set endpoints",
                );
            }
        }
        let endpoint_of = |reader: &mut Reader<'_>, name| endpoint(reader, name, None);
        let endpoint = endpoint_of(reader, "BYOK_AWS_ENDPOINT");
        let sts_endpoint = endpoint_of(reader, "BYOK_AWS_STS_ENDPOINT");
        let fips = reader.flag("BYOK_AWS_FIPS", false);
        if fips && endpoint.is_some() {
            reader.error("BYOK_AWS_FIPS", "chooses AWS's own endpoint; BYOK_AWS_ENDPOINT names another");
        }
        Some(Self {
            key: key?,
            role,
            credentials: credentials?,
            endpoint,
            sts_endpoint,
            fips,
            timeout: timeout(reader),
            calls_per_minute: None,
        })
    }
}

impl AwsSettings {
    /// Reads what a policy needs: the key, and the role that may use it.
    pub fn grant(reader: &mut Reader<'_>) -> (Option<AwsKeyArn>, Option<AwsRole>) {
        let key = key(reader);
        let role = role(reader, key.as_ref());
        (key, role)
    }
}

impl AwsKeyArn {
    /// Parses an ARN. The error is a sentence without its subject.
    ///
    /// # Errors
    /// What is wrong with the ARN.
    pub fn parse(arn: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "is not the ARN of a KMS key or alias, such as \
             `arn:aws:kms:eu-west-1:111122223333:key/mrk-…` or `arn:aws:kms:eu-west-1:111122223333:alias/byok`";
        let parts: Vec<_> = arn.splitn(6, ':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts[..] else { return Err(SHAPE) };
        let words = |text: &str| !text.is_empty() && text.split('-').all(is_word);
        if !(partition == "aws" || partition.starts_with("aws-")) || !words(partition) {
            return Err(SHAPE);
        }
        // The region becomes part of a host name.
        if !words(region) || !region.contains('-') || region.len() > 32 {
            return Err(SHAPE);
        }
        if partition != partition_of(region) {
            return Err("names a region of another partition");
        }
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SHAPE);
        }
        let name = match resource.split_once('/') {
            Some(("key", id)) if is_key_id(id) => AwsKeyName::Key(id.to_owned()),
            Some(("alias", alias)) if alias.starts_with("aws/") => {
                return Err(
                    "names a key that AWS manages: the owner of the account can neither disable it nor change its policy",
                );
            }
            Some(("alias", alias)) if is_alias(alias) => AwsKeyName::Alias(alias.to_owned()),
            _ => return Err(SHAPE),
        };
        let [arn, partition, region, account] = [arn, partition, region, account].map(str::to_owned);
        Ok(Self { arn, partition, region, account, name })
    }

    /// Returns whether both are in the same region of the same account.
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.partition, &self.region, &self.account) == (&other.partition, &other.region, &other.account)
    }
}

fn key(reader: &mut Reader<'_>) -> Option<AwsKeyArn> {
    const NAME: &str = "BYOK_AWS_KEY_ARN";
    let text = reader.required(NAME, "the ARN of a KMS key or alias");
    if text.is_empty() {
        return None;
    }
    AwsKeyArn::parse(&text).map_err(|problem| reader.error(NAME, problem)).ok()
}

fn role(reader: &mut Reader<'_>, key: Option<&AwsKeyArn>) -> Option<AwsRole> {
    const ROLE: &str = "BYOK_AWS_ROLE_ARN";
    const EXTERNAL_ID: &str = "BYOK_AWS_EXTERNAL_ID";
    let external_id = reader.text(EXTERNAL_ID);
    let Some(arn) = reader.text(ROLE) else {
        if external_id.is_some() {
            reader.error(
                EXTERNAL_ID,
                "is set, but BYOK_AWS_ROLE_ARN is not: it is sent when a role is assumed",
            );
        }
        return None;
    };
    if external_id.as_ref().is_some_and(|id| !is_external_id(id)) {
        reader.error(EXTERNAL_ID, "is not an external id: 2 to 1224 letters, digits and `_+=,.@:/-`");
    }
    match partition_of_role(&arn) {
        None => reader.error(ROLE, "is not the ARN of a role, such as `arn:aws:iam::111122223333:role/byok`"),
        Some(partition) if key.is_some_and(|key| key.partition != partition) => {
            reader.error(ROLE, "is of another partition of AWS than BYOK_AWS_KEY_ARN");
        }
        Some(_) => {}
    }
    Some(AwsRole { arn, external_id })
}

pub(in crate::config) fn credentials(reader: &mut Reader<'_>) -> Option<AwsCredentials> {
    const ID: &str = "AWS_ACCESS_KEY_ID";
    const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
    const TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
    match (reader.text(ID), reader.is_set(SECRET)) {
        (Some(access_key_id), true) => {
            let secret_access_key = reader.secret(SECRET)?;
            let session_token = reader.secret("AWS_SESSION_TOKEN");
            return Some(AwsCredentials::Keys { access_key_id, secret_access_key, session_token });
        }
        (Some(_), false) => {
            reader.error(SECRET, "is not set; AWS_ACCESS_KEY_ID needs it");
            return None;
        }
        (None, true) => {
            reader.error(ID, "is not set; AWS_SECRET_ACCESS_KEY needs it");
            return None;
        }
        (None, false) => {}
    }
    let Some(token_file) = reader.file(TOKEN_FILE) else { return Some(AwsCredentials::Chain) };
    let role_arn = reader.required("AWS_ROLE_ARN", "the role that AWS_WEB_IDENTITY_TOKEN_FILE is for");
    if !role_arn.is_empty() && partition_of_role(&role_arn).is_none() {
        reader.error("AWS_ROLE_ARN", "is not the ARN of a role");
    }
    Some(AwsCredentials::WebIdentity { token_file, role_arn })
}

/// Returns the partition of `arn:<partition>:iam::<account>:role/<path and name>`.
fn partition_of_role(arn: &str) -> Option<&str> {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, role] = parts[..] else { return None };
    let name = role.strip_prefix("role/")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-/".contains(&byte);
    let good = account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(plain);
    good.then_some(partition)
}

/// Returns the partition of a region, by the names of the regions (`partitions.json` of the AWS
/// SDKs).
fn partition_of(region: &str) -> &'static str {
    let special = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("eu-isoe-", "aws-iso-e"),
        ("eusc-", "aws-eusc"),
    ];
    special.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn is_key_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_alias(alias: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":/_-".contains(&byte);
    (1..=250).contains(&alias.len()) && alias.bytes().all(plain)
}

fn is_external_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte);
    (2..=1224).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef";

    fn env() -> Env {
        Env::from_pairs([
            ("BYOK_AWS_KEY_ARN", KEY),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "canary"),
        ])
    }

    fn wrong(env: &Env) -> Vec<String> {
        let mut reader = Reader::new(env);
        AwsSettings::read(&mut reader);
        let errors = reader.into_errors();
        assert!(errors.iter().all(|error| !error.to_string().contains("canary")));
        errors.into_iter().map(|error| error.variable).collect()
    }

    fn settings(env: &Env) -> AwsSettings {
        assert_eq!(wrong(env), [""; 0]);
        AwsSettings::read(&mut Reader::new(env)).unwrap()
    }

    #[test]
    fn a_key_arn_and_credentials_are_enough() {
        let settings = settings(&env());
        assert_eq!(settings.key.name, AwsKeyName::Key("mrk-0123456789abcdef0123456789abcdef".to_owned()));
        assert_eq!((&*settings.key.region, &*settings.key.account), ("eu-west-1", "111122223333"));
        assert!(settings.role.is_none() && settings.endpoint.is_none() && !settings.fips);
        assert!(matches!(settings.credentials, AwsCredentials::Keys { session_token: None, .. }));
    }

    #[test]
    fn arns_of_every_partition_and_of_aliases_are_taken() {
        for arn in [
            "arn:aws-cn:kms:cn-north-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/byok",
            "arn:aws:kms:ap-southeast-2:111122223333:alias/team/byok_1",
            "arn:aws-iso-b:kms:us-isob-east-1:111122223333:alias/byok",
        ] {
            assert_eq!(AwsKeyArn::parse(arn).unwrap().arn, arn);
        }
    }

    #[test]
    fn what_is_no_arn_of_a_key_is_an_error() {
        for bad in [
            "mrk-0123456789abcdef0123456789abcdef",
            "alias/byok",
            "arn:aws:s3:eu-west-1:111122223333:key/a",
            "arn:aws:kms::111122223333:key/a",
            "arn:aws:kms:evil.example/:111122223333:key/a",
            "arn:aws:kms:eu-west-1:1111:key/a",
            "arn:aws:kms:eu-west-1:111122223333:key/",
            "arn:aws:kms:eu-west-1:111122223333:key/a/b",
            "arn:aws:kms:eu-west-1:111122223333:alias/aws/ebs",
            "arn:aws:kms:cn-north-1:111122223333:key/a",
            "arn:gcp:kms:eu-west-1:111122223333:key/a",
        ] {
            assert_eq!(wrong(&env().with("BYOK_AWS_KEY_ARN", bad)), ["BYOK_AWS_KEY_ARN"], "{bad}");
        }
        assert_eq!(wrong(&env().with("BYOK_AWS_KEY_ARN", "")), ["BYOK_AWS_KEY_ARN"]);
    }

    #[test]
    fn the_region_is_the_arns_own() {
        settings(&env().with("BYOK_AWS_REGION", "eu-west-1"));
        assert_eq!(wrong(&env().with("BYOK_AWS_REGION", "us-east-1")), ["BYOK_AWS_REGION"]);
    }

    #[test]
    fn aws_pins_no_version() {
        settings(&env().with("BYOK_KEY_VERSION_STRATEGY", "latest"));
        assert_eq!(wrong(&env().with("BYOK_KEY_VERSION_STRATEGY", "3")), ["BYOK_KEY_VERSION_STRATEGY"]);
    }

    #[test]
    fn an_external_id_needs_a_role() {
        let role = "arn:aws:iam::444455556666:role/customers/byok";
        let env = env().with("BYOK_AWS_EXTERNAL_ID", "byok-7f3a");
        assert_eq!(wrong(&env), ["BYOK_AWS_EXTERNAL_ID"]);
        let settings = settings(&env.clone().with("BYOK_AWS_ROLE_ARN", role));
        assert_eq!(settings.role.unwrap().external_id.as_deref(), Some("byok-7f3a"));
        let bad = env.with("BYOK_AWS_ROLE_ARN", role).with("BYOK_AWS_EXTERNAL_ID", "with spaces");
        assert_eq!(wrong(&bad), ["BYOK_AWS_EXTERNAL_ID"]);
    }

    #[test]
    fn a_role_is_one_of_the_keys_partition() {
        for bad in ["byok", "arn:aws:iam::1:role/byok", "arn:aws-cn:iam::444455556666:role/byok"] {
            assert_eq!(wrong(&env().with("BYOK_AWS_ROLE_ARN", bad)), ["BYOK_AWS_ROLE_ARN"], "{bad}");
        }
    }

    #[test]
    fn endpoints_are_https_or_on_this_machine() {
        for name in ["BYOK_AWS_ENDPOINT", "BYOK_AWS_STS_ENDPOINT"] {
            settings(&env().with(name, "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com"));
            settings(&env().with(name, "http://127.0.0.1:4566"));
            for bad in
                ["http://kms.example.com", "https://a:b@kms.example.com", "https://kms.example.com/?x", "kms"]
            {
                assert_eq!(wrong(&env().with(name, bad)), [name], "{bad}");
            }
        }
    }

    #[test]
    fn fips_is_for_the_endpoints_of_aws() {
        assert!(settings(&env().with("BYOK_AWS_FIPS", "true")).fips);
        let env = env().with("BYOK_AWS_FIPS", "true").with("BYOK_AWS_ENDPOINT", "https://kms.example.com");
        assert_eq!(wrong(&env), ["BYOK_AWS_FIPS"]);
    }

    #[test]
    fn half_a_credential_is_an_error() {
        assert_eq!(wrong(&env().with("AWS_SECRET_ACCESS_KEY", "")), ["AWS_SECRET_ACCESS_KEY"]);
        assert_eq!(wrong(&env().with("AWS_ACCESS_KEY_ID", "")), ["AWS_ACCESS_KEY_ID"]);
    }

    #[test]
    fn the_sdks_own_endpoint_variables_are_refused_where_it_reads_them() {
        let chain = Env::from_pairs([("BYOK_AWS_KEY_ARN", KEY)]);
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"] {
            assert_eq!(wrong(&chain.clone().with(name, "https://sts.example.com")), [name]);
            settings(&env().with(name, "https://sts.example.com"));
        }
    }

    #[test]
    fn a_pods_token_comes_before_the_rest_of_the_chain() {
        let none = Env::from_pairs([("BYOK_AWS_KEY_ARN", KEY)]);
        assert!(matches!(settings(&none).credentials, AwsCredentials::Chain));
        let file = tempfile::NamedTempFile::new().unwrap();
        let pod = none.with("AWS_WEB_IDENTITY_TOKEN_FILE", file.path().to_str().unwrap());
        assert_eq!(wrong(&pod), ["AWS_ROLE_ARN"]);
        let pod = pod.with("AWS_ROLE_ARN", "arn:aws:iam::444455556666:role/pod");
        assert!(matches!(settings(&pod).credentials, AwsCredentials::WebIdentity { .. }));
    }
}
