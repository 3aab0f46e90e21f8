//! The OpenAPI 3.1 description of the REST front, with the codes from the table of error codes.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::model::{ErrorCode, JobCommand, JobState, Operation, Outcome, Posture};

use super::body::text_answer;

pub(super) async fn serve() -> Response {
    // Built once: it is the same for everybody and needs no identity.
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    text_answer(200, DOCUMENT.clone())
}

/// The description.
pub fn document() -> Value {
    let context = json!({
        "type": ["object", "null"], "additionalProperties": { "type": "string" }, "maxProperties": 64,
        "description": "The context that the ciphertext is bound to; needed again to decrypt. Must contain `record_id`, which to encrypt has at most 512 bytes.",
        "examples": [{ "record_id": "user-123" }],
    });
    let encoding = json!({ "enum": ["UTF8", "BASE64", null], "description": "How the plaintext is written in JSON; UTF8 when absent." });
    let flat = |description: &str| json!({ "type": ["string", "null"], "description": description });
    let text = json!({ "type": "string" });
    let nullable = json!({ "type": ["string", "null"] });
    let count = json!({ "type": "integer", "minimum": 0 });
    let posture = |description: &str| {
        let mut names: Vec<Value> = Posture::ALL.map(|posture| posture.as_str().into()).to_vec();
        names.push(Value::Null);
        json!({ "enum": names, "description": description })
    };
    let outcome = json!({ "enum": Outcome::every().into_iter().map(Outcome::as_str).collect::<Vec<_>>() });
    let item_outcome = json!({ "oneOf": [{ "const": "OK" }, { "$ref": "#/components/schemas/ErrorCode" }] });
    let field = json!({ "type": "string", "description": "The wrong part of the request, if it can be named: a path of the names in this description and of indexes in lists.",
        "examples": ["items[3].context"] });
    let error = json!({ "type": "object", "required": ["code", "message", "retryable"], "properties": {
        "code": { "$ref": "#/components/schemas/ErrorCode" }, "message": text, "retryable": { "type": "boolean" }, "field": field } });
    let input = |value: &str| {
        json!({ "type": "object", "additionalProperties": false, "required": [value], "properties": {
        value: text, "context": context, "encoding": encoding,
        "record_id": flat("The context key `record_id`."), "field": flat("The context key `field`.") } })
    };
    let many = |of: &str| {
        json!({ "type": "object", "additionalProperties": false, "required": ["items"], "properties": {
        "items": { "type": "array", "minItems": 1, "items": { "$ref": of } } } })
    };
    let many_answers = |of: &str| {
        json!({ "type": "object", "required": ["items"], "properties": { "items": { "type": "array",
        "items": { "oneOf": [{ "$ref": of }, { "type": "object", "required": ["error"], "properties": { "error": error } }] } } } })
    };
    let entry = json!({ "type": "object", "properties": {
            "id": text, "at": text, "operation": { "enum": Operation::ALL.map(Operation::as_str) }, "outcome": outcome, "role": text,
            "user": nullable, "authenticated_by": text, "request_id": nullable, "detail": nullable,
            "voids": { "type": ["string", "null"], "description": "The earlier entry that this refusal replaces: its answer was withheld after the entry was written." },
            "item_count": count,
            "unlisted_refusals": { "type": "object", "additionalProperties": count, "description": "The number of refused items that `items` leaves out, by code." },
            "items": { "type": "array", "items": { "type": "object", "properties": {
                "record_id": nullable, "dek_id": nullable, "key_version": nullable, "source": { "enum": ["cache", "kms", null] },
                "kms_request_id": nullable, "outcome": item_outcome } } } } });
    let migrations = json!({ "type": "object", "properties": { "applied": count, "expected": count } });
    let schemas = json!({
        "ErrorCode": { "enum": ErrorCode::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>(), "description": code_table() },
        "Problem": { "type": "object", "required": ["type", "title", "status", "code", "retryable"], "properties": {
            "type": text, "title": text, "status": count, "detail": text, "retryable": { "type": "boolean" }, "field": field,
            "code": { "$ref": "#/components/schemas/ErrorCode" } } },
        "EncryptRequest": input("plaintext"),
        "EncryptManyRequest": many("#/components/schemas/EncryptRequest"),
        "EncryptAnswer": { "type": "object", "required": ["ciphertext", "key_version"], "properties": {
            "ciphertext": { "type": "string", "pattern": "^byok:v1:[A-Za-z0-9_-]+$" }, "key_version": text } },
        "EncryptManyAnswer": many_answers("#/components/schemas/EncryptAnswer"),
        "DecryptRequest": input("ciphertext"),
        "DecryptManyRequest": many("#/components/schemas/DecryptRequest"),
        "DecryptAnswer": { "type": "object", "required": ["plaintext"], "properties": { "plaintext": text } },
        "DecryptManyAnswer": many_answers("#/components/schemas/DecryptAnswer"),
        "RotateRequest": { "type": "object", "additionalProperties": false, "properties": {
            "dry_run": { "type": ["boolean", "null"], "description": "Report what a rotation would do, and change nothing." } } },
        "Forecast": { "type": "object", "required": ["dry_run", "target", "deks", "kms_calls"], "properties": {
            "dry_run": { "const": true }, "target": text, "deks": count, "kms_calls": count } },
        "NoMembers": { "type": "object", "additionalProperties": false },
        "Rotation": { "type": "object", "properties": {
            "id": text, "state": { "enum": JobState::ALL.map(JobState::as_str) }, "target": text, "total": count, "rewrapped": count,
            "skipped": count, "failed": count, "kms_calls": count, "stalled": nullable, "started_at": text,
            "updated_at": text, "finished_at": nullable } },
        "AuditPage": { "type": "object", "required": ["entries", "next"], "properties": {
            "entries": { "type": "array", "items": { "$ref": "#/components/schemas/Entry" } },
            "next": { "type": ["string", "null"], "description": "Pass it as `after` to get the next page. A page may hold fewer entries than requested, or none, although more follow; null means that this is the end." } } },
        "Entry": entry,
        "Serving": { "type": "object", "properties": { "status": { "enum": ["OK"] }, "migrations": migrations } },
        "Health": { "type": "object", "properties": {
            "status": { "enum": ["OK", "DEGRADED", "REVOKED"] }, "database": { "enum": ["OK", "UNAVAILABLE"] },
            "audit_log": { "enum": ["OK", "BEHIND"], "description": "BEHIND if the database was restored or rewritten, so that the log is older than its published checkpoint; no call is answered then." },
            "key_version": nullable, "error": nullable, "kms_latency_ms": { "type": ["number", "null"], "description": "How long the wrap and the unwrap took; null if the KMS was not asked." },
            "posture": posture("The posture of this key version; null until one of its data keys is used."),
            "worst_posture": posture("The worst posture of all key versions that are probed."),
            "last_success": { "type": ["string", "null"], "format": "date-time", "description": "When the key was last shown to work." },
            "last_success_seconds_ago": { "type": ["number", "null"] },
            "bound_seconds": { "type": "number", "description": "The greatest age of the last proof that the key works at which a call is still answered." },
            "next_login": { "type": ["string", "null"], "format": "date-time", "description": "When the server tries again to log in to the KMS, which refused its credential; a new credential is tried at once. Null otherwise." },
            "audit_protected": { "type": "boolean", "description": "Whether the serving role can neither change nor delete entries." },
            "migrations": migrations } },
    });
    let query = |name: &str, schema: Value| json!({ "name": name, "in": "query", "required": false, "schema": schema });
    let paths = json!({
        "/byok/encrypt": { "post": post("encrypt", "Encrypt one value", "EncryptRequest", 200, "EncryptAnswer", true) },
        "/byok/encrypt/many": { "post": post("encryptMany", "Encrypt many values", "EncryptManyRequest", 200, "EncryptManyAnswer", true) },
        "/byok/decrypt": { "post": post("decrypt", "Decrypt one value", "DecryptRequest", 200, "DecryptAnswer", true) },
        "/byok/decrypt/many": { "post": post("decryptMany", "Decrypt many values", "DecryptManyRequest", 200, "DecryptManyAnswer", true) },
        "/byok/rotate": { "post": {
            "operationId": "rotate", "summary": "Re-wrap all DEKs under the current key version", "security": [{ "bearer": [] }],
            "requestBody": body("RotateRequest", false),
            "responses": { "200": content("A forecast (`dry_run`)", "Forecast"), "202": content("The job", "Rotation") } } },
        "/byok/rotate/{id}": { "get": {
            "operationId": "rotation", "summary": "The progress of a rotation", "security": [{ "bearer": [] }],
            "parameters": [{ "name": "id", "in": "path", "required": true, "schema": text }],
            "responses": { "200": content("The job", "Rotation") } } },
        "/byok/rotate/{id}/pause": { "post": command(JobCommand::Pause, "Have nobody work on a rotation until it is resumed") },
        "/byok/rotate/{id}/resume": { "post": command(JobCommand::Resume, "Have a rotation that is paused go on") },
        "/byok/rotate/{id}/cancel": { "post": command(JobCommand::Cancel, "End a rotation where it is; what it re-wrapped stays so") },
        "/byok/audit": { "get": {
            "operationId": "audit", "summary": "Read the audit log, newest entries first", "security": [{ "bearer": [] }],
            "parameters": [
                query("from", json!({ "type": "string", "format": "date-time" })), query("until", json!({ "type": "string", "format": "date-time" })),
                query("operation", json!({ "enum": Operation::ALL.map(Operation::as_str) })), query("outcome", outcome),
                query("user", text.clone()), query("record_id", text.clone()),
                query("first", json!({ "type": "integer", "minimum": 1, "maximum": 500, "default": 50 })), query("after", text.clone())],
            "responses": { "200": content("A page", "AuditPage") } } },
        "/byok/audit/checkpoint": { "get": {
            "operationId": "auditCheckpoint", "summary": "The current size and root of the audit log, signed (c2sp.org/tlog-checkpoint)", "security": [{ "bearer": [] }],
            "responses": { "200": plain("The note") } } },
        "/byok/audit/keys": { "get": {
            "operationId": "auditKeys", "summary": "The public keys that verify checkpoints, one per line (c2sp.org/signed-note), the current one first", "security": [{ "bearer": [] }],
            "responses": { "200": plain("The keys") } } },
        "/byok/health": { "get": {
            "operationId": "keyHealth", "summary": "Whether the key works, by a wrap and an unwrap, made at most once in five seconds; without a credential, the last known health",
            "security": [{}, { "bearer": [] }],
            "responses": { "200": content("It works", "Health"), "503": content("It does not", "Health") } } },
        "/health": { "get": {
            "operationId": "health", "summary": "Whether the server serves, whatever the key does", "security": [],
            "responses": { "200": content("It serves", "Serving") } } },
    });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "byok", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            "description": "Field-level encryption under a key that the customer holds in their own KMS." },
        "servers": [{ "url": "/" }],
        "paths": with_refusals(paths),
        "components": { "schemas": schemas, "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer",
            "description": "A JWT with Hasura's claims, or an admin token." } } },
    })
}

/// Every operation may be refused: for what the caller did, and because of the server or of what it
/// stands on.
fn with_refusals(mut paths: Value) -> Value {
    for path in paths.as_object_mut().into_iter().flat_map(|paths| paths.values_mut()) {
        for operation in path.as_object_mut().into_iter().flat_map(|methods| methods.values_mut()) {
            operation["responses"]["4XX"] = refused();
            operation["responses"]["5XX"] = refused();
        }
    }
    paths
}

fn post(id: &str, summary: &str, request: &str, status: u16, response: &str, required: bool) -> Value {
    let mut responses = Map::new();
    responses.insert(status.to_string(), content("Done", response));
    json!({ "operationId": id, "summary": summary, "security": [{ "bearer": [] }], "requestBody": body(request, required), "responses": responses })
}

fn command(command: JobCommand, summary: &str) -> Value {
    json!({
        "operationId": format!("{}Rotation", command.as_str()), "summary": summary, "security": [{ "bearer": [] }],
        "parameters": [{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }],
        "requestBody": body("NoMembers", false),
        "responses": { "200": content("The job after the command", "Rotation") } })
}

fn body(schema: &str, required: bool) -> Value {
    json!({ "required": required, "content": { "application/json": { "schema": reference(schema) } } })
}

fn content(description: &str, schema: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": reference(schema) } } })
}

fn plain(description: &str) -> Value {
    json!({ "description": description, "content": { "text/plain": { "schema": { "type": "string" } } } })
}

fn refused() -> Value {
    json!({ "description": "Refused; `code` says why.", "content": { "application/problem+json": { "schema": reference("Problem") } } })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn code_table() -> String {
    let line = |code: &ErrorCode| {
        let retry = if code.retryable() { "a retry may help" } else { "a retry does not help" };
        format!(
            "- `{}` ({}, {retry}): {} {}",
            code.as_str(),
            code.http_status(),
            code.message(),
            code.remedy()
        )
    };
    ErrorCode::ALL.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is served and not described: for whoever watches the server, and the description itself.
    const UNDESCRIBED: [&str; 8] = [
        "GET /healthz",
        "GET /ready",
        "GET /readyz",
        "GET /live",
        "GET /livez",
        "GET /version",
        "GET /capabilities",
        "GET /openapi.json",
    ];

    #[test]
    fn what_is_served_is_described_and_what_is_described_is_served() {
        let document = document();
        let methods_of = |(path, methods): (&String, &Value)| {
            let methods: Vec<String> = methods.as_object().unwrap().keys().cloned().collect();
            methods.into_iter().map(|method| format!("{} {path}", method.to_uppercase())).collect::<Vec<_>>()
        };
        let described: BTreeSet<String> =
            document["paths"].as_object().unwrap().iter().flat_map(methods_of).collect();
        let routes = crate::rest::routes().into_iter().map(|(method, path, _)| format!("{method} {path}"));
        let undescribed = BTreeSet::from(UNDESCRIBED.map(str::to_owned));
        assert!(described.is_disjoint(&undescribed), "described after all");
        assert_eq!(routes.collect::<BTreeSet<_>>(), described.union(&undescribed).cloned().collect());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let document = document();
        let operations = document["paths"].as_object().unwrap().values();
        let operations = operations.flat_map(|methods| methods.as_object().unwrap().values());
        let mut names: Vec<&str> = operations.map(|it| it["operationId"].as_str().unwrap()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), count), (14, 14));
        assert_eq!(document["servers"][0]["url"], "/");
    }

    #[test]
    fn an_outcome_is_one_of_those_that_entries_have() {
        let document = document();
        let outcomes = &document["components"]["schemas"]["Entry"]["properties"]["outcome"]["enum"];
        let has = |name: &str| outcomes.as_array().unwrap().iter().any(|outcome| outcome == name);
        assert!(has("OK") && has("PARTIAL") && has("DECRYPT_FAILED") && !has("invalid-jwt"));
        let parameters = document["paths"]["/byok/audit"]["get"]["parameters"].as_array().unwrap();
        let asked = parameters.iter().find(|parameter| parameter["name"] == "outcome").unwrap();
        assert_eq!(&asked["schema"]["enum"], outcomes);
    }
}
