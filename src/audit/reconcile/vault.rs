//! The audit device of Vault or OpenBao (<https://developer.hashicorp.com/vault/docs/audit>): JSON Lines, one as a request comes and
//! one as it is answered, both with the `request_id` that the caller gets. Ciphertexts stand there as HMACs under the
//! device's salt: not what they are, but which are the same.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::Value;

use super::record::{Call, Record, Use, other, text, time};

pub(super) fn read(record: &Value, keys: &[Arc<str>]) -> Option<Record> {
    let kind = record.get("type")?.as_str().filter(|kind| ["request", "response"].contains(kind))?;
    let path = record.get("request")?.get("path")?.as_str()?;
    let at = time(record, "/time")?;
    let Some(used) = used(path, text(record, "/request/mount_point"), keys) else { return other(at) };
    let results = record.pointer("/response/data");
    let results = results.filter(|_| kind == "response");
    let call = Call {
        id: text(record, "/request/id").to_owned(),
        at,
        used,
        principal: principal(record),
        refused: record.get("error").is_some(),
        probe: false,
        given: record
            .pointer("/request/data")
            .map(|data| ciphertexts(data, "batch_input"))
            .unwrap_or_default(),
        made: results.map(|data| ciphertexts(data, "batch_results")).unwrap_or_default(),
    };
    Some(Record { at, call: Some(call) })
}

/// What a request to this path does with one of the keys, if anything. A mount may be of several parts.
fn used(path: &str, mount: &str, keys: &[Arc<str>]) -> Option<Use> {
    let mut parts = match path.strip_prefix(mount) {
        Some(rest) if !mount.is_empty() => rest.split('/'),
        // Before Vault 1.10 records have no mount: it is the first part.
        _ => path.split_once('/')?.1.split('/'),
    };
    let used = match parts.next()? {
        "encrypt" => Use::Wrap,
        "decrypt" => Use::Unwrap,
        "rewrap" => Use::Rewrap,
        "datakey" => parts.next().map(|_| Use::Wrap)?,
        "export" | "byok-export" => parts.next().map(|_| Use::Export)?,
        "backup" => Use::Export,
        _ => return None,
    };
    let name = parts.next()?;
    keys.iter().any(|key| **key == *name).then_some(used)
}

/// The fingerprints of the ciphertexts of a batch, or of the one that there is.
fn ciphertexts(data: &Value, batch: &str) -> Vec<u64> {
    let items = data.get(batch).and_then(Value::as_array);
    let texts = items.into_iter().flatten().chain([data]).map(|item| text(item, "/ciphertext"));
    texts.filter(|text| !text.is_empty()).map(fingerprint).collect()
}

fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The entity, which outlasts a login; else the token, which does not.
fn principal(record: &Value) -> String {
    let name = match text(record, "/auth/display_name") {
        "" => "nobody known",
        name => name,
    };
    match (text(record, "/auth/entity_id"), text(record, "/auth/accessor")) {
        ("", "") => name.to_owned(),
        ("", accessor) => {
            // As long as tells one from another: an HMAC has 64 digits.
            let short: String = accessor.trim_start_matches("hmac-sha256:").chars().take(24).collect();
            format!("{name} (token accessor {short})")
        }
        (entity, _) => format!("{name} (entity {entity})"),
    }
}
