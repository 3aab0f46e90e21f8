//! The audit device of Vault or OpenBao (<https://developer.hashicorp.com/vault/docs/audit>). It
//! writes JSON Lines: one for each request and one for each answer, both with the `request_id` that
//! the caller gets. Ciphertexts appear as HMACs under the device's salt, which show only whether
//! two of them are the same.

use std::sync::Arc;

use serde_json::Value;

use super::record::{Call, NOBODY, Record, Use, fingerprint, other, text, time};

/// The prefix of the device's HMACs.
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

/// Returns how a request to this path uses one of the keys, if it does. The path of a mount may
/// have several parts.
fn used(path: &str, mount: &str, keys: &[Arc<str>]) -> Option<Use> {
    let mut parts = match path.strip_prefix(mount) {
        Some(rest) if !mount.is_empty() => rest.split('/'),
        // Before Vault 1.10, records have no mount: it is the first part of the path.
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

/// Returns whether every item of a batch failed. Such an answer is an error to the caller, but not
/// to the device. For `encrypt` and `decrypt` the device records only the status, which one failed
/// item sets for all. For `rewrap` it records a result for each item, and writes an absent error as
/// the HMAC of the empty text, which is also how it writes an absent reference. byok sends no
/// references; for a caller that sends one, nothing counts as a failure.
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

/// Returns the token as the device writes it. If a request was refused because of its token, there
/// is no other trace of the caller.
fn token(record: &Value) -> &str {
    match text(record, "/request/client_token") {
        "" => text(record, "/auth/client_token"),
        token => token,
    }
}

/// Returns the fingerprints of the ciphertexts of a batch, or of the single ciphertext.
fn ciphertexts(data: &Value, batch: &str) -> Vec<u64> {
    let items = data.get(batch).and_then(Value::as_array);
    let texts = items.into_iter().flatten().chain([data]).map(|item| text(item, "/ciphertext"));
    texts.filter(|text| !text.is_empty()).map(fingerprint).collect()
}

/// Returns the entity, which outlasts a login, or else the token, which does not.
fn principal(record: &Value) -> String {
    let name = match text(record, "/auth/display_name") {
        "" => NOBODY,
        name => name,
    };
    // Short, but long enough to distinguish HMACs, which have 64 digits.
    let short = |hmac: &str| hmac.trim_start_matches(HMAC).chars().take(24).collect::<String>();
    match (text(record, "/auth/entity_id"), text(record, "/auth/accessor")) {
        // With `log_raw` this would be the token itself.
        ("", "") if token(record).starts_with(HMAC) => format!("{name} (token {})", short(token(record))),
        ("", "") => name.to_owned(),
        ("", accessor) => format!("{name} (token accessor {})", short(accessor)),
        (entity, _) => format!("{name} (entity {entity})"),
    }
}
