//! Checks what is stored: the posture of each key version at its last probe, and whether DEKs in
//! the database can be unwrapped. A key that was deleted and created again under the same name
//! wraps and unwraps without errors, but cannot unwrap what the old key wrapped. The DEKs that are
//! tried are used for nothing else, and the audit log records that they were unwrapped.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::key::Provider;
use super::{Findings, Log, PATIENCE};
use crate::audit::{Committer, Unit, pack};
use crate::crypto::Dek;
use crate::kms::{DekBinding, ItemResult, Kms, KmsError, KmsErrorClass, Purpose};
use crate::model::{
    Clock, DekId, Entry, Item, KeyVersion, Operation, Outcome, Posture, Source, SystemClock, Tenant,
    Timestamp,
};
use crate::store::{Database, DekRow, ReadError};

/// The number of DEKs of each key version that are tried.
const OF_EACH: usize = 3;

pub(super) async fn check(findings: &mut Findings, log: Option<&Log>, key: Option<(Arc<dyn Kms>, Provider)>) {
    let Some(Log { database, tenant }) = log else { return };
    if postures(findings, &**database, tenant).await.is_err() {
        return findings.fail("posture: it cannot be read", "run `byok migrate` first");
    }
    // Without a working key, trying a DEK shows nothing.
    let Some((kms, provider)) = key else { return };
    let Ok(samples) = samples(&**database, tenant).await else {
        return findings.fail("stored DEKs: they cannot be read", "run `byok migrate` first");
    };
    if samples.is_empty() {
        return findings.ok("stored DEKs: there are none yet");
    }
    let binding = |row: &DekRow| DekBinding { tenant: tenant.uid, dek_id: row.id, purpose: Purpose::Record };
    let asked: Vec<_> = samples.iter().map(|row| (binding(row), row.wrapped.clone())).collect();
    let Ok(answers) = tokio::time::timeout(PATIENCE, kms.unwrap(&asked)).await else {
        return findings
            .fail("stored DEKs: no answer", "check the path to the KMS, or raise BYOK_KMS_TIMEOUT_MS");
    };
    let mut tried: BTreeMap<KeyVersion, Tried> = BTreeMap::new();
    for (row, answer) in samples.iter().zip(&answers) {
        tried.entry(row.wrapped.key_version.clone()).or_default().count(answer);
    }
    if !record(database.clone(), tenant, &samples, &answers).await {
        findings.warn(
            "stored DEKs: some were unwrapped, but the audit log could not record it",
            "repair the database; a reconciliation with the KMS's log will name these calls",
        );
    }
    for (key_version, tried) in tried {
        tried.report(findings, &key_version, &provider);
    }
}

/// Reports each key version that may not be used, with the reason and since when.
async fn postures(
    findings: &mut Findings,
    database: &dyn Database,
    tenant: &Tenant,
) -> Result<(), ReadError> {
    let proofs = database.proofs(tenant.uid).await?.rows;
    let incidents = database.incidents(tenant.uid, 100).await?;
    for proof in &proofs {
        let (version, since, proven_at) = (&proof.key_version, proof.since, proof.proven_at);
        let incident = incidents.iter().find(|incident| incident.key_version == *version);
        let class = incident.and_then(|incident| incident.class.as_deref()).unwrap_or("not known");
        match proof.posture {
            Posture::Active => {}
            Posture::Revoked => findings.fail(
                &format!(
                    "posture: {version} is revoked since {since} (the KMS's answer: {class}), last shown to work at \
                     {proven_at}: calls that need it are refused, 403 KMS_ACCESS_DENIED"
                ),
                "see the findings about the key and the stored DEKs below; once probes succeed again, running servers \
                 resume by themselves",
            ),
            Posture::Degraded => findings.fail(
                &format!(
                    "posture: {version} is out of reach since {since} ({class}), last shown to work at {proven_at}: calls \
                     that need it are refused, 503 KMS_UNAVAILABLE"
                ),
                "check the path from the servers to the KMS, its quota and its status; running servers resume by themselves",
            ),
        }
    }
    if !proofs.is_empty() && proofs.iter().all(|proof| proof.posture == Posture::Active) {
        findings.ok("posture: no key version was refused or out of reach when it was last probed");
    }
    Ok(())
}

/// Returns some DEKs of each key version: the oldest, and others spread over the time in which DEKs
/// were made, with more of the latest. Ids sort by time, so each query reads only a few rows.
async fn samples(database: &dyn Database, tenant: &Tenant) -> Result<Vec<DekRow>, ReadError> {
    let now = SystemClock.now();
    // From a second ago to 34 years ago.
    let ago = (0..=30).map(|power| Some(first_id(now.minus(Duration::from_secs(1 << power)))));
    let mut seen = HashSet::new();
    let mut taken: BTreeMap<KeyVersion, usize> = BTreeMap::new();
    let mut samples = Vec::new();
    for after in std::iter::once(None).chain(ago) {
        for row in database.deks_after(tenant.uid, after, 10).await? {
            let taken = taken.entry(row.wrapped.key_version.clone()).or_default();
            if *taken < OF_EACH && seen.insert(row.id) {
                *taken += 1;
                samples.push(row);
            }
        }
    }
    Ok(samples)
}

/// Returns an id that sorts before every id that was made at this time or later (RFC 9562, section
/// 5.7).
fn first_id(at: Timestamp) -> DekId {
    let milliseconds = u64::try_from(at.0 / 1_000).unwrap_or(0);
    DekId(Uuid::from_u128(u128::from(milliseconds) << 80))
}

/// The results for the DEKs of one version.
#[derive(Default)]
struct Tried {
    opened: usize,
    /// The number of wrapped DEKs that this key did not make.
    foreign: usize,
    /// The first failure of another kind.
    failed: Option<KmsError>,
}

impl Tried {
    fn count(&mut self, answer: &ItemResult<Dek>) {
        match answer {
            Ok(_) => self.opened += 1,
            Err(error) if error.class == KmsErrorClass::InvalidWrappedDek => self.foreign += 1,
            Err(error) => self.failed = self.failed.take().or_else(|| Some(error.clone())),
        }
    }

    fn report(self, findings: &mut Findings, version: &KeyVersion, provider: &Provider) {
        let of = |what: &str| format!("stored DEKs: {what} under {version}");
        match self {
            Self { failed: Some(error), .. } => match error.class {
                KmsErrorClass::KeyNotFound
                | KmsErrorClass::KeyVersionUnavailable
                | KmsErrorClass::KeyDisabled => {
                    findings.fail(
                        &of(&format!("the key works, but does not unwrap ({:?}) the DEKs", error.class)),
                        &format!(
                            "enable this version, or lower the key's minimum version; {}",
                            replaced(provider)
                        ),
                    );
                }
                KmsErrorClass::WrappedByAnotherKey => findings.fail(
                    &of("another key than the configured one wrapped the DEKs"),
                    &format!("the variables name another key than before: {}", replaced(provider)),
                ),
                class => findings.fail(
                    &of(&format!("it could not be checked ({class:?}) whether the key unwraps the DEKs")),
                    "run `byok doctor` again; see the KMS's own log",
                ),
            },
            Self { opened: 0, .. } => findings.fail(
                &of("the key is not the one that wrapped the DEKs"),
                &format!(
                    "the key was deleted and created again, or another one has its name: {}",
                    replaced(provider)
                ),
            ),
            Self { foreign: 0, opened, .. } => {
                findings.ok(&of(&format!("{opened} were tried and unwrapped")))
            }
            Self { foreign, opened, .. } => findings.fail(
                &of(&format!("{foreign} of {} were altered, and are not unwrapped,", foreign + opened)),
                "restore these rows of np_byok_wrapped_deks from a backup, and find out who changed them",
            ),
        }
    }
}

/// Returns how to get the previous key back, and what is lost without it.
fn replaced(provider: &Provider) -> &'static str {
    match provider {
        Provider::Vault(_) => {
            "restore the old key from its backup (delete the new one, then `vault write transit/restore/NAME backup=…`), or \
             set the variables to where the old key is. Without it, what these DEKs protect is lost for good; for new \
             records make a key under another name and set BYOK_VAULT_TRANSIT_KEY to it"
        }
        Provider::Aws => {
            "set BYOK_AWS_KEY_ARN, or its alias, back to the old key; while it waits for its deletion, `aws kms \
             cancel-key-deletion`. Once it is deleted, what these DEKs protect is lost for good"
        }
        Provider::Gcp => {
            "set BYOK_GCP_KEY_NAME back to the old key; a version whose destruction is scheduled comes back with `gcloud kms \
             keys versions restore`. Once it is destroyed, what these DEKs protect is lost for good"
        }
        Provider::Azure => {
            "a key that is soft-deleted comes back with `az keyvault key recover`, one that was purged only from a backup, \
             with `az keyvault key restore`, after the new one was purged. Without it, what these DEKs protect is lost for \
             good; for new records make a key under another name and set BYOK_AZURE_KEY_ID to it"
        }
        Provider::Local => {
            "put the old key file back in the place of BYOK_LOCAL_KEY_FILE. Without a copy of it, what these DEKs protect is \
             lost for good"
        }
    }
}

/// Records which DEKs were unwrapped. Returns whether the entry is durable.
async fn record(
    database: Arc<dyn Database>,
    tenant: &Tenant,
    samples: &[DekRow],
    answers: &[ItemResult<Dek>],
) -> bool {
    let item = |(row, answer): (&DekRow, &ItemResult<Dek>)| Item {
        dek_id: Some(row.id),
        key_id: row.wrapped.key_version.key_id.recorded(),
        key_version: Some(row.wrapped.key_version.clone()),
        source: Some(Source::Kms),
        kms_request_id: match answer {
            Ok(answer) => answer.request_id.clone(),
            Err(error) => error.request_id.clone(),
        },
        refused: answer.as_ref().err().map(|error| error.class.code()),
        ..Item::default()
    };
    let items: Vec<Item> = samples.iter().zip(answers).map(item).collect();
    let first_refused = items.iter().find_map(|item| item.refused);
    let outcome = match first_refused {
        None => Outcome::Ok,
        Some(code) if items.iter().all(|item| item.refused.is_some()) => Outcome::Refused(code),
        Some(_) => Outcome::Partial,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entry = Entry::of_operator(clock.now(), Operation::Health, None, None);
    let entry = Entry { role: Arc::from("doctor"), outcome, items, ..entry };
    let unit = Unit::unconditional(tenant.uid, Some(pack(tenant.uid, &entry)), Vec::new());
    Committer::start(database, clock).commit(unit).await.is_ok()
}
