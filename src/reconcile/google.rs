//! Google Cloud's audit logs (<https://cloud.google.com/kms/docs/audit-logging>), as `gcloud
//! logging read --format=json` or a sink writes them. Cloud KMS does not return an id for a call,
//! and logs neither the additional authenticated data nor the ciphertext. So a record cannot be
//! joined to an entry. It does say who used the key.

use std::sync::Arc;

use serde_json::Value;

use super::record::{Call, NOBODY, Record, Use, names_key, other, text, time};

pub(super) fn read(record: &Value, keys: &[Arc<str>]) -> Option<Record> {
    let payload = record.get("protoPayload")?;
    let service = payload.get("serviceName")?.as_str()?;
    let at = time(record, "/timestamp")?;
    // Older records have only the method, newer ones have the service before it.
    let used = match text(payload, "/methodName").rsplit('.').next().unwrap_or_default() {
        "Encrypt" | "RawEncrypt" => Use::Wrap,
        "Decrypt" | "RawDecrypt" => Use::Unwrap,
        _ => return other(at),
    };
    if service != "cloudkms.googleapis.com" || !names_key(text(payload, "/resourceName"), "cryptoKeys", keys)
    {
        return other(at);
    }
    let principal = match text(payload, "/authenticationInfo/principalEmail") {
        "" => NOBODY,
        principal => principal,
    };
    let call = Call {
        id: text(record, "/insertId").to_owned(),
        at,
        used,
        principal: principal.to_owned(),
        credential: None,
        refused: payload.pointer("/status/code").and_then(Value::as_i64).is_some_and(|code| code != 0),
        probe: false,
        given: Vec::new(),
        made: Vec::new(),
    };
    Some(Record { at, call: Some(call) })
}
