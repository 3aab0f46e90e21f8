//! AWS CloudTrail
//! (<https://docs.aws.amazon.com/kms/latest/developerguide/logging-using-cloudtrail.html>).
//! `requestID` is the id that KMS answered with. The encryption context is logged, and KMS unwraps
//! nothing under another context. So a record whose context has `byok:purpose` can only be a probe,
//! whatever its caller. `byok:dek` distinguishes DEKs.

use std::sync::Arc;

use serde_json::Value;

use super::record::{Call, NOBODY, Record, Use, fingerprint, names_key, other, text, time};

pub(super) fn read(record: &Value, keys: &[Arc<str>]) -> Option<Record> {
    // `aws cloudtrail lookup-events` returns each record as a text inside another one.
    if let Some(inner) = record.get("CloudTrailEvent").and_then(Value::as_str) {
        return of_event(&serde_json::from_str(inner).ok()?, keys);
    }
    of_event(record, keys)
}

fn of_event(event: &Value, keys: &[Arc<str>]) -> Option<Record> {
    let (source, name) = (event.get("eventSource")?.as_str()?, event.get("eventName")?.as_str()?);
    let at = time(event, "/eventTime")?;
    let used = match name {
        "Encrypt"
        | "GenerateDataKey"
        | "GenerateDataKeyWithoutPlaintext"
        | "GenerateDataKeyPair"
        | "GenerateDataKeyPairWithoutPlaintext" => Use::Wrap,
        "Decrypt" => Use::Unwrap,
        "ReEncrypt" => Use::Rewrap,
        _ => return other(at),
    };
    if source != "kms.amazonaws.com" || !of_key(event, keys) {
        return other(at);
    }
    let bound = |name: &str| {
        event.pointer("/requestParameters/encryptionContext").and_then(|context| context.get(name))
    };
    // This identifies the DEK, not the ciphertext that was unwrapped.
    let dek = bound("byok:dek").and_then(Value::as_str).filter(|_| used == Use::Unwrap);
    let call = Call {
        id: text(event, "/requestID").to_owned(),
        at,
        used,
        principal: principal(event).to_owned(),
        credential: None,
        refused: event.get("errorCode").is_some(),
        probe: used != Use::Rewrap && bound("byok:purpose").is_some(),
        given: dek.map(fingerprint).into_iter().collect(),
        made: Vec::new(),
    };
    Some(Record { at, call: Some(call) })
}

/// Returns whether the event is about one of the keys. The ARNs of the keys are in `resources`; a
/// refused call may have only its request parameters.
fn of_key(event: &Value, keys: &[Arc<str>]) -> bool {
    let named = |name: &str| names_key(name, "key", keys) || keys.iter().any(|key| **key == *name);
    let resources = event.get("resources").and_then(Value::as_array).into_iter().flatten();
    let asked = ["keyId", "sourceKeyId", "destinationKeyId"].map(|name| format!("/requestParameters/{name}"));
    resources
        .map(|resource| text(resource, "/ARN"))
        .chain(asked.iter().map(|name| text(event, name)))
        .any(named)
}

/// Returns the role of a session, whatever the session's name; otherwise the caller, or the service
/// that called.
fn principal(event: &Value) -> &str {
    let pointers = [
        "/userIdentity/sessionContext/sessionIssuer/arn",
        "/userIdentity/arn",
        "/userIdentity/invokedBy",
        "/userIdentity/accountId",
    ];
    pointers.iter().map(|pointer| text(event, pointer)).find(|name| !name.is_empty()).unwrap_or(NOBODY)
}
