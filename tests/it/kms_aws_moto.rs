//! moto as a second implementation of AWS: its answers differ from fakecloud's, and our client must
//! handle both. It does not enforce a key's state or policy, gives no key material ids, and loses
//! the ids of multi-region keys. So these tests cover generating, wrapping, unwrapping, rewrapping,
//! contexts, aliases and AssumeRole.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use byok::config::{AwsCredentials, AwsKeyArn, AwsRole};
use byok::crypto::{Dek, SecretText};
use byok::kms::{AwsKms, Kms, KmsErrorClass};
use byok::model::KeyVersion;
use serde_json::json;

use crate::support::aws::{Cloud, settings};
use crate::support::calls::binding;
use crate::support::needed;

/// A server for one test, which stops when it is dropped.
pub(crate) struct Moto {
    cloud: Cloud,
    process: Child,
}

impl Moto {
    pub(crate) async fn start() -> Self {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one").port();
        let process = Command::new(needed("BYOK_TEST_PYTHON"))
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("INITIAL_NO_AUTH_ACTION_COUNT", "99999")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let moto = Self { cloud: Cloud { address: format!("http://127.0.0.1:{port}") }, process };
        for _ in 0..600 {
            let seen = crate::support::http().get(format!("{}/moto-api/", moto.cloud.address)).send().await;
            if seen.is_ok_and(|response| response.status() == 200) {
                return moto;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("moto did not answer within 30 s");
    }

    /// The server's address.
    pub(crate) fn address(&self) -> &str {
        &self.cloud.address
    }

    async fn key(&self) -> String {
        let made = self.cloud.kms("CreateKey", json!({})).await;
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    fn us(&self, key: &str) -> AwsKms {
        self.us_as(key, "AKIAEXAMPLE", "secret", None)
    }

    fn us_as(&self, key: &str, id: &str, secret: &str, role: Option<AwsRole>) -> AwsKms {
        let credentials = AwsCredentials::Keys {
            access_key_id: id.to_owned(),
            secret_access_key: SecretText::new(secret.to_owned()),
            session_token: None,
        };
        let mut settings = settings(key, &self.cloud.address, credentials);
        settings.role = role;
        AwsKms::new(settings).expect("the settings are good")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn it_agrees_on_generating_wrapping_unwrapping_and_rewrapping() {
    let moto = Moto::start().await;
    let key = moto.key().await;
    let kms = moto.us(&key);
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value;
    let opened =
        |wrapped| async { kms.unwrap(&[(bound, wrapped)]).await.remove(0).expect("it unwraps").value };
    assert!(opened(made.wrapped.clone()).await.expose() == made.dek.expose());
    let dek = Dek::generate();
    let wrapped = kms.wrap(&[(bound, &dek)]).await.remove(0).expect("it wraps").value;
    assert!(opened(wrapped).await.expose() == dek.expose());
    let id = key.rsplit('/').next().expect("an id");
    moto.cloud.kms("EnableKeyRotation", json!({ "KeyId": id })).await;
    moto.cloud.kms("RotateKeyOnDemand", json!({ "KeyId": id })).await;
    let to = kms.current_version().await.expect("a version");
    assert_eq!(to, KeyVersion::new(id, "current"), "it gives no key material ids");
    let again = kms.rewrap(&[(bound, made.wrapped)], &to).await.remove(0).expect("it rewraps").value;
    assert!(opened(again).await.expose() == made.dek.expose());
}

#[tokio::test]
async fn it_agrees_on_what_does_not_open() {
    let moto = Moto::start().await;
    let kms = moto.us(&moto.key().await);
    let bound = binding();
    let made = kms.generate(&[bound]).await.remove(0).expect("a DEK").value.wrapped;
    let class = async |item| kms.unwrap(&[item]).await.remove(0).err().map(|error| error.class);
    assert_eq!(class((binding(), made.clone())).await, Some(KmsErrorClass::InvalidWrappedDek));
    let mut altered = made;
    let last = altered.bytes.len() - 1;
    altered.bytes[last] ^= 1;
    assert_eq!(class((bound, altered)).await, Some(KmsErrorClass::InvalidWrappedDek));
}

#[tokio::test]
async fn it_agrees_on_keys_and_aliases_that_are_there_or_not() {
    let moto = Moto::start().await;
    let key = moto.key().await;
    let id = key.rsplit('/').next().expect("an id");
    moto.cloud.kms("CreateAlias", json!({ "AliasName": "alias/byok", "TargetKeyId": id })).await;
    let alias = key.replace(&format!("key/{id}"), "alias/byok");
    let bound = binding();
    let made = moto.us(&alias).generate(&[bound]).await.remove(0).expect("a DEK").value.wrapped;
    assert_eq!(&*made.key_version.key, id);
    for unknown in ["alias/other", "key/00000000-0000-4000-8000-000000000000"] {
        let arn = key.replace(&format!("key/{id}"), unknown);
        assert!(AwsKeyArn::parse(&arn).is_ok());
        let class = moto.us(&arn).generate(&[bound]).await.remove(0).err().map(|error| error.class);
        assert_eq!(class, Some(KmsErrorClass::KeyNotFound), "{unknown}");
    }
}

#[tokio::test]
async fn it_agrees_on_the_external_id() {
    let moto = Moto::start().await;
    let (cloud, key) = (&moto.cloud, moto.key().await);
    let user = cloud.user().await;
    // moto knows only `Resource: "*"`.
    user.permit(&json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*" }] }))
        .await;
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": user.arn }, "Action": "sts:AssumeRole",
        "Condition": { "StringEquals": { "sts:ExternalId": "byok-7f3a" } },
    }] });
    cloud.iam("CreateRole", &[("RoleName", "byok"), ("AssumeRolePolicyDocument", &trust.to_string())]).await;
    let all = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "kms:*", "Resource": "*" }] });
    let parameters = [("RoleName", "byok"), ("PolicyName", "byok"), ("PolicyDocument", &all.to_string())];
    cloud.iam("PutRolePolicy", &parameters).await;
    let reset = crate::support::http().post(format!("{}/moto-api/reset-auth", cloud.address));
    let reset = reset.header("Content-Type", "text/plain").body("0").send().await.expect("moto answers");
    assert_eq!(reset.status(), 200);
    let class = async |id: &str| {
        let arn = format!("arn:aws:iam::{}:role/byok", key.split(':').nth(4).expect("an account"));
        let role = AwsRole { arn, external_id: Some(id.to_owned()) };
        let kms = moto.us_as(&key, &user.id, &user.secret, Some(role));
        kms.generate(&[binding()]).await.remove(0).err().map(|error| error.class)
    };
    assert_eq!(class("byok-7f3a").await, None);
    // moto refuses in EC2's error format instead of STS's, so its refusal does not count as one of
    // AWS's.
    assert_eq!(class("another").await, Some(KmsErrorClass::Internal));
}
