//! The prober: shows once in a while that each key version whose DEKs are in some replica's memory
//! still works, by unwrapping a canary. Replicas share the work: the replica that updates a proof
//! row first does that probe. Only the results of probes change a posture.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::audit::{Unit, pack};
use crate::kms::{KmsError, KmsErrorClass, Verdict};
use crate::model::{
    BootTime, Entry, EntryId, ErrorCode, Extensions, Incident, IncidentId, Item, KeyVersion, Means,
    Operation, Outcome, Posture, Proof, Source, Tenant, TenantUid, Timestamp,
};
use crate::store::{Change, Fence, Requirement, Snapshot, Watched};

use super::database_clock::Reading;
use super::guard::binding_of;
use super::posture::{Met, after, claimed, is_due};
use super::view::View;
use super::{Keyring, Turn};

/// How often rows are checked when no replica needs any.
const IDLE: Duration = Duration::from_secs(1);

/// How often the row is read while another replica probes.
const GLANCE: Duration = Duration::from_millis(50);

/// How often the result of a probe is written again when others write the same row.
const TRIES: usize = 3;

/// The result of a probe, with its evidence.
struct Found {
    met: Met,
    error: Option<KmsError>,
    kms_request_id: Option<Arc<str>>,
}

impl Keyring {
    /// Watches over all key versions until `stop` is cancelled.
    pub async fn keep_watch(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(self.keep_looking(&stop), self.keep_dropping(&stop));
    }

    /// Has a timer of its own, so that a database that hangs does not keep in memory what may not
    /// be used.
    async fn keep_dropping(&self, stop: &CancellationToken) {
        while timeout(self.guard.probe_every / 4, stop.cancelled()).await.is_err() {
            self.drop_unproven();
        }
    }

    async fn keep_looking(self: &Arc<Self>, stop: &CancellationToken) {
        loop {
            let pause = match self.look().await {
                true => self.guard.probe_every / 4,
                false => IDLE.min(self.guard.probe_every),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Tells the other replicas what is needed, reads what they found, probes what is due, and
    /// drops what was not shown to work in time. Returns whether anything is watched.
    async fn look(self: &Arc<Self>) -> bool {
        let rewinds = self.committer.rewinds();
        if self.rewinds.swap(rewinds, Ordering::SeqCst) != rewinds {
            self.clear();
        }
        let mut told: BTreeMap<TenantUid, Vec<KeyVersion>> = BTreeMap::new();
        for (tenant, version) in self.to_be_told() {
            told.entry(tenant).or_default().push(version);
        }
        for (tenant, versions) in told {
            self.say_needed(tenant, &versions).await;
        }
        let watched = self.watched().await;
        if let Some((seen, asked)) = &watched {
            self.probe_due(seen, *asked);
            self.read_what_left(seen).await;
        }
        self.drop_unproven();
        watched.is_none_or(|(seen, _)| !seen.rows.is_empty())
    }

    /// Reads the versions that this replica believes to be dark or has in memory, but that are no
    /// longer watched as such: another replica has seen the key come back, or has re-wrapped the
    /// last DEK under it.
    async fn read_what_left(&self, seen: &Snapshot<Watched>) {
        let now = self.boot();
        let is_watched = |tenant: TenantUid, version: &KeyVersion| {
            seen.rows.iter().any(|row| row.tenant.uid == tenant && row.proof.key_version == *version)
        };
        let left: BTreeSet<TenantUid> = self
            .views
            .all()
            .into_iter()
            .filter(|(tenant, version, view)| {
                (view.posture != Posture::Active || view.in_memory_until > now)
                    && !is_watched(*tenant, version)
            })
            .map(|(tenant, ..)| tenant)
            .collect();
        for tenant in left {
            self.read(tenant).await;
        }
    }

    /// Starts the probes that are due, one batch for each tenant. A version for which this replica
    /// still waits for a probe is skipped.
    fn probe_due(self: &Arc<Self>, seen: &Snapshot<Watched>, asked: BootTime) {
        let mut due: BTreeMap<TenantUid, (Vec<Watched>, Vec<OwnedMutexGuard<Turn>>)> = BTreeMap::new();
        for row in &seen.rows {
            if is_due(&row.proof, seen.now, self.replica, &self.guard)
                && let Ok(turn) = self.turn(row.tenant.uid, &row.proof.key_version).try_lock_owned()
            {
                let (rows, turns) = due.entry(row.tenant.uid).or_default();
                rows.push(row.clone());
                turns.push(turn);
            }
        }
        for (rows, turns) in due.into_values() {
            let (keyring, now) = (self.clone(), seen.now);
            tokio::spawn(async move {
                keyring.probe(Snapshot { now, rows }, asked).await;
                drop(turns);
            });
        }
    }

    /// Drops what was not shown to work in time: it may not be used, so it is not kept.
    fn drop_unproven(&self) {
        let now = self.boot();
        let unproven: HashSet<TenantUid> = self
            .views
            .all()
            .into_iter()
            .filter(|(.., view)| view.in_memory_until > now && view.proof_age(now) > self.guard.bound())
            .map(|(tenant, ..)| tenant)
            .collect();
        for tenant in unproven {
            warn!(%tenant, "a key was not shown to work in time: its DEKs are dropped from memory");
            self.darken(tenant);
        }
    }

    /// Returns the rows to be probed, and when they were asked for.
    async fn watched(&self) -> Option<(Snapshot<Watched>, BootTime)> {
        let sent = self.boot();
        let seen = self.store.watched().await.ok()?;
        let reading = Reading { sent, heard: self.boot(), now: seen.now };
        seen.rows.iter().for_each(|row| self.learn(row.tenant.uid, &row.proof, reading));
        Some((seen, sent))
    }

    /// Probes one version out of turn, but not sooner after a probe than the usual interval. A
    /// caller that arrives meanwhile waits for the same answer. Returns what is known afterwards,
    /// or `None` if that is not enough to decide.
    pub(super) async fn probe_now(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion) -> Option<View> {
        let turn = self.turn(tenant.uid, version).lock_owned().await;
        if self.is_rested(tenant.uid, version) {
            // Runs to its end even if the caller is dropped: others wait for the result.
            let _ = self.spawn_probe(tenant, version, turn).await;
        }
        let view = self.views.get(tenant.uid, version)?;
        let proven = self.is_proven(&view);
        if !proven {
            self.darken(tenant.uid);
        }
        (view.posture != Posture::Active || proven).then_some(view)
    }

    /// Starts the same probe without waiting for it. Does nothing if a probe is under way.
    pub(super) fn probe_soon(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion) {
        let turn = self.turn(tenant.uid, version).try_lock_owned();
        if let (Ok(turn), true) = (turn, self.is_rested(tenant.uid, version)) {
            drop(self.spawn_probe(tenant, version, turn));
        }
    }

    fn spawn_probe(
        self: &Arc<Self>,
        tenant: &Tenant,
        version: &KeyVersion,
        turn: OwnedMutexGuard<Turn>,
    ) -> JoinHandle<()> {
        let (keyring, tenant, version) = (self.clone(), tenant.clone(), version.clone());
        tokio::spawn(async move {
            keyring.probe_in_turn(&tenant, &version).await;
            drop(turn);
        })
    }

    async fn probe_in_turn(&self, tenant: &Tenant, version: &KeyVersion) {
        self.say_needed(tenant.uid, std::slice::from_ref(version)).await;
        if let Some((mut seen, asked)) = self.watched().await {
            seen.rows.retain(|row| row.tenant.uid == tenant.uid && row.proof.key_version == *version);
            if !self.probe(seen, asked).await {
                self.wait_for_another(tenant, version).await;
            }
            // Another replica may have been first, and may know more by now.
            self.read(tenant.uid).await;
        }
        // Whatever the result: the callers that wait for this turn must not each try for as long.
        let ended = self.boot();
        self.views.change(tenant.uid, version, |view| view.probed = Some(ended));
    }

    /// Another replica probes at this moment: waits for its answer, for as long as a probe may
    /// take.
    async fn wait_for_another(&self, tenant: &Tenant, version: &KeyVersion) {
        let unproven = |view: View| view.posture == Posture::Active && !self.is_proven(&view);
        let proven = async {
            while self.views.get(tenant.uid, version).is_some_and(unproven) {
                tokio::time::sleep(GLANCE).await;
                self.read(tenant.uid).await;
            }
        };
        let _ = timeout(self.guard.probe_timeout, proven).await;
    }

    fn is_proven(&self, view: &View) -> bool {
        view.proof_age(self.boot()) <= self.guard.bound()
    }

    /// Returns whether the last probe by this replica is long enough ago.
    fn is_rested(&self, tenant: TenantUid, version: &KeyVersion) -> bool {
        let probed = self.views.get(tenant, version).and_then(|view| view.probed);
        probed.is_none_or(|probed| self.boot().since(probed) >= self.guard.probe_every)
    }

    pub(super) fn turn(&self, tenant: TenantUid, version: &KeyVersion) -> Arc<tokio::sync::Mutex<Turn>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry((tenant, version.clone())).or_default().clone()
    }

    /// Probes rows of one tenant, in the state in which they were read. A row that another replica
    /// updates first is left to it. Returns whether any rows were left to probe.
    async fn probe(&self, seen: Snapshot<Watched>, asked: BootTime) -> bool {
        let Some(tenant) = seen.rows.first().map(|row| row.tenant.clone()) else { return false };
        let mut claims: Vec<(Watched, Proof)> = seen
            .rows
            .into_iter()
            .map(|row| {
                let claim = claimed(&row.proof, seen.now, &self.guard);
                (row, claim)
            })
            .collect();
        let claim = |(row, claim): &(Watched, Proof)| Change::UpdateProof {
            from: row.proof.revision,
            to: claim.clone(),
            incident: None,
        };
        let Some(applied) = self.commit(tenant.uid, claims.iter().map(claim).collect()).await else {
            return false;
        };
        let mut applied = applied.into_iter();
        claims.retain(|_| applied.next() == Some(1));
        if claims.is_empty() {
            return false;
        }
        let sent = self.boot();
        let found = self.try_canaries(&tenant, &claims).await;
        let ended = self.boot();
        for ((row, claim), found) in claims.into_iter().zip(found) {
            self.tally.probed(found.met);
            let version = &row.proof.key_version;
            self.views.change(tenant.uid, version, |view| view.probed = Some(ended));
            if found.met == Met::Works {
                self.note_unwrapped(tenant.uid, version, sent);
            }
            self.conclude(&tenant, claim, &found, (seen.now, asked, ended)).await;
        }
        true
    }

    /// Writes the result of a probe. The probe was sent after the database's clock showed `at`, was
    /// `asked` for and `ended` at these times of this machine's clock. If another replica has
    /// updated the row meanwhile, the result still counts, unless that replica has changed the
    /// posture or has a newer proof.
    async fn conclude(
        &self,
        tenant: &Tenant,
        mut from: Proof,
        found: &Found,
        (at, asked, ended): (Timestamp, BootTime, BootTime),
    ) {
        for _ in 0..TRIES {
            // A success that is too old to be a proof is not written: the other replicas rely on no
            // proof coming this late.
            if found.met == Met::Works && self.boot().since(asked) > self.guard.bound() {
                return;
            }
            let next = after(&from, found.met, self.replica, (at, ended.since(asked)), &self.guard);
            let done = match next.posture == from.posture {
                true => {
                    let prove = Change::UpdateProof { from: from.revision, to: next, incident: None };
                    self.commit(tenant.uid, vec![prove]).await == Some(vec![1])
                }
                false => {
                    if next.posture != Posture::Active {
                        // Before the other replicas are told: what is in memory here is dropped
                        // now.
                        let version = &next.key_version;
                        self.views.change(tenant.uid, version, |view| view.posture = next.posture);
                        self.darken(tenant.uid);
                    }
                    self.turn_to(tenant, &from, next, found).await
                }
            };
            if done {
                return;
            }
            let Ok(seen) = self.store.proofs(tenant.uid).await else { return };
            let row = seen.rows.into_iter().find(|row| row.key_version == from.key_version);
            let Some(row) = row.filter(|row| row.epoch == from.epoch) else { return };
            // The key was shown to work after this probe had begun.
            if found.met != Met::Refused && row.proven_at > at && row.proven_at <= seen.now {
                return;
            }
            from = row;
        }
    }

    /// Returns how long to wait for an answer: not longer than the last proof is valid, so that
    /// callers learn no later than that moment that there is no newer one.
    fn patience(&self, tenant: TenantUid, claims: &[(Watched, Proof)]) -> Duration {
        let now = self.boot();
        let left = claims.iter().filter_map(|(row, _)| {
            let view = self.views.get(tenant, &row.proof.key_version)?;
            let left = self.guard.bound().checked_sub(view.proof_age(now))?;
            (view.posture == Posture::Active).then_some(left)
        });
        left.min().map_or(self.guard.probe_timeout, |left| left.min(self.guard.probe_timeout))
    }

    async fn try_canaries(&self, tenant: &Tenant, claims: &[(Watched, Proof)]) -> Vec<Found> {
        let canaries: Vec<_> = claims
            .iter()
            .map(|(row, _)| (binding_of(tenant.uid, &row.canary), row.canary.wrapped.clone()))
            .collect();
        let kms = self.kms.clone();
        // Runs to its end even after the timeout: it may be the call that logs in for all others.
        let asked = tokio::spawn(async move { kms.unwrap(&canaries).await });
        let answers = match timeout(self.patience(tenant.uid, claims), asked).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(_)) => Vec::new(),
            Err(_) => claims.iter().map(|_| Err(KmsError::local(KmsErrorClass::Timeout))).collect(),
        };
        let mut answers = answers.into_iter();
        let found = |_| match answers.next() {
            Some(Ok(answer)) => Found { met: Met::Works, error: None, kms_request_id: answer.request_id },
            Some(Err(error)) => {
                let met = match error.class.verdict() {
                    // The key no longer opens this canary, so it is not the key that it was.
                    Verdict::Revoked | Verdict::Item => Met::Refused,
                    Verdict::Outage | Verdict::Misconfigured | Verdict::Unasked => Met::OutOfReach,
                };
                Found { met, kms_request_id: error.request_id.clone(), error: Some(error) }
            }
            None => Found {
                met: Met::OutOfReach,
                error: Some(KmsError::local(KmsErrorClass::Internal)),
                kms_request_id: None,
            },
        };
        claims.iter().map(found).collect()
    }

    /// Changes a posture: the row, the incident and the log entry are one commit. Returns whether
    /// this replica made the change.
    async fn turn_to(&self, tenant: &Tenant, from: &Proof, to: Proof, found: &Found) -> bool {
        let incident = Incident {
            id: IncidentId::new(),
            at: to.since,
            key_version: to.key_version.clone(),
            was: from.posture,
            posture: to.posture,
            class: found.error.as_ref().map(|error| error.class.as_str().into()),
            http_status: found.error.as_ref().and_then(|error| error.http_status),
            kms_request_id: found.kms_request_id.clone(),
        };
        let unit = Unit {
            tenant: tenant.uid,
            entry: Some(pack(tenant.uid, &self.entry_of(&incident))),
            fence: vec![Fence {
                key_version: to.key_version.clone(),
                requirement: Requirement::Unchanged { revision: from.revision },
            }],
            changes: vec![Change::UpdateProof { from: from.revision, to, incident: Some(incident.clone()) }],
        };
        let turned = match self.committer.commit(unit).await {
            Ok(durable) => durable.applied.first() == Some(&1),
            Err(_) => false,
        };
        if !turned {
            return false;
        }
        self.tally.turned(incident.posture);
        let (incident_id, key_version) = (incident.id.to_string(), incident.key_version.to_string());
        let (was, posture, class) =
            (incident.was.as_str(), incident.posture.as_str(), incident.class.as_deref());
        let status = incident.http_status;
        let kms_request_id = incident.kms_request_id.as_deref();
        match incident.posture {
            Posture::Active => {
                info!(
                    incident_id,
                    tenant = tenant.name,
                    key_version,
                    was,
                    posture,
                    "a key may be used again"
                );
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
        self.read(tenant.uid).await;
        true
    }

    fn entry_of(&self, incident: &Incident) -> Entry {
        let refused = match incident.posture {
            Posture::Active => None,
            Posture::Degraded => Some(ErrorCode::KmsUnavailable),
            Posture::Revoked => Some(ErrorCode::KmsAccessDenied),
        };
        let item = Item {
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
