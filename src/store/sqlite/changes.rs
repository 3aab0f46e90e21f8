//! Applies a batch within a transaction: its changes in their order, and its entries.

use sqlx::{Error, Row, SqliteConnection};

use crate::model::{Tenant, TenantUid};

use super::super::{Batch, Change, Committed};
use super::append::append;
use super::commit::AttemptError;
use super::{
    announcements, checkpoints, dek_writes, derived, jobs, proofs, publications, retention, streams, tenants,
};

/// Applies the changes in their order, and appends the entries as soon as the tenant that they
/// belong to exists.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    batch: &Batch,
) -> Result<Committed, AttemptError> {
    let mut applied = Vec::with_capacity(batch.changes.len());
    let mut rest = batch.changes.as_slice();
    loop {
        match rest {
            [Change::CreateTenant(tenant), after @ ..] => {
                applied.push(create_tenant(connection, tenant).await?);
                rest = after;
            }
            [Change::OpenLog { from, log }, after @ ..] if !batch.entries.is_empty() => {
                if publications::open_log(connection, &batch.tenant, from, *log).await? == 0 {
                    return Err(AttemptError::NotAppended);
                }
                applied.push(1);
                rest = after;
            }
            _ => break,
        }
    }
    let reading = append(connection, batch).await?;
    for change in rest {
        applied.push(apply_change(connection, batch.tenant, change).await?);
    }
    Ok(Committed { applied, reading })
}

/// Applies one change. Returns how many rows it touched.
async fn apply_change(
    connection: &mut SqliteConnection,
    tenant: TenantUid,
    change: &Change,
) -> Result<u64, AttemptError> {
    let query = match change {
        Change::CreateTenant(tenant) => return Ok(create_tenant(connection, tenant).await?),
        Change::InsertDek(row) => {
            let touched = dek_writes::insert_dek(&tenant, row).execute(connection).await?.rows_affected();
            return if touched == 1 { Ok(touched) } else { Err(AttemptError::DekIdTaken) };
        }
        Change::Rewrap { dek_id, from, to, mac } => {
            dek_writes::rewrap(&tenant, *dek_id, from, to, mac.as_ref())
        }
        Change::SealDeks(rows) => {
            let mut sealed = 0;
            for row in rows {
                sealed += dek_writes::seal(&tenant, row).execute(&mut *connection).await?.rows_affected();
            }
            return Ok(sealed);
        }
        Change::RecordIncident(incident) => proofs::incident(&tenant, incident),
        Change::StartJob(job) => {
            jobs::start(&tenant, job).execute(&mut *connection).await?;
            let exists = jobs::exists(&tenant, job.id).fetch_one(connection).await?;
            return Ok(u64::from(exists.try_get::<bool, _>(0)?));
        }
        Change::LeaseJob { job, holder, lease } => jobs::lease(&tenant, *job, *holder, *lease),
        Change::AdvanceJob { job, holder, after } => jobs::advance(&tenant, job, *holder, *after),
        Change::CommandJob { job, command, at } => jobs::command(&tenant, *job, *command, *at),
        Change::Watch { proof, canary } => {
            proofs::watch(&tenant, proof, canary).execute(&mut *connection).await?;
            proofs::watch_again(&tenant, &proof.key_version)
        }
        Change::ExtendWatch { key_version, lasting } => proofs::extend_watch(&tenant, key_version, *lasting),
        Change::Retire { all_but } => proofs::retire(&tenant, all_but),
        Change::UpdateProof { from, to, incident } => {
            let touched =
                proofs::update_proof(&tenant, *from, to).execute(&mut *connection).await?.rows_affected();
            if let (Some(incident), 1) = (incident, touched) {
                proofs::incident(&tenant, incident).execute(connection).await?;
            }
            return Ok(touched);
        }
        Change::AddCheckpoint { log, size, note } => checkpoints::add(&tenant, *log, *size, note),
        Change::Publish { place, holder, step } => publications::publish(&tenant, place, *holder, *step),
        Change::OpenLog { from, log } => {
            return Ok(publications::open_log(connection, &tenant, from, *log).await?);
        }
        Change::Hold { on } => retention::hold(&tenant, *on),
        Change::Erase { personal, places, in_index } => {
            if *in_index {
                retention::erase_from_index(&tenant, personal, places).execute(&mut *connection).await?;
            }
            let query = retention::erase(&tenant, personal, places);
            let erased = query.execute(&mut *connection).await?.rows_affected();
            if erased > 0 {
                for query in retention::forget(&tenant, places) {
                    query.execute(&mut *connection).await?;
                }
            }
            return Ok(erased);
        }
        Change::EraseFromDeks { record_id, hmac } => retention::erase_from_deks(&tenant, record_id, hmac),
        Change::RecordExport { places } => retention::record_export(&tenant, places),
        Change::AddTiles { log, tiles } => {
            return Ok(derived::add_tiles(connection, tenant, *log, tiles).await?);
        }
        Change::OpenGroup { group } => derived::open_group(&tenant, *group),
        Change::AddFilters { group, erasures, level, filters } => {
            return Ok(derived::add_filters(connection, tenant, *group, *erasures, *level, filters).await?);
        }
        Change::Announce { incident, attempt, holder, step } => {
            announcements::announce(&tenant, *incident, *attempt, *holder, *step)
        }
        Change::Stream { name, holder, step } => streams::step(&tenant, *name, *holder, *step),
    };
    Ok(query.execute(connection).await?.rows_affected())
}

async fn create_tenant(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<u64, Error> {
    tenants::create(tenant).execute(&mut *connection).await?;
    tenants::create_head(tenant).execute(&mut *connection).await?;
    tenants::create_key(tenant).execute(&mut *connection).await?;
    let exists = tenants::exists(tenant).fetch_one(connection).await?;
    Ok(u64::from(exists.try_get::<bool, _>(0)?))
}
