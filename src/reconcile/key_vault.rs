//! The diagnostic log of Azure Key Vault and managed HSMs
//! (<https://learn.microsoft.com/azure/key-vault/general/logging>), category `AuditEvent`, as a
//! storage account or an event hub receives it. The caller chooses the id of a call.

use std::sync::Arc;

use serde_json::Value;

use super::record::{Call, NOBODY, Record, Use, names_key, other, text, time};

pub(super) fn read(record: &Value, keys: &[Arc<str>]) -> Option<Record> {
    let (operation, _) = (record.get("operationName")?.as_str()?, record.get("resourceId")?.as_str()?);
    let at = time(record, "/time")?;
    let used = match operation {
        "KeyWrap" | "KeyEncrypt" => Use::Wrap,
        "KeyUnwrap" | "KeyDecrypt" => Use::Unwrap,
        _ => return other(at),
    };
    let named = ["/properties/requestUri", "/properties/id"];
    if !named.iter().any(|pointer| names_key(text(record, pointer), "keys", keys)) {
        return other(at);
    }
    let status = record.pointer("/properties/httpStatusCode").and_then(Value::as_i64);
    // Clients learn from this answer where to get a token, so they begin with an anonymous call.
    let without_token = status == Some(401);
    let call = Call {
        id: text(record, "/correlationId").to_owned(),
        at,
        used,
        principal: if without_token { "nobody with a token" } else { principal(record) }.to_owned(),
        credential: None,
        refused: status.map_or(text(record, "/resultType") != "Success", |status| status >= 400),
        probe: without_token,
        given: Vec::new(),
        made: Vec::new(),
    };
    Some(Record { at, call: Some(call) })
}

/// Returns the application of the token, or else its user.
fn principal(record: &Value) -> &str {
    let Some(claims) = record.pointer("/identity/claim") else { return NOBODY };
    let named = [
        "appid",
        "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn",
        "http://schemas.microsoft.com/identity/claims/objectidentifier",
        "oid",
    ];
    let mut named = named.iter().filter_map(|name| claims.get(name)?.as_str());
    named.next().unwrap_or(NOBODY)
}
