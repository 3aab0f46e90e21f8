//! The scenarios: the requests to each server, and the answers that must come.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::baselines::NO_OP_PLAINTEXT;
use crate::generator::{Call, Expected};
use crate::servers::{Servers, authorization, request};

pub(crate) const ECHO: &str = "echo, bare axum";
pub(crate) const DECRYPT_REST: &str = "decrypt, REST";
pub(crate) const NO_OP: &str = "no-op, stock GraphQL";
pub(crate) const DECRYPT: &str = "byokDecrypt";
pub(crate) const VAULT: &str = "Vault decrypt";
pub(crate) const DECRYPT_MANY: &str = "byokDecryptMany of 1,000";
pub(crate) const VAULT_BATCH: &str = "Vault decrypt of 1,000";
pub(crate) const REVEAL: &str = "byokReveal, 1,000 aliases";

/// The connections of single calls: enough to keep a core busy while some of them wait for a
/// commit.
const CONNECTIONS: usize = 256;
/// The connections of batches, each of which keeps a core busy by itself.
const CONNECTIONS_OF_BATCHES: usize = 8;
/// The number of hot records, and of items in a batch.
const RECORDS: usize = 1_000;

const ANSWERS_A_TOKEN: &str = "\"byok:v1:";

/// The server that a scenario calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Byok,
    /// The other byok, on the same database and key.
    Against,
    Echo,
    NoOp,
    Vault,
}

/// One line of the table.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) connections: usize,
    pub(crate) records_per_call: usize,
    pub(crate) calls: Arc<Calls>,
}

impl Scenario {
    /// The scenario, followed by the same for the other byok.
    pub(crate) fn against(self) -> Vec<Self> {
        if self.target != Target::Byok {
            return vec![self];
        }
        let other = Self { target: Target::Against, calls: self.calls.clone(), ..self };
        vec![self, other]
    }
}

/// The requests of a scenario.
pub(crate) enum Calls {
    /// These calls, one after the other, repeatedly.
    InTurn(Vec<Call>, AtomicUsize),
    /// Calls that are made from a number, a new one each time.
    Fresh(Box<dyn Fn(usize) -> Call + Send + Sync>, AtomicUsize),
}

/// A record whose DEK is hot, with its plaintext under byok's key and under Vault's.
struct Record {
    id: String,
    plaintext: String,
    token: String,
    in_vault: String,
}

/// All scenarios. Those that are compared are next to each other.
pub(crate) async fn all(servers: &Servers) -> Result<Vec<Scenario>, String> {
    let jwt = authorization();
    let vault = format!("X-Vault-Token: {}\r\n", servers.vault_token);
    let records = records(servers, &jwt, &vault).await?;
    let decrypt_rest = |record: &Record| {
        rest("decrypt", &jwt, &json!({ "ciphertext": record.token, "context": context(&record.id) }))
    };
    let decrypt = |record: &Record| {
        let text = "mutation($ciphertext: String!, $recordId: ID) { byokDecrypt(ciphertext: $ciphertext, recordId: $recordId) { plaintext } }";
        graphql(&jwt, text, json!({ "ciphertext": record.token, "recordId": record.id }))
    };
    let echoed = |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request);
        let body = text.split_once("\r\n\r\n").map_or(&[][..], |(_, body)| body.as_bytes()).to_vec();
        exactly(request, body)
    };
    let decrypted = |text: &str| format!(r#"{{"data":{{"byokDecrypt":{{"plaintext":"{text}"}}}}}}"#);
    let in_vault = |text: &str| format!(r#""plaintext":"{}""#, STANDARD.encode(text));
    let for_each = |make: &dyn Fn(&Record) -> Call| in_turn(records.iter().map(make).collect());

    let vault_items: Vec<Value> =
        records.iter().map(|record| json!({ "ciphertext": record.in_vault })).collect();
    let vault_batch =
        request("/v1/transit/decrypt/byok", &vault, &json!({ "batch_input": vault_items }).to_string());
    let known: Vec<Value> = records.iter().map(|record| item(&record.plaintext, &record.id)).collect();
    let single =
        |name, target, calls| Scenario { name, target, connections: CONNECTIONS, records_per_call: 1, calls };
    let batch = |name, target, calls| Scenario {
        name,
        target,
        connections: CONNECTIONS_OF_BATCHES,
        records_per_call: RECORDS,
        calls,
    };
    let jwt_of_new = jwt.clone();
    let jwt_of_new_many = jwt.clone();
    Ok(vec![
        single(ECHO, Target::Echo, for_each(&|record| echoed(decrypt_rest(record)))),
        single(
            DECRYPT_REST,
            Target::Byok,
            for_each(&|record| {
                exactly(
                    decrypt_rest(record),
                    json!({ "plaintext": record.plaintext }).to_string().into_bytes(),
                )
            }),
        ),
        single(
            NO_OP,
            Target::NoOp,
            for_each(&|record| exactly(decrypt(record), decrypted(NO_OP_PLAINTEXT).into_bytes())),
        ),
        single(
            DECRYPT,
            Target::Byok,
            for_each(&|record| exactly(decrypt(record), decrypted(&record.plaintext).into_bytes())),
        ),
        single(
            VAULT,
            Target::Vault,
            for_each(&|record| {
                let body = json!({ "ciphertext": record.in_vault }).to_string();
                in_order(request("/v1/transit/decrypt/byok", &vault, &body), [in_vault(&record.plaintext)])
            }),
        ),
        batch(DECRYPT_MANY, Target::Byok, in_turn(vec![decrypt_many(&jwt, &records)])),
        batch("decrypt many of 1,000, REST", Target::Byok, in_turn(vec![decrypt_many_rest(&jwt, &records)])),
        batch(
            VAULT_BATCH,
            Target::Vault,
            in_turn(vec![in_order(vault_batch, records.iter().map(|record| in_vault(&record.plaintext)))]),
        ),
        batch(REVEAL, Target::Byok, in_turn(vec![reveal(&jwt, &records)])),
        single(
            "byokEncrypt, known record",
            Target::Byok,
            for_each(&|record| encrypt(&jwt, &record.plaintext, &record.id)),
        ),
        single(
            "byokEncrypt, new record",
            Target::Byok,
            fresh(move |n| encrypt(&jwt_of_new, "a@example.com", &format!("one-{n}"))),
        ),
        batch("byokEncryptMany of 1,000, known", Target::Byok, in_turn(vec![encrypt_many(&jwt, &known)])),
        batch(
            "byokEncryptMany of 1,000, new",
            Target::Byok,
            fresh(move |n| {
                let items: Vec<Value> =
                    (0..RECORDS).map(|index| item("a@example.com", &format!("many-{n}-{index}"))).collect();
                encrypt_many(&jwt_of_new_many, &items)
            }),
        ),
    ])
}

/// Encrypts the records with byok and with Vault.
async fn records(servers: &Servers, jwt: &str, vault: &str) -> Result<Vec<Record>, String> {
    let plain: Vec<(String, String)> =
        (0..RECORDS).map(|n| (format!("user-{n:05}"), format!("person-{n:05}@example.com"))).collect();
    let ours: Vec<Value> =
        plain.iter().map(|(id, text)| json!({ "plaintext": text, "context": context(id) })).collect();
    let theirs: Vec<Value> =
        plain.iter().map(|(_, text)| json!({ "plaintext": STANDARD.encode(text) })).collect();
    let tokens = servers.ask(Target::Byok, &rest("encrypt/many", jwt, &json!({ "items": ours }))).await?;
    let batch = request("/v1/transit/encrypt/byok", vault, &json!({ "batch_input": theirs }).to_string());
    let in_vault = servers.ask(Target::Vault, &batch).await?;
    let text = |value: &Value| {
        value["ciphertext"].as_str().map(str::to_owned).ok_or_else(|| format!("no ciphertext: {value}"))
    };
    let make = |(n, (id, plaintext))| {
        let token = text(&tokens["items"][n])?;
        let in_vault = text(&in_vault["data"]["batch_results"][n])?;
        Ok(Record { id, plaintext, token, in_vault })
    };
    plain.into_iter().enumerate().map(make).collect()
}

fn decrypt_many(jwt: &str, records: &[Record]) -> Call {
    let text = "mutation($items: [ByokDecryptItem!]!) { byokDecryptMany(items: $items) { plaintext error { code } } }";
    let items: Vec<Value> =
        records.iter().map(|record| json!({ "ciphertext": record.token, "recordId": record.id })).collect();
    let plaintexts: Vec<String> = records
        .iter()
        .map(|record| format!(r#"{{"plaintext":"{}","error":null}}"#, record.plaintext))
        .collect();
    let expected = format!(r#"{{"data":{{"byokDecryptMany":[{}]}}}}"#, plaintexts.join(","));
    exactly(graphql(jwt, text, json!({ "items": items })), expected.into_bytes())
}

fn decrypt_many_rest(jwt: &str, records: &[Record]) -> Call {
    let items: Vec<Value> = records
        .iter()
        .map(|record| json!({ "ciphertext": record.token, "context": context(&record.id) }))
        .collect();
    let plaintexts: Vec<Value> =
        records.iter().map(|record| json!({ "plaintext": record.plaintext })).collect();
    let expected = json!({ "items": plaintexts }).to_string();
    exactly(rest("decrypt/many", jwt, &json!({ "items": items })), expected.into_bytes())
}

/// A remote join as Hasura sends it: an aliased field for each row, with inlined arguments.
fn reveal(jwt: &str, records: &[Record]) -> Call {
    let (mut query, mut expected) = (String::from("query {"), String::new());
    for (n, record) in records.iter().enumerate() {
        let Record { id, plaintext, token, .. } = record;
        let _ = write!(
            query,
            r#" f{n}: byokReveal(ciphertext: "{token}", recordId: "{id}") {{ value error {{ code }} }}"#
        );
        let _ = write!(
            expected,
            r#"{}"f{n}":{{"value":"{plaintext}","error":null}}"#,
            if n == 0 { "" } else { "," }
        );
    }
    let expected = format!(r#"{{"data":{{{expected}}}}}"#);
    exactly(graphql(jwt, &(query + " }"), json!({})), expected.into_bytes())
}

fn encrypt(jwt: &str, plaintext: &str, record_id: &str) -> Call {
    let text = "mutation($plaintext: String!, $recordId: ID) { byokEncrypt(plaintext: $plaintext, recordId: $recordId) { ciphertext keyVersion } }";
    in_order(graphql(jwt, text, item(plaintext, record_id)), [ANSWERS_A_TOKEN.to_owned()])
}

fn encrypt_many(jwt: &str, items: &[Value]) -> Call {
    let text = "mutation($items: [ByokEncryptItem!]!) { byokEncryptMany(items: $items) { ciphertext error { code } } }";
    in_order(graphql(jwt, text, json!({ "items": items })), items.iter().map(|_| ANSWERS_A_TOKEN.to_owned()))
}

fn item(plaintext: &str, record_id: &str) -> Value {
    json!({ "plaintext": plaintext, "recordId": record_id })
}

fn context(record_id: &str) -> Value {
    json!({ "record_id": record_id })
}

fn rest(operation: &str, jwt: &str, body: &Value) -> Vec<u8> {
    request(&format!("/byok/{operation}"), jwt, &body.to_string())
}

fn graphql(jwt: &str, query: &str, variables: Value) -> Vec<u8> {
    request("/graphql", jwt, &json!({ "query": query, "variables": variables }).to_string())
}

fn exactly(request: Vec<u8>, body: Vec<u8>) -> Call {
    Call { request, expected: Expected::Exactly(body) }
}

fn in_order(request: Vec<u8>, pieces: impl IntoIterator<Item = String>) -> Call {
    Call { request, expected: Expected::InOrder(pieces.into_iter().map(String::into_bytes).collect()) }
}

fn in_turn(calls: Vec<Call>) -> Arc<Calls> {
    Arc::new(Calls::InTurn(calls, AtomicUsize::new(0)))
}

fn fresh(make: impl Fn(usize) -> Call + Send + Sync + 'static) -> Arc<Calls> {
    Arc::new(Calls::Fresh(Box::new(make), AtomicUsize::new(0)))
}
