//! The OpenAPI 3.1 description of the REST front: the operations of [`routes`](super::routes), with
//! the schemas of the types that their handlers read and write.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::response::Response;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::audit::{AuditPage, Parameters};
use super::body::text_answer;
use super::crypt_json::{
    DecryptAnswer, DecryptManyAnswer, DecryptManyRequest, DecryptRequest, EncryptAnswer, EncryptManyAnswer,
    EncryptManyRequest, EncryptRequest,
};
use super::health::{Health, Serving};
use super::problem::Problem;
use super::rotate::{Forecast, NoMembers, RotateRequest, Rotation};
use super::schema;

pub(super) async fn serve() -> Response {
    // Built once: it is the same for everybody and needs no identity.
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    text_answer(200, DOCUMENT.clone())
}

/// The description.
pub fn document() -> Value {
    let mut document = Document { schemas: schema::generator(), paths: Map::new() };
    document.describe();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "byok",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            "description": "Field-level encryption under a key that the customer holds in their own KMS.",
        },
        "servers": [{ "url": "/" }],
        "paths": document.paths,
        "components": {
            "schemas": document.schemas.take_definitions(true),
            "securitySchemes": { "bearer": {
                "type": "http", "scheme": "bearer", "description": "A JWT with Hasura's claims, or an admin token.",
            } },
        },
    })
}

/// The document under construction.
struct Document {
    /// The schemas of the types that were referred to.
    schemas: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    fn describe(&mut self) {
        let required = true;
        let encrypt = self.operation("encrypt", "Encrypt one value");
        let encrypt = encrypt.body::<EncryptRequest>(required).json::<EncryptAnswer>("200", "Done");
        encrypt.on_post("/byok/encrypt");

        let encrypt_many = self.operation("encryptMany", "Encrypt many values");
        let encrypt_many = encrypt_many.body::<EncryptManyRequest>(required);
        encrypt_many.json::<EncryptManyAnswer>("200", "Done").on_post("/byok/encrypt/many");

        let decrypt = self.operation("decrypt", "Decrypt one value");
        let decrypt = decrypt.body::<DecryptRequest>(required).json::<DecryptAnswer>("200", "Done");
        decrypt.on_post("/byok/decrypt");

        let decrypt_many = self.operation("decryptMany", "Decrypt many values");
        let decrypt_many = decrypt_many.body::<DecryptManyRequest>(required);
        decrypt_many.json::<DecryptManyAnswer>("200", "Done").on_post("/byok/decrypt/many");

        let rotate = self.operation("rotate", "Re-wrap all DEKs under the current key version");
        let rotate =
            rotate.body::<RotateRequest>(!required).json::<Forecast>("200", "A forecast (`dry_run`)");
        rotate.json::<Rotation>("202", "The job").on_post("/byok/rotate");

        let rotation = self.operation("rotation", "The progress of a rotation").id_in_path();
        rotation.json::<Rotation>("200", "The job").on_get("/byok/rotate/{id}");

        for (id, summary, path) in [
            ("pauseRotation", "Pause a rotation until it is resumed", "/byok/rotate/{id}/pause"),
            ("resumeRotation", "Resume a paused rotation", "/byok/rotate/{id}/resume"),
            (
                "cancelRotation",
                "End a rotation early; DEKs that it re-wrapped stay re-wrapped",
                "/byok/rotate/{id}/cancel",
            ),
        ] {
            let command = self.operation(id, summary).id_in_path().body::<NoMembers>(!required);
            command.json::<Rotation>("200", "The job after the command").on_post(path);
        }

        let audit = self.operation("audit", "Read the audit log, newest entries first").query::<Parameters>();
        audit.json::<AuditPage>("200", "A page").on_get("/byok/audit");

        let summary = "The current size and root of the audit log, signed (c2sp.org/tlog-checkpoint)";
        self.operation("auditCheckpoint", summary).text("The note").on_get("/byok/audit/checkpoint");

        let summary = "The public keys that verify checkpoints, one per line (c2sp.org/signed-note), the current one first";
        self.operation("auditKeys", summary).text("The keys").on_get("/byok/audit/keys");

        let summary = "Whether the key works, by a wrap and an unwrap, made at most once in five seconds; without a credential, the last known health";
        let key_health = self.operation("keyHealth", summary).security(json!([{}, { "bearer": [] }]));
        let key_health = key_health.json::<Health>("200", "It works").json::<Health>("503", "It does not");
        key_health.on_get("/byok/health");

        let health = self.operation("health", "Whether the server serves, whatever the key does");
        health.security(json!([])).json::<Serving>("200", "It serves").on_get("/health");
    }

    /// An operation for callers with an identity. Every operation may be refused, because of the
    /// caller's request, the server, or what the server depends on.
    fn operation(&mut self, id: &str, summary: &str) -> Operation<'_> {
        let problem = self.schemas.subschema_for::<Problem>();
        let content = json!({ "application/problem+json": { "schema": problem } });
        let refused = json!({ "description": "Refused; `code` says why.", "content": content });
        let operation = json!({
            "operationId": id,
            "summary": summary,
            "security": [{ "bearer": [] }],
            "responses": { "4XX": refused, "5XX": refused },
        });
        Operation { document: self, operation }
    }
}

/// An operation under construction.
struct Operation<'a> {
    document: &'a mut Document,
    operation: Value,
}

impl Operation<'_> {
    fn security(mut self, alternatives: Value) -> Self {
        self.operation["security"] = alternatives;
        self
    }

    fn id_in_path(mut self) -> Self {
        self.operation["parameters"] =
            json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
        self
    }

    /// The members of `T` as parameters of the query string.
    fn query<T: JsonSchema>(mut self) -> Self {
        let schema = schema::generator().into_root_schema_for::<T>().to_value();
        let members = schema["properties"].as_object().into_iter().flatten();
        self.operation["parameters"] = members
            .map(|(name, schema)| json!({ "name": name, "in": "query", "required": false, "schema": schema }))
            .collect();
        self
    }

    fn body<T: JsonSchema>(mut self, required: bool) -> Self {
        let content = self.content::<T>();
        self.operation["requestBody"] = json!({ "required": required, "content": content });
        self
    }

    fn json<T: JsonSchema>(mut self, status: &str, description: &str) -> Self {
        let content = self.content::<T>();
        self.operation["responses"][status] = json!({ "description": description, "content": content });
        self
    }

    fn text(mut self, description: &str) -> Self {
        let content = json!({ "text/plain": { "schema": { "type": "string" } } });
        self.operation["responses"]["200"] = json!({ "description": description, "content": content });
        self
    }

    fn content<T: JsonSchema>(&mut self) -> Value {
        json!({ "application/json": { "schema": self.document.schemas.subschema_for::<T>() } })
    }

    fn on_get(self, path: &str) {
        self.document.paths.insert(path.to_owned(), json!({ "get": self.operation }));
    }

    fn on_post(self, path: &str) {
        self.document.paths.insert(path.to_owned(), json!({ "post": self.operation }));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The routes that are served and not described: those of monitoring, and the description
    /// itself.
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
