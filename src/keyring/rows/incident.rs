//! The incident about a row that was refused.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tracing::error;

use crate::audit::{RowSeal, Unit, pack};
use crate::model::{
    DekId, Entry, ErrorCode, Incident, IncidentId, Item, KeyVersion, Operation, Outcome, Posture, Tenant,
};
use crate::store::{Change, DekRow};

use super::RowChecks;

/// The time between two incidents about refused rows, for each tenant and replica.
const INCIDENT_INTERVAL: Duration = Duration::from_secs(60);

impl RowChecks {
    /// Writes an incident about a row that was refused, unless there was one recently: an attacker
    /// who can edit one row may edit all of them.
    pub(super) fn report(self: &Arc<Self>, tenant: &Tenant, row: &DekRow, seal: RowSeal) {
        let now = self.clock.boot();
        let mut last = self.last_incident.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(&tenant.uid).is_some_and(|last| now.since(*last) < INCIDENT_INTERVAL) {
            return;
        }
        last.insert(tenant.uid, now);
        drop(last);
        let class = if seal == RowSeal::None { "RowUnsealed" } else { "RowAltered" };
        let (id, version) = (row.id, row.wrapped.key_version.clone());
        error!(
            tenant = tenant.name,
            dek_id = %id,
            class,
            "a DEK's row was changed by somebody who does not hold BYOK_ROW_MAC_KEY, and is refused: run `byok audit verify`"
        );
        let (checks, tenant) = (self.clone(), tenant.clone());
        tokio::spawn(async move { checks.write_incident(&tenant, id, version, class).await });
    }

    async fn write_incident(&self, tenant: &Tenant, dek_id: DekId, key_version: KeyVersion, class: &str) {
        let state = self.states.get(tenant.uid, &key_version);
        let posture = state.map_or(Posture::Active, |state| state.posture);
        let incident = Incident {
            id: IncidentId::new(),
            at: self.clock.now(),
            key_version: key_version.clone(),
            was: posture,
            posture,
            class: Some(class.into()),
            http_status: None,
            kms_request_id: None,
        };
        let refused = ErrorCode::DecryptFailed;
        let item = Item {
            dek_id: Some(dek_id),
            key_id: key_version.key_id.recorded(),
            key_version: Some(key_version),
            refused: Some(refused),
            ..Item::default()
        };
        let entry = Entry {
            outcome: Outcome::Refused(refused),
            role: "keyring".into(),
            request_id: Some(incident.id.to_string()),
            items: vec![item],
            ..Entry::of_operator(self.clock.now(), Operation::Incident, None, Some(class.into()))
        };
        let changes = vec![Change::RecordIncident(incident)];
        let unit = Unit::unconditional(tenant.uid, Some(pack(tenant.uid, &entry)), changes);
        if self.committer.commit(unit).await.is_err() {
            error!(tenant = tenant.name, %dek_id, class, "the incident could not be recorded");
        }
    }
}
