//! Pages of the audit log.

use std::collections::BTreeMap;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::app::{AuditQuery, EntryFilter, no_room};
use crate::model::{self, ErrorCode, Operation, Outcome, Refusal, Source, Timestamp};

use super::Front;
use super::body::answer_within;
use super::caller::Authenticated;
use super::problem::problem;
use super::schema::promises;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    #[schemars(with = "String", extend("format" = "date-time"))]
    from: Option<String>,
    #[schemars(with = "String", extend("format" = "date-time"))]
    until: Option<String>,
    #[schemars(with = "Operation")]
    operation: Option<String>,
    #[schemars(with = "Outcome")]
    outcome: Option<String>,
    #[schemars(with = "String")]
    user: Option<String>,
    #[schemars(with = "String")]
    record_id: Option<String>,
    #[schemars(with = "u32", range(min = 1, max = 500), extend("default" = 50))]
    first: Option<u32>,
    #[schemars(with = "String")]
    after: Option<String>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(transform = promises(&["entries", "next"]))]
pub(super) struct AuditPage {
    entries: Vec<Entry>,
    /// Pass it as `after` to get the next page. A page may hold fewer entries than requested, or
    /// none, although more follow; null means that this is the end.
    next: Option<String>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(transform = promises(&[]))]
struct Entry {
    at: String,
    authenticated_by: &'static str,
    detail: Option<String>,
    id: String,
    item_count: u64,
    items: Vec<Item>,
    #[schemars(with = "Operation")]
    operation: &'static str,
    #[schemars(with = "Outcome")]
    outcome: &'static str,
    request_id: Option<String>,
    role: String,
    /// The number of refused items that `items` leaves out, by code.
    unlisted_refusals: BTreeMap<&'static str, u64>,
    user: Option<String>,
    /// The earlier entry that this refusal replaces: its answer was withheld after the entry was
    /// written.
    voids: Option<String>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(inline, transform = promises(&[]))]
struct Item {
    dek_id: Option<String>,
    key_version: Option<String>,
    kms_request_id: Option<String>,
    #[schemars(schema_with = "item_outcome")]
    outcome: &'static str,
    record_id: Option<String>,
    #[schemars(with = "Option<Source>")]
    source: Option<&'static str>,
}

fn item_outcome(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "oneOf": [{ "const": "OK" }, generator.subschema_for::<ErrorCode>()] })
}

pub(super) async fn page(
    State(front): State<Front>,
    Authenticated(caller, room): Authenticated,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Response {
    let query = match parameters {
        Ok(Query(parameters)) => parameters.into_query(),
        Err(rejection) => Err(invalid_query(&rejection)),
    };
    let query = match query {
        Ok(query) => query,
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Audit, refusal).await),
    };
    let answered = match front.app.audit(&caller, &query, room.largest_answer()).await {
        Err(refusal) => return problem(&refusal),
        Ok(page) if !room.hold_at_least(page.bytes.min(room.largest_answer())) => Err(no_room()),
        Ok(page) => {
            let entries = page.entries.iter().map(|(_, entry)| entry.into()).collect();
            answer_within(&*room, &AuditPage { entries, next: page.next })
        }
    };
    match answered {
        Ok(response) => response,
        Err(refusal) => problem(&front.app.refuse(&caller, Operation::Audit, refusal).await),
    }
}

impl Parameters {
    fn into_query(self) -> Result<AuditQuery, Refusal> {
        let time = |name: &str, text: Option<String>| match text {
            None => Ok(None),
            Some(text) => match Timestamp::parse(&text) {
                Some(at) => Ok(Some(at)),
                None => Err(malformed("A time must be RFC 3339, such as 2026-11-23T10:00:00Z.").at(name)),
            },
        };
        let operation = match self.operation.as_deref().map(Operation::parse) {
            Some(None) => return Err(malformed("There is no such operation.").at("operation")),
            known => known.flatten(),
        };
        let outcome = match self.outcome.as_deref().map(Outcome::parse) {
            Some(None) => return Err(malformed("There is no such outcome.").at("outcome")),
            known => known.flatten(),
        };
        let (user, record_id) = (self.user, self.record_id);
        let filter = EntryFilter {
            from: time("from", self.from)?,
            until: time("until", self.until)?,
            operation,
            outcome,
            user,
            record_id,
            record_hash: None,
        };
        Ok(AuditQuery { filter, first: self.first, after: self.after, newer: false })
    }
}

/// The refusal of an invalid query string. axum's message can name a parameter; only the known
/// names are passed on.
fn invalid_query(rejection: &QueryRejection) -> Refusal {
    const NAMES: [&str; 8] = ["from", "until", "operation", "outcome", "user", "record_id", "first", "after"];
    let message = rejection.body_text();
    match NAMES.into_iter().find(|name| message.contains(&format!(": {name}: "))) {
        Some(name) => malformed("A parameter of the query string is not valid for this operation.").at(name),
        None => malformed("The query string has parameters that this operation does not accept."),
    }
}

fn malformed(why: &'static str) -> Refusal {
    Refusal::because(ErrorCode::RequestMalformed, why)
}

impl From<&model::Entry> for Entry {
    fn from(entry: &model::Entry) -> Self {
        let refusals = entry.extensions.unlisted_refusals().into_iter();
        Self {
            at: entry.at.to_string(),
            authenticated_by: entry.means.as_str(),
            detail: entry.detail.as_deref().map(str::to_owned),
            id: entry.id.to_string(),
            item_count: entry.item_count(),
            items: entry.items.iter().map(Item::from).collect(),
            operation: entry.operation.as_str(),
            outcome: entry.outcome.as_str(),
            request_id: entry.request_id.clone(),
            role: entry.role.to_string(),
            unlisted_refusals: refusals.map(|(code, count)| (code.as_str(), count)).collect(),
            user: entry.user.clone(),
            voids: entry.extensions.voids().map(|id| id.to_string()),
        }
    }
}

impl From<&model::Item> for Item {
    fn from(item: &model::Item) -> Self {
        Self {
            dek_id: item.dek_id.map(|id| id.to_string()),
            key_version: item.key_version.as_ref().map(ToString::to_string),
            kms_request_id: item.kms_request_id.as_deref().map(str::to_owned),
            outcome: item.refused.map_or("OK", ErrorCode::as_str),
            record_id: item.record_id.as_deref().map(str::to_owned),
            source: item.source.map(|source| match source {
                Source::Cache => "cache",
                Source::Kms => "kms",
            }),
        }
    }
}
