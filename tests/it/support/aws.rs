//! AWS as a customer sets it up: a key, a policy, and a role with an external id, in the fakecloud
//! that all tests share.
//!
//! fakecloud 0.51.0 departs from AWS in ways that this file works around: it authorizes ReEncrypt
//! as `kms:ReEncrypt` on `*`, ignores key policies, denies every unsigned request
//! (AssumeRoleWithWebIdentity is unsigned), and gives no key material ids. [`Front`], an HTTP
//! proxy, makes up for the last two: it adds what is missing to requests and to fakecloud's own
//! answers. It also fails on demand.
//!
//! The customer's own calls are signed with the access key `test`, which fakecloud accepts as root
//! without checking the signature.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use byok::config::{AwsCredentials, AwsKeyArn, AwsRole, AwsSettings};
use byok::crypto::SecretText;
use byok::kms::AwsKms;
use byok::model::{Clock as _, SystemClock};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::provider::{Provided, Switch, Turns};
use super::{http, needed};

/// The name that AWS's console gives to the policy that revokes a role's sessions.
const REVOKED_SESSIONS: &str = "AWSRevokeOlderSessions";

/// The region of every key and role.
pub(crate) const REGION: &str = "eu-west-1";

/// An endpoint that speaks AWS's protocols.
#[derive(Clone)]
pub(crate) struct Cloud {
    pub(crate) address: String,
}

impl Cloud {
    /// The fakecloud that all tests share.
    pub(crate) fn shared() -> Self {
        Self { address: needed("BYOK_TEST_FAKECLOUD_ADDR") }
    }

    /// The answer of KMS to the account's root: status and body.
    pub(crate) async fn answer(&self, operation: &str, body: Value) -> (u16, Value) {
        self.answer_in(REGION, operation, body).await
    }

    pub(crate) async fn answer_in(&self, region: &str, operation: &str, body: Value) -> (u16, Value) {
        let request = http()
            .post(&self.address)
            .header("X-Amz-Target", format!("TrentService.{operation}"))
            .header("Content-Type", "application/x-amz-json-1.1")
            .header("Authorization", authorization(region, "kms"))
            .body(body.to_string());
        let response = request.send().await.expect("the cloud answers");
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// The answer to a KMS operation of the customer's, which must succeed.
    pub(crate) async fn kms(&self, operation: &str, body: Value) -> Value {
        let (status, answer) = self.answer(operation, body).await;
        assert!(status == 200, "{operation}: {status} {answer}");
        answer
    }

    /// The answer, in XML, to an IAM action of the customer's, which must succeed.
    pub(crate) async fn iam(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        let version = [("Action", action), ("Version", "2010-05-08")];
        let form: Vec<_> = version.iter().chain(parameters).collect();
        let request = http().post(&self.address).header("Authorization", authorization("us-east-1", "iam"));
        let body: String = form.iter().map(|(name, value)| format!("{name}={}&", percent(value))).collect();
        let request = request.header("Content-Type", "application/x-www-form-urlencoded").body(body);
        let response = request.send().await.expect("the cloud answers");
        let status = response.status();
        let text = response.text().await.expect("text");
        assert!(status.is_success(), "{action}: {status} {text}");
        text
    }

    /// A new issuer of web identities: its ARN and address.
    pub(crate) async fn issuer(&self) -> (String, String) {
        let url = format!("https://{}.example.com", uuid::Uuid::now_v7().simple());
        let parameters = [
            ("Url", url.as_str()),
            ("ClientIDList.member.1", "sts.amazonaws.com"),
            ("ThumbprintList.member.1", "0000000000000000000000000000000000000000"),
        ];
        let xml = self.iam("CreateOpenIDConnectProvider", &parameters).await;
        (tag(&xml, "OpenIDConnectProviderArn"), url)
    }

    /// A user with an access key, and no rights.
    pub(crate) async fn user(&self) -> User {
        let name = format!("u-{}", uuid::Uuid::now_v7().simple());
        let arn = tag(&self.iam("CreateUser", &[("UserName", &name)]).await, "Arn");
        let xml = self.iam("CreateAccessKey", &[("UserName", &name)]).await;
        let [id, secret] = ["AccessKeyId", "SecretAccessKey"].map(|name| tag(&xml, name));
        User { cloud: self.clone(), name, arn, id, secret }
    }

    /// A new key and a user that may wrap and unwrap with it.
    pub(crate) async fn key(&self) -> Key {
        self.key_with(json!({})).await
    }

    pub(crate) async fn key_with(&self, more: Value) -> Key {
        let arn =
            self.kms("CreateKey", more).await["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned();
        let key = Key { user: self.user().await, arn };
        key.allow(true).await;
        key
    }
}

/// The IAM user that byok runs as.
#[derive(Clone)]
pub(crate) struct User {
    cloud: Cloud,
    name: String,
    pub(crate) arn: String,
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl User {
    /// Replaces the user's permissions with this policy.
    pub(crate) async fn permit(&self, policy: &Value) {
        let policy = policy.to_string();
        let parameters =
            [("UserName", &*self.name), ("PolicyName", "byok"), ("PolicyDocument", policy.as_str())];
        self.cloud.iam("PutUserPolicy", &parameters).await;
    }

    pub(crate) async fn delete_access_key(&self) {
        self.cloud.iam("DeleteAccessKey", &[("UserName", &self.name), ("AccessKeyId", &self.id)]).await;
    }

    /// Deactivates its access key, or activates it again.
    async fn activate_access_key(&self, active: bool) {
        let status = if active { "Active" } else { "Inactive" };
        let parameters = [("UserName", &*self.name), ("AccessKeyId", &*self.id), ("Status", status)];
        self.cloud.iam("UpdateAccessKey", &parameters).await;
    }

    pub(crate) fn credentials(&self) -> AwsCredentials {
        AwsCredentials::Keys {
            access_key_id: self.id.clone(),
            secret_access_key: SecretText::new(self.secret.clone()),
            session_token: None,
        }
    }
}

/// A key and its user.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) user: User,
    pub(crate) arn: String,
}

/// A role of the customer's that the key's user may assume.
pub(crate) struct Role {
    cloud: Cloud,
    name: String,
    pub(crate) arn: String,
    key: String,
    user: String,
}

impl Key {
    pub(crate) fn cloud(&self) -> &Cloud {
        &self.user.cloud
    }

    pub(crate) fn id(&self) -> &str {
        self.arn.rsplit('/').next().expect("an id")
    }

    /// Lets the user wrap and unwrap with the key, or takes that right away.
    pub(crate) async fn allow(&self, allowed: bool) {
        self.user.permit(&if allowed { permissions(&self.arn, &[]) } else { nothing() }).await;
    }

    /// Runs one of the customer's operations on the key.
    pub(crate) async fn as_customer(&self, operation: &str) {
        self.cloud().kms(operation, json!({ "KeyId": self.arn })).await;
    }

    pub(crate) async fn schedule_deletion(&self) {
        self.cloud().kms("ScheduleKeyDeletion", json!({ "KeyId": self.arn, "PendingWindowInDays": 7 })).await;
    }

    /// A new alias for the key: its ARN.
    pub(crate) async fn alias(&self) -> String {
        let name = format!("alias/a-{}", uuid::Uuid::now_v7().simple());
        self.cloud().kms("CreateAlias", json!({ "AliasName": name, "TargetKeyId": self.id() })).await;
        format!("{}:{name}", self.arn.split(":key/").next().expect("an ARN"))
    }

    /// A role that may use the key, and that the user may assume with this external id.
    pub(crate) async fn role(&self, external_id: &str) -> Role {
        let (cloud, name) = (self.cloud().clone(), format!("r-{}", uuid::Uuid::now_v7().simple()));
        let trust = trust(&self.user.arn, external_id).to_string();
        let xml = cloud.iam("CreateRole", &[("RoleName", &name), ("AssumeRolePolicyDocument", &trust)]).await;
        let (arn, key, user) = (tag(&xml, "Arn"), self.arn.clone(), self.user.arn.clone());
        let role = Role { cloud, name, arn, key, user };
        role.allow(true).await;
        let take = json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role.arn });
        self.user.permit(&json!({ "Version": "2012-10-17", "Statement": [take] })).await;
        role
    }

    /// Our client, as the key's user.
    pub(crate) fn kms(&self) -> AwsKms {
        self.kms_with(|_| ())
    }

    /// Our client, with changed settings.
    pub(crate) fn kms_with(&self, change: impl FnOnce(&mut AwsSettings)) -> AwsKms {
        let mut settings = self.settings();
        change(&mut settings);
        AwsKms::new(settings).expect("the settings are good")
    }

    pub(crate) fn settings(&self) -> AwsSettings {
        settings(&self.arn, &self.cloud().address, self.user.credentials())
    }
}

impl Role {
    /// Lets the role wrap and unwrap with the key, or takes that right away.
    pub(crate) async fn allow(&self, allowed: bool) {
        self.permit(&if allowed { permissions(&self.key, &[]) } else { nothing() }).await;
    }

    /// Replaces the role's permissions with this policy.
    pub(crate) async fn permit(&self, policy: &Value) {
        let policy = policy.to_string();
        let parameters =
            [("RoleName", &*self.name), ("PolicyName", "byok"), ("PolicyDocument", policy.as_str())];
        self.cloud.iam("PutRolePolicy", &parameters).await;
    }

    /// Deletes the role's policy.
    async fn forbid(&self) {
        self.delete_policy("byok").await;
    }

    async fn delete_policy(&self, policy: &str) {
        self.cloud.iam("DeleteRolePolicy", &[("RoleName", &self.name), ("PolicyName", policy)]).await;
    }

    /// Revokes the role's sessions as AWS's console does: every session issued until now is denied.
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use_revoke-sessions.html>
    async fn revoke_sessions(&self) {
        // Sessions are dated to the second, so the bound must include those of the current second.
        let until = SystemClock.now().plus(Duration::from_secs(1)).to_string();
        let older = json!({ "DateLessThan": { "aws:TokenIssueTime": until } });
        let deny = json!({ "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": older });
        let policy = json!({ "Version": "2012-10-17", "Statement": [deny] }).to_string();
        let parameters =
            [("RoleName", &*self.name), ("PolicyName", REVOKED_SESSIONS), ("PolicyDocument", &*policy)];
        self.cloud.iam("PutRolePolicy", &parameters).await;
    }

    /// Lets our user assume the role with this external id, or lets nobody assume it.
    pub(crate) async fn trust(&self, external_id: Option<&str>) {
        let policy = match external_id {
            Some(id) => trust(&self.user, id),
            None => trust("arn:aws:iam::123456789012:user/somebody-else", "none"),
        };
        self.trust_by(&policy).await;
    }

    pub(crate) async fn trust_by(&self, policy: &Value) {
        let policy = policy.to_string();
        let parameters = [("RoleName", self.name.as_str()), ("PolicyDocument", policy.as_str())];
        self.cloud.iam("UpdateAssumeRolePolicy", &parameters).await;
    }

    pub(crate) fn settings(&self, external_id: Option<&str>) -> AwsRole {
        AwsRole { arn: self.arn.clone(), external_id: external_id.map(str::to_owned) }
    }
}

/// Settings for a key at this address.
pub(crate) fn settings(arn: &str, address: &str, credentials: AwsCredentials) -> AwsSettings {
    let endpoint: reqwest::Url = address.parse().expect("an address");
    AwsSettings {
        key: AwsKeyArn::parse(arn).expect("an ARN"),
        role: None,
        credentials,
        endpoint: Some(endpoint.clone()),
        sts_endpoint: Some(endpoint),
        fips: false,
        timeout: Duration::from_secs(5),
        calls_per_minute: None,
    }
}

/// The permissions to wrap and unwrap, and some more. fakecloud asks for `kms:ReEncrypt` on `*`,
/// which AWS does not know.
pub(crate) fn permissions(key: &str, more: &[&str]) -> Value {
    let needed =
        ["kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo"];
    let actions: Vec<_> = needed.iter().chain(more).collect();
    let ours = json!({ "Effect": "Allow", "Action": actions, "Resource": key });
    json!({ "Version": "2012-10-17", "Statement": [ours, re_encrypt_of_fakecloud()] })
}

pub(crate) fn re_encrypt_of_fakecloud() -> Value {
    json!({ "Effect": "Allow", "Action": "kms:ReEncrypt", "Resource": "*" })
}

fn nothing() -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Deny", "Action": "*", "Resource": "*" }] })
}

fn trust(user: &str, external_id: &str) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": user }, "Action": "sts:AssumeRole",
        "Condition": { "StringEquals": { "sts:ExternalId": external_id } },
    }] })
}

fn authorization(region: &str, service: &str) -> String {
    let scope = format!("20260101/{region}/{service}/aws4_request");
    format!("AWS4-HMAC-SHA256 Credential=test/{scope}, SignedHeaders=host, Signature=0")
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

fn tag(xml: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let rest = xml.split(&open).nth(1).unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split(&close).next().expect("its end").to_owned()
}

/// A fault in an answer.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Something between us and AWS answers instead.
    Answer(u16, &'static str),
    /// The service answers with this error, in its own format.
    Error(u16, &'static str),
    /// The connection ends in the middle of the answer's body.
    Truncated,
    /// The answer is complete, but has changed bytes in its middle.
    Corrupted,
    /// The answer names another key: the replica in another region.
    OtherKey,
    /// The answer was made under the key material before the current one: a rotation does not take
    /// effect everywhere at once.
    Stale,
    /// The answer comes late.
    Late(Duration),
}

/// A request that [`Front`] received.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) operation: String,
    pub(crate) body: Value,
}

/// A proxy in front of fakecloud that adds key material ids to its answers, as AWS does, and
/// injects faults.
pub(crate) struct Front {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// The number of rotations of each key.
    rotations: HashMap<String, usize>,
    /// The key material that made each ciphertext.
    made_by: HashMap<String, String>,
    calls: Vec<Call>,
    faults: Vec<(String, usize, Fault)>,
    without_ids: bool,
}

impl Front {
    pub(crate) async fn of(cloud: &Cloud) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::<Mutex<State>>::default();
        let (kept, cloud, client) = (state.clone(), cloud.address.clone(), http());
        let router = Router::new().fallback(move |request: Request| {
            let (state, cloud, client) = (kept.clone(), cloud.clone(), client.clone());
            async move { forward(&state, &cloud, &client, request).await }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, state, server }
    }

    /// Rotates the key on demand, as the customer.
    pub(crate) async fn rotate(&self, key: &Key) {
        key.as_customer("RotateKeyOnDemand").await;
        *self.state.lock().expect("a lock").rotations.entry(key.id().to_owned()).or_default() += 1;
    }

    /// Spoils the next `times` answers to this operation.
    pub(crate) fn fail(&self, operation: &str, times: usize, fault: Fault) {
        self.state.lock().expect("a lock").faults.push((operation.to_owned(), times, fault));
    }

    /// Ends all faults.
    pub(crate) fn heal(&self) {
        self.state.lock().expect("a lock").faults.clear();
    }

    /// Gives no key material ids from now on, like fakecloud itself.
    pub(crate) fn hide_ids(&self) {
        self.state.lock().expect("a lock").without_ids = true;
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().expect("a lock").calls.clone()
    }

    /// The number of calls of an operation so far.
    pub(crate) fn count(&self, operation: &str) -> usize {
        self.calls().iter().filter(|call| call.operation == operation).count()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The id of a key's material: 64 hexadecimal digits, like AWS's.
pub(crate) fn material(key: &str, number: usize) -> String {
    let hash = byok::crypto::sha256(format!("{key}/{number}").as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn forward(state: &Mutex<State>, cloud: &str, client: &reqwest::Client, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    let operation = operation(&parts.headers, &body);
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let fault = {
        let mut state = state.lock().expect("a lock");
        state.calls.push(Call { operation: operation.clone(), body: asked.clone() });
        let due = state.faults.iter_mut().find(|(of, times, _)| *of == operation && *times > 0);
        due.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        })
    };
    match &fault {
        Some(Fault::Answer(status, text)) => return super::stub::answer(*status, *text),
        Some(Fault::Error(status, code)) => return error(&parts.headers, *status, code),
        Some(Fault::Late(by)) => tokio::time::sleep(*by).await,
        Some(Fault::Truncated | Fault::Corrupted | Fault::OtherKey | Fault::Stale) | None => {}
    }
    let url = format!("{cloud}{}", parts.uri.path());
    let mut parts = parts;
    // The only unsigned call: with strict IAM, fakecloud denies every unsigned request.
    if operation == "AssumeRoleWithWebIdentity" {
        assert!(!parts.headers.contains_key("authorization"), "the token identifies us");
        parts.headers.insert("authorization", authorization(REGION, "sts").parse().expect("a header"));
    }
    let sent = client.request(parts.method, url).headers(parts.headers).body(body).send().await;
    let answer = sent.expect("the cloud answers");
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    let mut body = answer.bytes().await.expect("a body");
    if status == 200 && !asked.is_null() {
        body = with_ids(&mut state.lock().expect("a lock"), &operation, &asked, &body);
    }
    headers.remove("content-length");
    let body = match fault {
        Some(Fault::Truncated) => {
            let half = body.slice(..body.len() / 2);
            headers.insert("content-length", body.len().into());
            let pieces = [Ok(half), Err(std::io::Error::other("cut"))];
            Body::from_stream(futures_util::stream::iter(pieces))
        }
        Some(Fault::Corrupted) => {
            let mut bytes = body.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle..middle + 4].copy_from_slice(b"\"\0}{");
            Body::from(bytes)
        }
        Some(Fault::OtherKey) => {
            Body::from(String::from_utf8_lossy(&body).replace(&format!(":{REGION}:"), ":us-east-1:"))
        }
        Some(Fault::Stale) => {
            let key =
                asked["SourceKeyId"].as_str().and_then(|arn| arn.rsplit('/').next()).unwrap_or_default();
            let now = state.lock().expect("a lock").rotations.get(key).copied().unwrap_or_default();
            let before = material(key, now.saturating_sub(1));
            Body::from(String::from_utf8_lossy(&body).replace(&material(key, now), &before))
        }
        _ => Body::from(body),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn operation(headers: &HeaderMap, body: &Bytes) -> String {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()?.split('.').nth(1));
    let form = || {
        String::from_utf8_lossy(body)
            .split('&')
            .find_map(|pair| pair.strip_prefix("Action=").map(str::to_owned))
    };
    target.map(str::to_owned).or_else(form).unwrap_or_default()
}

/// An error in the format of KMS (JSON) or STS (XML), with a message that must not appear anywhere.
fn error(headers: &HeaderMap, status: u16, code: &str) -> Response {
    let message = super::aws::CANARY;
    let body = if headers.contains_key("x-amz-target") {
        json!({ "__type": code, "message": message }).to_string()
    } else {
        format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>{message}</Message></Error><RequestId>r-1</RequestId></ErrorResponse>"
        )
    };
    let mut response = super::stub::answer(status, body);
    response
        .headers_mut()
        .insert("x-amzn-requestid", "00000000-0000-4000-8000-000000000001".parse().expect("an id"));
    response
}

/// The canary in the faulty service's messages.
pub(crate) const CANARY: &str = "canary-in-a-message-of-aws";

fn with_ids(state: &mut State, operation: &str, asked: &Value, body: &Bytes) -> Bytes {
    let Ok(mut answer) = serde_json::from_slice::<Value>(body) else { return body.clone() };
    if state.without_ids {
        return body.clone();
    }
    let id_of =
        |arn: &Value| arn.as_str().and_then(|arn| arn.rsplit('/').next()).unwrap_or_default().to_owned();
    let key = id_of(&answer["KeyId"]);
    let rotations = state.rotations.get(&key).copied().unwrap_or_default();
    let now = material(&key, rotations);
    let source = asked["CiphertextBlob"].as_str().and_then(|blob| state.made_by.get(blob)).cloned();
    if let Some(made) = answer["CiphertextBlob"].as_str() {
        state.made_by.insert(made.to_owned(), now.clone());
    }
    match operation {
        "GenerateDataKey" => answer["KeyMaterialId"] = now.into(),
        "Decrypt" => answer["KeyMaterialId"] = source.into(),
        "ReEncrypt" => {
            answer["SourceKeyMaterialId"] = source.into();
            answer["DestinationKeyMaterialId"] = now.into();
        }
        "ListKeyRotations" if asked["IncludeKeyMaterial"] == "ALL_KEY_MATERIAL" => {
            let key = id_of(&asked["KeyId"]);
            let real = answer["Rotations"].as_array().cloned().unwrap_or_default();
            let entries = (0..=real.len()).map(|number| {
                let mut entry = if number == 0 { json!({}) } else { real[number - 1].clone() };
                entry["KeyId"] = key.clone().into();
                entry["KeyMaterialId"] = material(&key, number).into();
                entry["KeyMaterialState"] =
                    if number == real.len() { "CURRENT" } else { "NON_CURRENT" }.into();
                // fakecloud dates to the second, AWS more precisely.
                if number > 0 {
                    entry["RotationDate"] = (1_700_000_000 + number).into();
                }
                entry
            });
            answer["Rotations"] = entries.collect();
        }
        _ => {}
    }
    answer.to_string().into()
}

/// The customer who owns a key and the role that lets us use it.
struct Customer {
    key: Key,
    role: Role,
    front: Front,
}

impl Customer {
    /// Permits us to use the key, and to call `kms:ListKeyRotations`.
    async fn permit(&self) {
        self.role.permit(&permissions(&self.key.arn, &["kms:ListKeyRotations"])).await;
    }

    /// All that AWS lets a customer turn off: everything but a version, since the older materials
    /// of a rotated key cannot be disabled.
    fn switches(self: &Arc<Self>) -> Vec<(Switch, Turns)> {
        let turns = |switch| {
            Some(match switch {
                Switch::Key => Turns::of(
                    self,
                    |customer| Box::pin(customer.key.as_customer("DisableKey")),
                    |customer| Box::pin(customer.key.as_customer("EnableKey")),
                ),
                Switch::Policy => Turns::of(
                    self,
                    |customer| Box::pin(customer.role.forbid()),
                    |customer| Box::pin(customer.permit()),
                ),
                Switch::Deletion => Turns::of(
                    self,
                    |customer| Box::pin(customer.key.schedule_deletion()),
                    |Self { key, .. }| {
                        Box::pin(async {
                            key.as_customer("CancelKeyDeletion").await;
                            // A key whose deletion was cancelled is disabled.
                            key.as_customer("EnableKey").await;
                        })
                    },
                ),
                Switch::Version => return None,
                Switch::Credential => Turns::of(
                    self,
                    |Self { key, role, .. }| {
                        Box::pin(async {
                            key.user.activate_access_key(false).await;
                            role.revoke_sessions().await;
                        })
                    },
                    |Self { key, role, .. }| {
                        Box::pin(async {
                            role.delete_policy(REVOKED_SESSIONS).await;
                            key.user.activate_access_key(true).await;
                        })
                    },
                ),
            })
        };
        Switch::ALL.into_iter().filter_map(|switch| Some((switch, turns(switch)?))).collect()
    }
}

impl Provided {
    /// A key in the shared fakecloud, and a role that may use it, with an external id.
    pub(crate) async fn aws() -> Self {
        const EXTERNAL_ID: &str = "byok-7f3a";
        let cloud = Cloud::shared();
        let key = cloud.key().await;
        let role = key.role(EXTERNAL_ID).await;
        let front = Front::of(&cloud).await;
        let customer = Arc::new(Customer { key, role, front });
        customer.permit().await;
        let Customer { key, role, front } = &*customer;
        // Another name of the same server, so that STS can be reached separately.
        let sts = cloud.address.replace("127.0.0.1", "localhost");
        let variables = [
            ("BYOK_PROVIDER", "aws-kms"),
            ("BYOK_AWS_KEY_ARN", &key.arn),
            ("BYOK_AWS_ROLE_ARN", &role.arn),
            ("BYOK_AWS_EXTERNAL_ID", EXTERNAL_ID),
            ("BYOK_AWS_ENDPOINT", &front.address),
            ("BYOK_AWS_STS_ENDPOINT", &sts),
            ("AWS_ACCESS_KEY_ID", &key.user.id),
            ("AWS_SECRET_ACCESS_KEY", &key.user.secret),
        ];
        Self {
            variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            kms: front.address.clone(),
            credential: Some(sts.clone()),
            tls: None,
            called: |request| {
                let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
                target.and_then(|target| target.split('.').nth(1)).unwrap_or("AssumeRole").to_owned()
            },
            secrets: vec![key.user.secret.clone()],
            plain: &["Plaintext"],
            error: |code, text| json!({ "__type": code, "message": text }).to_string(),
            codes: &[
                "",
                "AccessDeniedException",
                "DisabledException",
                "InvalidCiphertextException",
                "ExpiredTokenException",
                "KMSInternalException",
            ],
            switches: customer.switches(),
            rotate: {
                let customer = Arc::clone(&customer);
                Box::new(move || {
                    let customer = Arc::clone(&customer);
                    Box::pin(async move { customer.front.rotate(&customer.key).await })
                })
            },
        }
    }
}
