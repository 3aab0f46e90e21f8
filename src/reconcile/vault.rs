//! The audit device of Vault or OpenBao (<https://developer.hashicorp.com/vault/docs/audit>): JSON Lines, one as a request comes and
//! one as it is answered, both with the `request_id` that the caller gets. Ciphertexts stand there as HMACs under the
//! device's salt: not what they are, but which are the same.

use std::sync::Arc;

use serde_json::Value;

use super::record::{Call, NOBODY, Record, Use, fingerprint, other, text, time};

/// What the device's HMACs begin with.
const HMAC: &str = "hmac-sha256:";

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
        credential: Some(token(record)).filter(|token| !token.is_empty()).map(fingerprint),
        refused: record.get("error").is_some() || results.is_some_and(|data| all_failed(record, data, used)),
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

/// Whether no item of a batch came to anything: such an answer is an error to who asked, and none to the device. Of `encrypt`
/// and `decrypt` it has the status alone, which one item that failed sets for all. Of `rewrap` it has a result for each item, and
/// writes an absent error as the HMAC of the empty text: the same as that of an absent reference. We send no reference; of who
/// sends one nothing is taken for a failure.
fn all_failed(record: &Value, data: &Value, used: Use) -> bool {
    let items = record.pointer("/request/data/batch_input").and_then(Value::as_array);
    let Some(items) = items else { return false };
    match used {
        Use::Rewrap => {
            let results = data.get("batch_results").and_then(Value::as_array);
            let failed = |result: &Value| {
                let error = text(result, "/error");
                !error.is_empty() && error != text(result, "/reference")
            };
            items.iter().all(|item| item.get("reference").is_none())
                && results.is_some_and(|results| !results.is_empty() && results.iter().all(failed))
        }
        Use::Wrap | Use::Unwrap | Use::Export => {
            let status = data.get("http_status_code").and_then(Value::as_u64);
            items.len() == 1 && status.is_some_and(|status| status >= 400)
        }
    }
}

/// The token as the device writes it. Of a request that was refused for its token there is no other trace of who made it.
fn token(record: &Value) -> &str {
    match text(record, "/request/client_token") {
        "" => text(record, "/auth/client_token"),
        token => token,
    }
}

/// The fingerprints of the ciphertexts of a batch, or of the one that there is.
fn ciphertexts(data: &Value, batch: &str) -> Vec<u64> {
    let items = data.get(batch).and_then(Value::as_array);
    let texts = items.into_iter().flatten().chain([data]).map(|item| text(item, "/ciphertext"));
    texts.filter(|text| !text.is_empty()).map(fingerprint).collect()
}

/// The entity, which outlasts a login; else the token, which does not.
fn principal(record: &Value) -> String {
    let name = match text(record, "/auth/display_name") {
        "" => NOBODY,
        name => name,
    };
    // As long as tells one from another: an HMAC has 64 digits.
    let short = |hmac: &str| hmac.trim_start_matches(HMAC).chars().take(24).collect::<String>();
    match (text(record, "/auth/entity_id"), text(record, "/auth/accessor")) {
        // With `log_raw` it is the token itself.
        ("", "") if token(record).starts_with(HMAC) => format!("{name} (token {})", short(token(record))),
        ("", "") => name.to_owned(),
        ("", accessor) => format!("{name} (token accessor {})", short(accessor)),
        (entity, _) => format!("{name} (entity {entity})"),
    }
}
