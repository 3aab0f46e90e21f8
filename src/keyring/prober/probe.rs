//! One probe: the rows are claimed, the canaries unwrapped, and the result is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use crate::kms::{ItemResult, KmsError, KmsErrorClass, Verdict};
use crate::model::{BootTime, Posture, Proof, Tenant, TenantUid, Timestamp};
use crate::store::{Change, Snapshot, Watched};
use crate::tenancy::TenantRuntime;

use super::super::posture::{ProbeResult, after_probe, claim, is_due};
use super::{ProbeTurn, Prober, binding_of};

/// How often the result of a probe is written again when others write the same row.
const WRITE_ATTEMPTS: usize = 3;

/// The result of a probe, with its evidence.
pub(super) struct Evidence {
    pub(super) result: ProbeResult,
    pub(super) error: Option<KmsError>,
    pub(super) kms_request_id: Option<Arc<str>>,
}

impl Prober {
    /// Starts the probes that are due, one batch for each tenant. A version for which this replica
    /// still waits for a probe is skipped.
    pub(super) fn start_due_probes(self: &Arc<Self>, seen: &Snapshot<Watched>, requested: BootTime) {
        let mut due: BTreeMap<TenantUid, (Vec<Watched>, Vec<OwnedMutexGuard<ProbeTurn>>)> = BTreeMap::new();
        for row in &seen.rows {
            if is_due(&row.proof, seen.now, self.replica, &self.settings)
                && let Ok(turn) = self.turn(row.tenant.uid, &row.proof.key_version).try_lock_owned()
            {
                let (rows, turns) = due.entry(row.tenant.uid).or_default();
                rows.push(row.clone());
                turns.push(turn);
            }
        }
        for (rows, turns) in due.into_values() {
            let (prober, now) = (self.clone(), seen.now);
            tokio::spawn(async move {
                prober.probe(Snapshot { now, rows }, requested).await;
                drop(turns);
            });
        }
    }

    /// Probes rows of one tenant, in the state in which they were read. A row that another replica
    /// updates first is left to it. Returns whether any rows were left to probe.
    pub(super) async fn probe(&self, seen: Snapshot<Watched>, requested: BootTime) -> bool {
        let Some(tenant) = seen.rows.first().map(|row| row.tenant.clone()) else { return false };
        // A replica that cannot serve a tenant has nothing to say about the tenant's keys.
        let Ok(runtime) = self.tenants.with(tenant.uid).await else { return false };
        let claimed = self.claim_rows(&tenant, seen.rows, seen.now).await;
        if claimed.is_empty() {
            return false;
        }
        let sent = self.boot();
        let evidence = self.unwrap_canaries(&runtime, &claimed).await;
        let ended = self.boot();
        for ((row, claim), evidence) in claimed.into_iter().zip(evidence) {
            self.counts.count_probe(evidence.result);
            let version = &row.proof.key_version;
            self.states.note_probe_end(tenant.uid, version, ended);
            if evidence.result == ProbeResult::Works {
                self.states.note_unwrap(tenant.uid, version, sent);
            }
            self.write_result(&tenant, claim, &evidence, (seen.now, requested, ended)).await;
        }
        true
    }

    /// Writes into the rows that this replica probes them, and returns those that it was the first
    /// to write, each with its new contents.
    async fn claim_rows(&self, tenant: &Tenant, rows: Vec<Watched>, now: Timestamp) -> Vec<(Watched, Proof)> {
        let mut claims: Vec<(Watched, Proof)> = rows
            .into_iter()
            .map(|row| {
                let claim = claim(&row.proof, now, &self.settings);
                (row, claim)
            })
            .collect();
        let write = |(row, claim): &(Watched, Proof)| Change::UpdateProof {
            from: row.proof.revision,
            to: claim.clone(),
            incident: None,
        };
        let Some(applied) = self.commit(tenant.uid, claims.iter().map(write).collect()).await else {
            return Vec::new();
        };
        let mut applied = applied.into_iter();
        claims.retain(|_| applied.next() == Some(1));
        claims
    }

    async fn unwrap_canaries(
        &self,
        runtime: &Arc<TenantRuntime>,
        claims: &[(Watched, Proof)],
    ) -> Vec<Evidence> {
        let tenant = &runtime.tenant;
        let canaries: Vec<_> = claims
            .iter()
            .map(|(row, _)| (binding_of(tenant.uid, &row.canary), row.canary.wrapped.clone()))
            .collect();
        let asked = runtime.clone();
        // Runs to its end even after the timeout: it may be the call that logs in for all others.
        let call = tokio::spawn(async move { asked.keys.unwrap(&canaries).await });
        let answers = match timeout(self.answer_timeout(tenant.uid, claims), call).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(_)) => Vec::new(),
            Err(_) => claims.iter().map(|_| Err(KmsError::local(KmsErrorClass::Timeout))).collect(),
        };
        let mut answers = answers.into_iter();
        claims.iter().map(|_| evidence_of(answers.next())).collect()
    }

    /// Returns how long to wait for an answer: not longer than the last proof is valid, so that
    /// callers learn no later than that moment that there is no newer one.
    fn answer_timeout(&self, tenant: TenantUid, claims: &[(Watched, Proof)]) -> Duration {
        let now = self.boot();
        let left = claims.iter().filter_map(|(row, _)| {
            let state = self.states.get(tenant, &row.proof.key_version)?;
            let left = self.settings.bound().checked_sub(state.proof_age(now))?;
            (state.posture == Posture::Active).then_some(left)
        });
        left.min().map_or(self.settings.probe_timeout, |left| left.min(self.settings.probe_timeout))
    }

    /// Writes the result of a probe. The probe was sent after the database's clock showed `at`, was
    /// `requested` and `ended` at these times of this machine's clock. If another replica has
    /// updated the row meanwhile, the result still counts, unless that replica has changed the
    /// posture or has a newer proof.
    async fn write_result(
        &self,
        tenant: &Tenant,
        mut from: Proof,
        evidence: &Evidence,
        (at, requested, ended): (Timestamp, BootTime, BootTime),
    ) {
        let result = evidence.result;
        for _ in 0..WRITE_ATTEMPTS {
            // A success that is too old to be a proof is not written: the other replicas rely on no
            // proof coming this late.
            if result == ProbeResult::Works && self.boot().since(requested) > self.settings.bound() {
                return;
            }
            let times = (at, ended.since(requested));
            let next = after_probe(&from, result, self.replica, times, &self.settings);
            let is_written = if next.posture == from.posture {
                let prove = Change::UpdateProof { from: from.revision, to: next, incident: None };
                self.commit(tenant.uid, vec![prove]).await == Some(vec![1])
            } else {
                if next.posture != Posture::Active {
                    // The DEKs in memory here are dropped before the other replicas learn of it.
                    self.states.set_posture(tenant.uid, &next.key_version, next.posture);
                    self.drop_tenant_deks(tenant.uid);
                }
                self.change_posture(tenant, &from, next, evidence).await
            };
            if is_written {
                return;
            }
            let Ok(seen) = self.store.proofs(tenant.uid).await else { return };
            let row = seen.rows.into_iter().find(|row| row.key_version == from.key_version);
            let Some(row) = row.filter(|row| row.epoch == from.epoch) else { return };
            // The key was shown to work after this probe had begun.
            if result != ProbeResult::Refused && row.proven_at > at && row.proven_at <= seen.now {
                return;
            }
            from = row;
        }
    }
}

/// Returns the result of a probe by its answer; `None` is a missing answer.
fn evidence_of<T>(answer: Option<ItemResult<T>>) -> Evidence {
    match answer {
        Some(Ok(answer)) => {
            Evidence { result: ProbeResult::Works, error: None, kms_request_id: answer.request_id }
        }
        Some(Err(error)) => {
            let result = match error.class.verdict() {
                // The key no longer unwraps this canary, so it is another key now.
                Verdict::Revoked | Verdict::Item => ProbeResult::Refused,
                Verdict::Outage | Verdict::Misconfigured | Verdict::Unasked => ProbeResult::OutOfReach,
            };
            Evidence { result, kms_request_id: error.request_id.clone(), error: Some(error) }
        }
        None => Evidence {
            result: ProbeResult::OutOfReach,
            error: Some(KmsError::local(KmsErrorClass::Internal)),
            kms_request_id: None,
        },
    }
}
