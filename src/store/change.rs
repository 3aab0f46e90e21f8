//! The changes of the stored data: a closed list, so that a dry run is a list of changes that is
//! reported and not committed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::model::{
    Canary, DekId, Incident, IncidentId, Job, JobCommand, JobId, KeyVersion, Proof, Tenant, Timestamp,
    Wrapped,
};

use super::{
    AnnouncementStep, DekRow, FilterLevel, FilterRow, LogHead, PersonalValue, PublicationStep, StreamName,
    StreamStep, Tile,
};

/// One change of the stored data. Each change is applied whole or not at all, and reports in
/// [`Committed::applied`](super::Committed::applied) how many rows it touched.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Adds a tenant and its empty log. Touches nothing if a tenant of that name exists.
    CreateTenant(Tenant),
    /// Adds a wrapped DEK.
    InsertDek(DekRow),
    /// Replaces the wrapped bytes that were read with others. Touches nothing if the row has
    /// changed since.
    Rewrap {
        /// The DEK whose row is changed.
        dek_id: DekId,
        /// The wrapped DEK that was read.
        from: Wrapped,
        /// The wrapped DEK to store instead.
        to: Wrapped,
        /// The MAC of the new content, if the row was sealed when it was read.
        mac: Option<[u8; 32]>,
    },
    /// Gives rows the MACs that they have here. Leaves out each row that differs by now in anything
    /// else. Reports how many were sealed.
    SealDeks(Vec<DekRow>),
    /// Records an incident that is not a change of posture. Does nothing if that incident is
    /// already recorded.
    RecordIncident(Incident),
    /// Adds a rotation job. Touches nothing while the tenant has a live job.
    StartJob(Job),
    /// Takes or renews the lease of a running job, for `lease` from now by the database's clock.
    /// Touches nothing while another holder has the lease.
    LeaseJob {
        /// The job to lease.
        job: JobId,
        /// The worker that takes the lease.
        holder: Uuid,
        /// The duration of the lease.
        lease: Duration,
    },
    /// Commits a job's position, progress and state. Touches nothing if `holder` has lost the
    /// lease, or if the job was paused or has ended since.
    AdvanceJob {
        /// The job in its current state.
        job: Job,
        /// The worker that holds the lease.
        holder: Uuid,
        /// The last DEK that was processed.
        after: Option<DekId>,
    },
    /// Puts a live job into the state that the command leads to, and takes the job from its current
    /// worker, whose next position is then not stored. Touches nothing if the job has ended, unless
    /// it ended in that state. Changes nothing if the job is already in that state.
    CommandJob {
        /// The job that gets the command.
        job: JobId,
        /// The command for the job.
        command: JobCommand,
        /// The time of the command.
        at: Timestamp,
    },
    /// Adds a key version to the watched ones. Changes nothing if it is already there and is not
    /// retired.
    Watch {
        /// The proof of the key version.
        proof: Proof,
        /// The canary that probes unwrap.
        canary: Canary,
    },
    /// Reports that DEKs of a key version are in memory, for `lasting` from now by the database's
    /// clock. Touches nothing if the key version is retired.
    ExtendWatch {
        /// The key version in use.
        key_version: KeyVersion,
        /// How long the key version is needed.
        lasting: Duration,
    },
    /// Stops watching every version of a key except this one, because nothing is wrapped under the
    /// others any more. Raises their epochs, so that no call that began under them is answered. No
    /// read returns a retired key version until it is watched again.
    Retire {
        /// The key version that stays watched.
        all_but: KeyVersion,
    },
    /// Replaces the proof of revision `from` with its next form, and adds the incident that this
    /// makes. Touches nothing if another writer was first.
    UpdateProof {
        /// The revision of the proof that was read.
        from: u64,
        /// The proof to store instead.
        to: Proof,
        /// The incident, if the posture changes.
        incident: Option<Incident>,
    },
    /// Stores a signed head. Touches nothing if one of that size exists.
    AddCheckpoint {
        /// The number of the tenant's log.
        log: u32,
        /// The number of leaves that the head covers.
        size: u64,
        /// The signed note.
        note: Arc<str>,
    },
    /// Takes the next attempt to publish a checkpoint at a destination, or reports the result of an
    /// attempt. Touches nothing if none is due, or if another holder has it.
    Publish {
        /// The destination's name.
        place: Arc<str>,
        /// The replica that makes the attempt.
        holder: Uuid,
        /// The start of the attempt, or its result.
        step: PublicationStep,
    },
    /// Ends the tenant's log and opens another one before the batch's entries are appended, so that
    /// they are its first. If the current head is no longer `from`, it touches nothing, and a batch
    /// with entries fails like one that comes too late.
    OpenLog {
        /// The head of the log that ends.
        from: LogHead,
        /// The number of the new log.
        log: u32,
    },
    /// Places a hold on all of the tenant's entries, so that they are kept at any age, or lifts the
    /// hold. Touches nothing if that is already the case. Only the owner may do this.
    Hold {
        /// Whether the hold is on.
        on: bool,
    },
    /// Sets a personal value to null in the entries at these positions, and takes away the filters
    /// that were made of them. Erases nothing for a tenant on hold. Only the owner may do this.
    Erase {
        /// The personal value.
        personal: PersonalValue,
        /// The positions of the entries.
        places: Range<u64>,
        /// Whether the value is also removed from the index that the release before this one keeps.
        /// Set with the last positions of a chunk.
        in_index: bool,
    },
    /// Replaces a record's id with its HMAC in the rows of its DEKs. Erases nothing for a tenant on
    /// hold. Only the owner may do this.
    EraseFromDeks {
        /// The record's id.
        record_id: Arc<str>,
        /// The HMAC that replaces the id, under a salt that is stored nowhere.
        hmac: [u8; 32],
    },
    /// Records that entries were exported. Only the owner may do this.
    RecordExport {
        /// The positions of the exported entries.
        places: Range<u64>,
    },
    /// Adds tiles of one log, sorted by [`TileId`](super::TileId). Existing tiles stay. Reports how
    /// many were added.
    AddTiles {
        /// The number of the tenant's log.
        log: u32,
        /// The tiles, all of them full.
        tiles: Vec<Tile>,
    },
    /// Adds a row for a group of chunks, without a filter. Touches nothing if there is one.
    OpenGroup {
        /// The group's index.
        group: u64,
    },
    /// Adds the filters of chunks of one group, or of the group itself, in their order. Existing
    /// ones stay. Adds none if entries of the group were erased or dropped since it was read how
    /// often that had happened. Reports how many were added.
    AddFilters {
        /// The index of the group.
        group: u64,
        /// How often entries of the group had been erased or dropped before the entries were read
        /// of which the filters were made.
        erasures: u64,
        /// What the filters are of.
        level: FilterLevel,
        /// The filters.
        filters: Vec<FilterRow>,
    },
    /// Takes the next attempt to announce an incident, or reports the result of an attempt. Touches
    /// nothing if another holder has it.
    Announce {
        /// The incident to announce.
        incident: IncidentId,
        /// The number of the attempt, counted from 1.
        attempt: u32,
        /// The replica that makes the attempt.
        holder: Uuid,
        /// The start of the attempt, or its result.
        step: AnnouncementStep,
    },
    /// Takes or renews the lease of a stream of the log, or reports how far it has come. Touches
    /// nothing if another holder has it.
    Stream {
        /// The stream's name.
        name: StreamName,
        /// The replica that sends the stream.
        holder: Uuid,
        /// The step to record.
        step: StreamStep,
    },
}
