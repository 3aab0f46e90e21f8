//! An entry as an event of the Open Cybersecurity Schema Framework, version 1.1.0: class API
//! Activity (6003), from <https://schema.ocsf.io/1.1.0/classes/api_activity>. `docs/siem.md` has
//! the mapping. An event contains the personal values that its entry has: user, record ids, request
//! id.

use serde_json::{Value, json};

use crate::model::{Entry, Item, Operation, Outcome, Source, Tenant};
use crate::store::PlacedEntry;

use super::pack::unpack;

const VERSION: &str = "1.1.0";
const CATEGORY: u32 = 6;
const CLASS: u32 = 6003;

/// Returns the event of one entry of the log with this number. If the items do not have a form that
/// byok writes, for instance after a manual change, the event says so and omits them, so that no
/// entry stops a stream.
pub fn ocsf_event(tenant: &Tenant, log: u32, placed: &PlacedEntry) -> Value {
    let row = &placed.row;
    let entry = unpack(row);
    let (activity, activity_name) = activity(row.operation);
    let (status_id, status) = status(row.outcome);
    let (severity_id, severity) = severity(row.operation, row.outcome);
    let request = row.request.value.as_deref().filter(|request| !request.is_empty());
    let mut event = json!({
        "metadata": {
            "version": VERSION,
            "uid": row.id.to_string(),
            "sequence": placed.seq,
            "log_name": "audit",
            "original_time": row.at.to_string(),
            "tenant_uid": tenant.uid.to_string(),
            "product": { "name": "byok", "vendor_name": "byok", "version": env!("CARGO_PKG_VERSION") },
        },
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": CLASS * 100 + activity,
        "type_name": format!("API Activity: {activity_name}"),
        "time": row.at.0.div_euclid(1_000),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "status_code": row.outcome.as_str(),
        "actor": { "user": {
            "type_id": 99,
            "type": row.means.as_str(),
            "groups": [{ "name": &*row.role }],
        } },
        "api": { "operation": row.operation.as_str(), "service": { "name": "byok" } },
        // The log holds no network address.
        "src_endpoint": { "name": "unknown" },
        "unmapped": {
            "tenant": tenant.name,
            "log": log,
            "items": row.item_count,
            "leaf": hex(&row.leaf().0),
        },
    });
    // A user who is called `unknown` has that name in `uid`.
    match row.user.as_ref().and_then(|user| user.value.as_deref()) {
        Some(user) => event["actor"]["user"]["uid"] = user.into(),
        None => event["actor"]["user"]["name"] = "unknown".into(),
    }
    if let Some(request) = request {
        event["metadata"]["correlation_uid"] = request.into();
        event["api"]["request"] = json!({ "uid": request });
    }
    if let Some(detail) = &row.detail {
        event["status_detail"] = (&**detail).into();
    }
    match entry {
        Some(entry) => {
            event["resources"] = resources(&entry);
            event["unmapped"]["items"] = entry.item_count().into();
            for (name, value) in entry.extensions.iter() {
                event["unmapped"]["extensions"][name] = value.into();
            }
        }
        None => event["unmapped"]["unreadable"] = true.into(),
    }
    event
}

fn resources(entry: &Entry) -> Value {
    entry.items.iter().map(resource).collect()
}

fn resource(item: &Item) -> Value {
    let mut resource = json!({
        "type": "record",
        "data": {
            "dek_id": item.dek_id.map(|id| id.to_string()),
            "key_version": item.key_version.as_ref().map(ToString::to_string),
            "source": item.source.map(|source| match source {
                Source::Cache => "cache",
                Source::Kms => "kms",
            }),
            "kms_request_id": item.kms_request_id,
            "outcome": item.refused.map_or("OK", |code| code.as_str()),
        },
    });
    match &item.record_id {
        Some(record) => resource["uid"] = (&**record).into(),
        None => resource["name"] = "unknown".into(),
    }
    resource
}

/// Returns `activity_id` and its caption.
fn activity(operation: Operation) -> (u32, &'static str) {
    match operation {
        Operation::Encrypt | Operation::Restore => (1, "Create"),
        Operation::Decrypt | Operation::Reveal | Operation::Audit | Operation::Health => (2, "Read"),
        Operation::Rotate | Operation::Hold | Operation::Seal => (3, "Update"),
        Operation::Prune | Operation::Erase => (4, "Delete"),
        Operation::Incident => (99, "Other"),
    }
}

fn status(outcome: Outcome) -> (u32, &'static str) {
    match outcome {
        Outcome::Ok => (1, "Success"),
        Outcome::Refused(_) => (2, "Failure"),
        Outcome::Partial => (99, "Partial"),
    }
}

fn severity(operation: Operation, outcome: Outcome) -> (u32, &'static str) {
    match (operation, outcome) {
        (Operation::Incident, Outcome::Refused(_) | Outcome::Partial) => (4, "High"),
        (_, Outcome::Refused(_) | Outcome::Partial) => (2, "Low"),
        (
            Operation::Prune | Operation::Erase | Operation::Hold | Operation::Restore | Operation::Seal,
            Outcome::Ok,
        ) => (3, "Medium"),
        (_, Outcome::Ok) => (1, "Informational"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::pack::pack;
    use super::*;
    use crate::model::{DekId, EntryId, ErrorCode, Extensions, KeyVersion, Means, TenantUid, Timestamp};

    fn placed(outcome: Outcome, user: Option<&str>) -> (Tenant, PlacedEntry) {
        let tenant = Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() };
        let item = Item {
            record_id: Some("patient-1".into()),
            dek_id: Some(DekId(uuid::Uuid::from_bytes([2; 16]))),
            key_version: Some(KeyVersion::new("byok", "3")),
            source: Some(Source::Kms),
            kms_request_id: Some("kms-1".into()),
            ..Item::default()
        };
        let other =
            Item { record_id: None, refused: Some(ErrorCode::DecryptFailed), source: None, ..item.clone() };
        let mut extensions = Extensions::default();
        extensions.set_unlisted_refusals(&std::collections::BTreeMap::from([("DECRYPT_FAILED", 7)]));
        let entry = Entry {
            id: EntryId(uuid::Uuid::from_bytes([1; 16])),
            at: Timestamp::parse("2026-11-23T10:00:00.5Z").unwrap(),
            operation: Operation::Decrypt,
            outcome,
            role: "service".into(),
            user: user.map(str::to_owned),
            means: Means::Jwt,
            request_id: Some("r-1".to_owned()),
            detail: None,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions,
            items: vec![item, other],
        };
        let row = pack(tenant.uid, &entry);
        (tenant, PlacedEntry { seq: 41, row })
    }

    #[test]
    fn an_event_has_its_class_fields_and_what_the_entry_says() {
        let (tenant, placed) = placed(Outcome::Partial, Some("u-1"));
        let event = ocsf_event(&tenant, 2, &placed);
        for required in
            ["activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id"]
        {
            assert!(!event[required].is_null(), "{required}");
        }
        assert_eq!((&event["type_uid"], &event["status_id"]), (&json!(600_302), &json!(99)));
        assert_eq!(event["time"], 1_795_428_000_500_i64);
        assert_eq!((&event["unmapped"]["log"], &event["metadata"]["sequence"]), (&json!(2), &json!(41)));
        assert_eq!(event["actor"]["user"]["uid"], "u-1");
        assert_eq!(event["resources"][0]["uid"], "patient-1");
        assert_eq!(event["resources"][0]["data"]["kms_request_id"], "kms-1");
        assert_eq!(event["resources"][1]["name"], "unknown");
        assert_eq!(event["resources"][1]["data"]["outcome"], "DECRYPT_FAILED");
        assert_eq!(event["unmapped"]["items"], 9, "seven of them are not listed");
        assert_eq!(event["unmapped"]["extensions"]["unlisted-refusals"], "DECRYPT_FAILED=7");
        assert_eq!(event["unmapped"]["leaf"], hex(&placed.row.leaf().0));
    }

    #[test]
    fn an_unreadable_entry_becomes_an_event_that_says_so() {
        let (tenant, mut placed) = placed(Outcome::Ok, None);
        placed.row.items.truncate(3);
        let event = ocsf_event(&tenant, 2, &placed);
        assert_eq!(event["unmapped"]["unreadable"], true);
        assert!(event["resources"].is_null());
        assert_eq!(event["actor"]["user"]["name"], "unknown");
    }

    #[test]
    fn a_refusal_is_a_failure_with_its_code() {
        let (tenant, placed) = placed(Outcome::Refused(ErrorCode::PermissionDenied), Some("u"));
        let event = ocsf_event(&tenant, 2, &placed);
        assert_eq!((&event["status_id"], &event["severity_id"]), (&json!(2), &json!(2)));
        assert_eq!(event["status_code"], "PERMISSION_DENIED");
    }
}
