//! A change of posture: the row, the incident and the log entry are one commit.

use std::sync::Arc;

use tracing::{error, info};

use crate::audit::{Unit, pack};
use crate::model::{
    Entry, EntryId, ErrorCode, Extensions, Incident, IncidentId, Item, Means, Operation, Outcome, Posture,
    Proof, Source, Tenant,
};
use crate::store::{Change, Fence, Requirement};

use super::Prober;
use super::probe::Evidence;

impl Prober {
    /// Changes a posture. Returns whether this replica made the change.
    pub(super) async fn change_posture(
        &self,
        tenant: &Tenant,
        from: &Proof,
        to: Proof,
        evidence: &Evidence,
    ) -> bool {
        let incident = Incident {
            id: IncidentId::new(),
            at: to.since,
            key_version: to.key_version.clone(),
            was: from.posture,
            posture: to.posture,
            class: evidence.error.as_ref().map(|error| error.class.as_str().into()),
            http_status: evidence.error.as_ref().and_then(|error| error.http_status),
            kms_request_id: evidence.kms_request_id.clone(),
        };
        let unit = Unit {
            tenant: tenant.uid,
            entry: Some(pack(tenant.uid, &self.entry_of(&incident))),
            gate: None,
            fence: vec![Fence {
                key_version: to.key_version.clone(),
                requirement: Requirement::Unchanged { revision: from.revision },
            }],
            changes: vec![Change::UpdateProof { from: from.revision, to, incident: Some(incident.clone()) }],
        };
        let is_changed = match self.committer.commit(unit).await {
            Ok(durable) => durable.applied.first() == Some(&1),
            Err(_) => false,
        };
        if is_changed {
            self.counts.count_incident(incident.posture);
            log_change(tenant, &incident);
            self.read_proofs(tenant.uid).await;
        }
        is_changed
    }

    fn entry_of(&self, incident: &Incident) -> Entry {
        let refused = match incident.posture {
            Posture::Active => None,
            Posture::Degraded => Some(ErrorCode::KmsUnavailable),
            Posture::Revoked => Some(ErrorCode::KmsAccessDenied),
        };
        let item = Item {
            key_id: incident.key_version.key_id.recorded(),
            key_version: Some(incident.key_version.clone()),
            source: Some(Source::Kms),
            kms_request_id: incident.kms_request_id.clone(),
            refused,
            ..Item::default()
        };
        Entry {
            id: EntryId::new(),
            at: self.clock.now(),
            operation: Operation::Incident,
            outcome: refused.map_or(Outcome::Ok, Outcome::Refused),
            role: Arc::from("prober"),
            user: None,
            means: Means::Operator,
            request_id: Some(incident.id.to_string()),
            detail: None,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            items: vec![item],
        }
    }
}

fn log_change(tenant: &Tenant, incident: &Incident) {
    let (incident_id, key_version) = (incident.id.to_string(), incident.key_version.to_string());
    let (was, posture, class) = (incident.was.as_str(), incident.posture.as_str(), incident.class.as_deref());
    let status = incident.http_status;
    let kms_request_id = incident.kms_request_id.as_deref();
    match incident.posture {
        Posture::Active => {
            info!(incident_id, tenant = tenant.name, key_version, was, posture, "a key may be used again");
        }
        Posture::Degraded => error!(
            incident_id,
            tenant = tenant.name,
            key_version,
            was,
            posture,
            class,
            status,
            kms_request_id,
            "a key is out of reach: what it protects cannot be read"
        ),
        Posture::Revoked => error!(
            incident_id,
            tenant = tenant.name,
            key_version,
            was,
            posture,
            class,
            status,
            kms_request_id,
            "a key was turned off: what it protects cannot be read"
        ),
    }
}
