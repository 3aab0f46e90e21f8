//! Determines from the rows what the changes of a committed batch did. This answers a retry of a
//! batch whose first outcome was unknown.

use crate::model::TenantUid;

use super::{Batch, Change, CommitError, ReadError, Store};

/// Returns how many rows each change touched, as far as the rows show it now.
pub(super) async fn replay_outcome(
    store: &(impl Store + ?Sized),
    tenant: TenantUid,
    changes: &[Change],
) -> Result<Vec<u64>, CommitError> {
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        let applied_now = match change {
            Change::CreateTenant(wanted) => store
                .tenant(&wanted.name)
                .await
                .map_err(unknown)?
                .is_some_and(|tenant| tenant.uid == wanted.uid),
            Change::InsertDek(row) => !store.deks(tenant, &[row.id]).await.map_err(unknown)?.is_empty(),
            Change::Rewrap { dek_id, to, .. } => {
                store.deks(tenant, &[*dek_id]).await.map_err(unknown)?.iter().any(|row| row.wrapped == *to)
            }
            Change::StartJob(job) => store.job(tenant, job.id).await.map_err(unknown)?.is_some(),
            Change::AdvanceJob { job, holder: _, after } => {
                store.job(tenant, job.id).await.map_err(unknown)? == Some((job.clone(), *after))
            }
            // The job took the command, unless it had ended by then. It may have been given other
            // commands since.
            Change::CommandJob { job, command, .. } => {
                let job = store.job(tenant, *job).await.map_err(unknown)?;
                job.is_some_and(|(job, _)| command.is_taken_by(job.state))
            }
            // These changes can be repeated without effect: renewing one's own lease, reporting a
            // result twice, holding what is held, sealing what is sealed, or erasing what is gone.
            // Committing the change again shows whether it applies.
            Change::LeaseJob { .. }
            | Change::Announce { .. }
            | Change::Hold { .. }
            | Change::Erase { .. }
            | Change::EraseFromDeks { .. }
            | Change::RecordExport { .. }
            | Change::RecordIncident(_)
            | Change::SealDeks(_)
            | Change::Stream { .. } => {
                let again = Batch::of_changes(tenant, vec![change.clone()]);
                store.commit(&again).await?.applied.iter().any(|touched| *touched > 0)
            }
            Change::Watch { proof, .. } => {
                let seen = store.proofs(tenant).await.map_err(unknown)?;
                seen.rows.iter().any(|row| row.key_version == proof.key_version)
            }
            Change::AddCheckpoint { log, size, note } => {
                let there = store.checkpoints_from(tenant, *log, *size, 1).await.map_err(unknown)?;
                there.iter().any(|row| row.size == *size && row.note == *note)
            }
            Change::OpenLog { log, .. } => {
                store.log_head(tenant).await.map_err(unknown)?.is_some_and(|head| head.log >= *log)
            }
            // Repeating these does no harm. No publication is committed together with an entry.
            Change::ExtendWatch { .. } | Change::Retire { .. } | Change::Publish { .. } => true,
            // If one of these is missing after all, the worker derives it again.
            Change::AddTiles { .. } | Change::OpenGroup { .. } | Change::AddFilters { .. } => true,
            Change::UpdateProof { to, .. } => {
                let seen = store.proofs(tenant).await.map_err(unknown)?;
                seen.rows.iter().any(|row| row == to)
            }
        };
        applied.push(u64::from(applied_now));
    }
    Ok(applied)
}

/// The batch was committed. If its effect cannot be read, the outcome counts as unknown.
fn unknown(_: ReadError) -> CommitError {
    CommitError::Unknown
}
