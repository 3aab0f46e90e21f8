//! Pages of the audit log.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::{AuditQuery, EntryFilter, no_room};
use crate::model::{Entry, ErrorCode, Item, Operation, Outcome, Refusal, Source, Timestamp};

use super::Front;
use super::body::answer_within;
use super::caller::Authenticated;
use super::problem::problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    from: Option<String>,
    until: Option<String>,
    operation: Option<String>,
    outcome: Option<String>,
    user: Option<String>,
    record_id: Option<String>,
    first: Option<u32>,
    after: Option<String>,
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
            let entries: Vec<Value> = page.entries.iter().map(|(_, entry)| entry_json(entry)).collect();
            answer_within(&*room, &json!({ "entries": entries, "next": page.next }))
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

fn entry_json(entry: &Entry) -> Value {
    json!({
        "id": entry.id.to_string(),
        "at": entry.at.to_string(),
        "operation": entry.operation.as_str(),
        "outcome": entry.outcome.as_str(),
        "role": entry.role,
        "user": entry.user,
        "authenticated_by": entry.means.as_str(),
        "request_id": entry.request_id,
        "detail": entry.detail,
        "voids": entry.extensions.voids().map(|id| id.to_string()),
        "item_count": entry.item_count(),
        "unlisted_refusals": unlisted_refusals(entry),
        "items": entry.items.iter().map(item_json).collect::<Vec<_>>(),
    })
}

/// The number of refused items that `items` leaves out, by code.
fn unlisted_refusals(entry: &Entry) -> Value {
    let counts = entry.extensions.unlisted_refusals().into_iter();
    counts.map(|(code, count)| (code.as_str().to_owned(), Value::from(count))).collect()
}

fn item_json(item: &Item) -> Value {
    json!({
        "record_id": item.record_id,
        "dek_id": item.dek_id.map(|id| id.to_string()),
        "key_version": item.key_version.as_ref().map(ToString::to_string),
        "source": item.source.map(|source| match source { Source::Cache => "cache", Source::Kms => "kms" }),
        "kms_request_id": item.kms_request_id,
        "outcome": item.refused.map_or("OK", ErrorCode::as_str),
    })
}
