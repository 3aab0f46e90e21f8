//! Applies a batch within a transaction: its changes in their order, and its entries.

use std::collections::HashSet;

use sqlx::postgres::PgConnection;
use sqlx::{Error, Row};

use crate::merkle::Frontier;
use crate::model::{DekId, TenantUid};

use super::super::{Batch, Change, Committed, LogHead};
use super::append::append;
use super::commit::{AttemptError, Done, PgQuery, head_of};
use super::dek_writes::{insert_deks, rewrap, seal};
use super::{announcements, checkpoints, derived, jobs, proofs, publications, retention, streams, tenants};

/// Applies the changes in their order, and appends the entries as soon as the tenant that they
/// belong to exists. Consecutive changes of one kind are one statement.
pub(super) async fn apply(
    connection: &mut PgConnection,
    batch: &Batch,
    known: Option<&LogHead>,
    persistent: bool,
) -> Result<Done, AttemptError> {
    let (mut reading, mut head) = (None, None);
    let mut applied = Vec::with_capacity(batch.changes.len());
    let mut rest = batch.changes.as_slice();
    let mut opened = None;
    loop {
        match rest {
            [Change::CreateTenant(tenant), after @ ..] => {
                applied.push(touched(connection, tenants::create(tenant), persistent).await?);
                rest = after;
            }
            [Change::OpenLog { from, log }, after @ ..] if !batch.entries.is_empty() => {
                let query = publications::open_log(batch.tenant, from, *log);
                if touched(connection, query, persistent).await? == 0 {
                    return Err(AttemptError::NotAppended);
                }
                applied.push(1);
                opened = Some(LogHead { log: *log, first: from.end(), frontier: Frontier::default() });
                rest = after;
            }
            _ => break,
        }
    }
    let known = opened.as_ref().or(known);
    // New DEKs are inserted with the entries, wherever they are among the changes.
    if !batch.entries.is_empty() {
        let before = head_of(connection, batch, known, persistent).await?;
        let (found, after) = append(connection, batch, rest, &before, persistent).await?;
        (reading, head) = (found, Some(after));
    } else if rest.iter().any(is_new_dek) {
        insert_deks(connection, batch.tenant, rest, persistent).await?;
    }
    while !rest.is_empty() {
        let counts = apply_leading(connection, batch.tenant, rest, persistent).await?;
        rest = &rest[counts.len()..];
        applied.extend(counts);
    }
    Ok(Done { committed: Committed { applied, reading }, head })
}

/// Applies the first change and those after it that are part of the same statement. Returns how
/// many rows each of them touched.
async fn apply_leading(
    connection: &mut PgConnection,
    tenant: TenantUid,
    changes: &[Change],
    persistent: bool,
) -> Result<Vec<u64>, AttemptError> {
    let Some(change) = changes.first() else { return Ok(Vec::new()) };
    let query = match change {
        // It is inserted already.
        Change::InsertDek(_) => return Ok(vec![1; run_of(changes, is_new_dek)]),
        Change::Rewrap { .. } => {
            let run = &changes[..run_of_rewraps(changes)];
            return Ok(rewrap(connection, tenant, run, persistent).await?);
        }
        Change::SealDeks(rows) => seal(tenant, rows),
        Change::RecordIncident(incident) => proofs::incident(tenant, incident),
        Change::CreateTenant(tenant) => tenants::create(tenant),
        Change::StartJob(job) => jobs::start(tenant, job),
        Change::LeaseJob { job, holder, lease } => jobs::lease(tenant, *job, *holder, *lease),
        Change::AdvanceJob { job, holder, after } => jobs::advance(tenant, job, *holder, *after),
        Change::CommandJob { job, command, at } => jobs::command(tenant, *job, *command, *at),
        Change::Watch { proof, canary } => {
            touched(connection, proofs::watch(tenant, proof, canary), persistent).await?;
            proofs::watch_again(tenant, &proof.key_version)
        }
        Change::ExtendWatch { key_version, lasting } => proofs::extend_watch(tenant, key_version, *lasting),
        Change::Retire { all_but } => proofs::retire(tenant, all_but),
        Change::UpdateProof { from, to, incident } => {
            proofs::update_proof(tenant, *from, to, incident.as_ref())
        }
        Change::AddCheckpoint { log, size, note } => checkpoints::add(tenant, *log, *size, note),
        Change::Publish { place, holder, step } => publications::publish(tenant, place, *holder, *step),
        Change::OpenLog { from, log } => publications::open_log(tenant, from, *log),
        Change::Hold { on } => retention::hold(tenant, *on),
        Change::Erase { personal, places, in_index } => {
            retention::block_new_holds(connection).await?;
            let query = retention::erase(tenant, personal, places, *in_index);
            let erased = touched(connection, query, persistent).await?;
            if erased > 0 {
                for query in retention::forget(tenant, places) {
                    touched(connection, query, persistent).await?;
                }
            }
            return Ok(vec![erased]);
        }
        Change::EraseFromDeks { record_id, hmac } => {
            retention::block_new_holds(connection).await?;
            retention::erase_from_deks(tenant, record_id, hmac)
        }
        Change::RecordExport { places } => retention::record_export(tenant, places),
        Change::AddTiles { log, tiles } => derived::add_tiles(tenant, *log, tiles),
        Change::OpenGroup { group } => derived::open_group(tenant, *group),
        Change::AddFilters { group, erasures, level, filters } => {
            derived::add_filters(tenant, *group, *erasures, *level, filters)
        }
        Change::Announce { incident, attempt, holder, step } => {
            announcements::announce(tenant, *incident, *attempt, *holder, *step)
        }
        Change::Stream { name, holder, step } => streams::step(tenant, *name, *holder, *step),
    };
    Ok(vec![touched(connection, query, persistent).await?])
}

fn is_new_dek(change: &Change) -> bool {
    matches!(change, Change::InsertDek(_))
}

/// Returns the count that a statement returned.
async fn touched(connection: &mut PgConnection, query: PgQuery, persistent: bool) -> Result<u64, Error> {
    let count: i64 = query.persistent(persistent).fetch_one(connection).await?.try_get(0)?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Returns how many leading rewraps can be one statement: up to the first DEK that occurs twice,
/// because one statement updates a row once.
fn run_of_rewraps(changes: &[Change]) -> usize {
    let mut seen: HashSet<DekId> = HashSet::new();
    run_of(changes, |change| matches!(change, Change::Rewrap { dek_id, .. } if seen.insert(*dek_id)))
}

fn run_of(changes: &[Change], mut of_kind: impl FnMut(&Change) -> bool) -> usize {
    changes.iter().take_while(|change| of_kind(change)).count()
}
