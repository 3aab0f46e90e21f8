//! Converts rows, as both databases return them, into our types. A word that byok does not write is
//! an error; nothing is guessed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Error;
use uuid::Uuid;

use crate::merkle::{Frontier, Hash};
use crate::model::{
    Canary, DekId, EntryId, ErrorCode, Incident, IncidentId, Job, JobId, JobState, KeyId, KeyVersion, Means,
    Operation, Outcome, Posture, Progress, Proof, Salted, Tenant, TenantUid, Timestamp, Wrapped,
};

use super::candidates::{Chunk, Group};
use super::derived::{
    EntryValues, FilterLevel, FilterRow, Searchable, Tile, TileId, UnderivedLog, each_record, index_value,
};
use super::search::{Bounds, SearchHit};
use super::{
    CheckpointRow, DekRow, DueAnnouncement, EntryRow, LogHead, PlacedEntry, Publication, StreamName,
    StreamRow, Watched, leaf_of,
};

/// A row's columns by position.
pub(super) trait Columns {
    fn uuid(&self, at: usize) -> Result<Option<Uuid>, Error>;
    fn text(&self, at: usize) -> Result<Option<String>, Error>;
    fn bytes(&self, at: usize) -> Result<Option<Vec<u8>>, Error>;
    fn number(&self, at: usize) -> Result<Option<i64>, Error>;
    fn timestamp(&self, at: usize) -> Result<Option<Timestamp>, Error>;
}

/// Decodes the columns `id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme,
/// created_at, mac, record_mac`.
pub(super) fn dek(row: &impl Columns) -> Result<DekRow, Error> {
    Ok(DekRow {
        id: DekId(required(row.uuid(0)?)?),
        record_id: row.text(1)?.map(Arc::from),
        wrapped: Wrapped {
            bytes: required(row.bytes(2)?)?,
            key_version: key_version(row, 3)?,
            scheme: number(row, 6)?,
        },
        created_at: required(row.timestamp(7)?)?,
        mac: row.bytes(8)?.map(array).transpose()?,
        record_mac: row.bytes(9)?.map(array).transpose()?,
    })
}

/// Decodes the columns `uid, name`.
pub(super) fn tenant(row: &impl Columns) -> Result<Tenant, Error> {
    Ok(Tenant { uid: TenantUid(array(required(row.bytes(0)?)?)?), name: required(row.text(1)?)? })
}

/// Decodes the columns `id, state, key_id, target_key, target_version, total, rewrapped, skipped,
/// failed, kms_calls, stalled, started_at, updated_at, finished_at, cursor`.
pub(super) fn job(row: &impl Columns) -> Result<(Job, Option<DekId>), Error> {
    let job = Job {
        id: JobId(required(row.uuid(0)?)?),
        state: required(JobState::parse(&required(row.text(1)?)?))?,
        target: key_version(row, 2)?,
        progress: Progress {
            total: number(row, 5)?,
            rewrapped: number(row, 6)?,
            skipped: number(row, 7)?,
            failed: number(row, 8)?,
            kms_calls: number(row, 9)?,
        },
        stalled: row.text(10)?.map(|code| required(ErrorCode::parse(&code))).transpose()?,
        started_at: required(row.timestamp(11)?)?,
        updated_at: required(row.timestamp(12)?)?,
        finished_at: row.timestamp(13)?,
    };
    Ok((job, row.uuid(14)?.map(DekId)))
}

/// Decodes the columns `key_id, key_name, key_version, posture, epoch, revision, proven_at, since,
/// steady_since, failures, falls, doubted_by, next_probe_at`.
pub(super) fn proof(row: &impl Columns) -> Result<Proof, Error> {
    Ok(Proof {
        key_version: key_version(row, 0)?,
        posture: posture(row, 3)?,
        epoch: number(row, 4)?,
        revision: number(row, 5)?,
        proven_at: required(row.timestamp(6)?)?,
        since: required(row.timestamp(7)?)?,
        steady_since: row.timestamp(8)?,
        failures: number(row, 9)?,
        falls: number(row, 10)?,
        doubted_by: row.uuid(11)?,
        next_probe_at: required(row.timestamp(12)?)?,
    })
}

/// Decodes the columns of a proof, then `uid, name, canary_dek, canary, canary_scheme,
/// canary_probe, needed_until`.
pub(super) fn watched(row: &impl Columns) -> Result<Watched, Error> {
    let proof = proof(row)?;
    let wrapped = Wrapped {
        bytes: required(row.bytes(16)?)?,
        key_version: proof.key_version.clone(),
        scheme: number(row, 17)?,
    };
    let dek_id = DekId(required(row.uuid(15)?)?);
    Ok(Watched {
        tenant: Tenant { uid: TenantUid(array(required(row.bytes(13)?)?)?), name: required(row.text(14)?)? },
        canary: Canary { dek_id, wrapped, made_for_probes: number::<i64>(row, 18)? != 0 },
        needed_until: required(row.timestamp(19)?)?,
        proof,
    })
}

/// Decodes the columns `id, at, key_id, key_name, key_version, was, posture, class, http_status,
/// kms_request_id`.
pub(super) fn incident(row: &impl Columns) -> Result<Incident, Error> {
    Ok(Incident {
        id: IncidentId(required(row.uuid(0)?)?),
        at: required(row.timestamp(1)?)?,
        key_version: key_version(row, 2)?,
        was: posture(row, 5)?,
        posture: posture(row, 6)?,
        class: row.text(7)?.map(Arc::from),
        http_status: row.number(8)?.map(|status| required(status.try_into().ok())).transpose()?,
        kms_request_id: row.text(9)?.map(Arc::from),
    })
}

/// Decodes the columns of an incident, then `uid, name, attempts, age in microseconds`.
pub(super) fn due_announcements(row: &impl Columns) -> Result<DueAnnouncement, Error> {
    Ok(DueAnnouncement {
        incident: incident(row)?,
        tenant: Tenant { uid: TenantUid(array(required(row.bytes(10)?)?)?), name: required(row.text(11)?)? },
        attempts: number(row, 12)?,
        // The age of an incident from the future is zero: the clock was set back.
        age: Duration::from_micros(u64::try_from(number::<i64>(row, 13)?).unwrap_or(0)),
    })
}

/// Decodes the columns `key_id, key_name, key_version` from `at` on.
fn key_version(row: &impl Columns, at: usize) -> Result<KeyVersion, Error> {
    let id = KeyId(array(required(row.bytes(at)?)?)?);
    Ok(KeyVersion::new(required(row.text(at + 1)?)?, required(row.text(at + 2)?)?).of(id))
}

fn posture(row: &impl Columns, at: usize) -> Result<Posture, Error> {
    required(Posture::parse(&required(row.text(at)?)?))
}

/// Decodes the columns `size, log, first, frontier`.
pub(super) fn head(row: &impl Columns) -> Result<LogHead, Error> {
    let (size, first): (u64, u64) = (number(row, 0)?, number(row, 2)?);
    let frontier = Frontier::from_bytes(required(size.checked_sub(first))?, &required(row.bytes(3)?)?);
    Ok(LogHead { log: number(row, 1)?, first, frontier: required(frontier.ok())? })
}

/// Decodes the columns `seq, at, id, operation, outcome, means, role, user_id, user_salt,
/// user_hmac, request_id, request_salt, request_hmac, item_count, records, items, detail, digest`.
pub(super) fn entry(row: &impl Columns) -> Result<PlacedEntry, Error> {
    let salted = |value: usize, hmac: Vec<u8>| -> Result<Salted, Error> {
        let salt = row.bytes(value + 1)?.map(array).transpose()?;
        Ok(Salted { value: row.text(value)?, salt, hmac: array(hmac)? })
    };
    Ok(PlacedEntry {
        seq: number(row, 0)?,
        row: EntryRow {
            at: required(row.timestamp(1)?)?,
            id: EntryId(required(row.uuid(2)?)?),
            operation: required(Operation::parse(&required(row.text(3)?)?))?,
            outcome: required(Outcome::parse(&required(row.text(4)?)?))?,
            means: required(means(&required(row.text(5)?)?))?,
            role: required(row.text(6)?)?.into(),
            user: row.bytes(9)?.map(|hmac| salted(7, hmac)).transpose()?,
            request: salted(10, required(row.bytes(12)?)?)?,
            item_count: number(row, 13)?,
            records: required(row.text(14)?)?,
            items: required(row.bytes(15)?)?,
            detail: row.text(16)?.map(Arc::from),
            digest: array(required(row.bytes(17)?)?)?,
        },
    })
}

/// Decodes the columns like [`entry`]. An entry that was not checked has neither records nor items.
pub(super) fn search_hit(row: &impl Columns) -> Result<SearchHit, Error> {
    match row.text(14)? {
        Some(_) => Ok(SearchHit::Matching(Box::new(entry(row)?))),
        None => Ok(SearchHit::Unchecked { seq: number(row, 0)? }),
    }
}

/// Decodes the lowest and the highest position, or null if there is none.
pub(super) fn places(row: &impl Columns) -> Result<Option<Range<u64>>, Error> {
    match row.number(0)? {
        None => Ok(None),
        Some(_) => Ok(Some(number(row, 0)?..number::<u64>(row, 1)? + 1)),
    }
}

/// Decodes the columns `seq, at, digest`.
pub(super) fn leaf(row: &impl Columns) -> Result<(u64, Hash), Error> {
    Ok((number(row, 0)?, leaf_of(required(row.timestamp(1)?)?, &array(required(row.bytes(2)?)?)?)))
}

/// Decodes the columns `seq, at, operation, outcome, user_id, records`.
pub(super) fn entry_values(row: &impl Columns, tenant: TenantUid) -> Result<EntryValues, Error> {
    let (operation, outcome) = (required(row.text(2)?)?, required(row.text(3)?)?);
    let mut values = vec![
        index_value(tenant, Searchable::Operation(&operation)),
        index_value(tenant, Searchable::Outcome(&outcome)),
    ];
    if let Some(user) = row.text(4)? {
        values.push(index_value(tenant, Searchable::User(&user)));
    }
    let read =
        each_record(&required(row.text(5)?)?, |id| values.push(index_value(tenant, Searchable::Record(id))));
    required(read)?;
    Ok(EntryValues { seq: number(row, 0)?, at: required(row.timestamp(1)?)?, values })
}

/// Decodes the columns `tenant, log, first, size, next chunk, next tile`.
pub(super) fn underived_log(row: &impl Columns) -> Result<UnderivedLog, Error> {
    Ok(UnderivedLog {
        tenant: TenantUid(array(required(row.bytes(0)?)?)?),
        log: number(row, 1)?,
        first: number(row, 2)?,
        end: number(row, 3)?,
        next_chunk: number(row, 4)?,
        next_tile: number(row, 5)?,
    })
}

/// Decodes the columns `level, tile, hashes`.
pub(super) fn tile(row: &impl Columns) -> Result<Tile, Error> {
    let hashes: [u8; 8192] = array(required(row.bytes(2)?)?)?;
    let hashes = hashes.as_chunks().0.iter().copied().map(Hash).collect();
    Ok(Tile { id: TileId { level: number(row, 0)?, index: number(row, 1)? }, hashes })
}

/// Decodes the columns `tile, root`.
pub(super) fn tile_root(row: &impl Columns) -> Result<(u64, Hash), Error> {
    Ok((number(row, 0)?, Hash(array(required(row.bytes(1)?)?)?)))
}

/// Decodes the columns `chunk, earliest, latest`.
pub(super) fn chunk(row: &impl Columns) -> Result<Chunk, Error> {
    Ok(Chunk { index: number(row, 0)?, earliest: row.timestamp(1)?, latest: row.timestamp(2)? })
}

/// Decodes the columns `chunk, rows`.
pub(super) fn group(row: &impl Columns) -> Result<Group, Error> {
    Ok(Group { index: number(row, 0)?, rows: row.bytes(1)? })
}

/// Decodes the columns `chunk, earliest, latest, filter`. A row without times says nothing about
/// the time of its entries.
pub(super) fn filter_row(row: &impl Columns) -> Result<FilterRow, Error> {
    Ok(FilterRow {
        index: number(row, 0)?,
        earliest: row.timestamp(1)?.unwrap_or(Timestamp(i64::MIN)),
        latest: row.timestamp(2)?.unwrap_or(Timestamp(i64::MAX)),
        filter: row.bytes(3)?,
    })
}

/// Decodes the columns `level, chunk`.
pub(super) fn filter_id(row: &impl Columns) -> Result<(FilterLevel, u64), Error> {
    let level = match number::<i64>(row, 0)? {
        0 => FilterLevel::Chunk,
        _ => FilterLevel::Group,
    };
    Ok((level, number(row, 1)?))
}

/// Decodes the columns `size, indexed, first`: the last one is null without an entry.
pub(super) fn bounds(row: &impl Columns) -> Result<Bounds, Error> {
    let first = row.number(2)?.map(|first| required(u64::try_from(first).ok())).transpose()?;
    Ok(Bounds { end: number(row, 0)?, indexed: number(row, 1)?, first })
}

/// Decodes the highest index of some rows, or null without one, into the end of their indexes.
pub(super) fn end(row: &impl Columns) -> Result<u64, Error> {
    let highest = row.number(0)?.map(|highest| required(u64::try_from(highest).ok())).transpose()?;
    Ok(highest.map_or(0, |highest| highest + 1))
}

/// Decodes the columns `size, note, made_at`.
pub(super) fn checkpoint(row: &impl Columns) -> Result<CheckpointRow, Error> {
    Ok(CheckpointRow {
        size: number(row, 0)?,
        note: required(row.text(1)?)?.into(),
        made_at: required(row.timestamp(2)?)?,
    })
}

/// Decodes the columns `place, log, size, published_at, failures, due`.
pub(super) fn publication(row: &impl Columns) -> Result<Publication, Error> {
    let published = match row.number(1)? {
        None => None,
        Some(_) => Some((number(row, 1)?, number(row, 2)?)),
    };
    Ok(Publication {
        place: required(row.text(0)?)?,
        published,
        published_at: row.timestamp(3)?,
        failures: number(row, 4)?,
        due: number::<i64>(row, 5)? != 0,
    })
}

/// Decodes the columns `name, next, failing_since`.
pub(super) fn stream(row: &impl Columns) -> Result<StreamRow, Error> {
    Ok(StreamRow {
        name: required(StreamName::parse(&required(row.text(0)?)?))?,
        next: number(row, 1)?,
        failing_since: row.timestamp(2)?,
    })
}

/// Reads a number into the type that byok uses for it.
pub(super) fn number<T: TryFrom<i64>>(row: &impl Columns, at: usize) -> Result<T, Error> {
    required(required(row.number(at)?)?.try_into().ok())
}

/// Returns a value that must be present in every row.
pub(super) fn required<T>(value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::Decode("not of the form that byok writes".into()))
}

pub(super) fn array<const N: usize>(bytes: Vec<u8>) -> Result<[u8; N], Error> {
    required(bytes.try_into().ok())
}

fn means(name: &str) -> Option<Means> {
    [Means::Jwt, Means::HasuraSecret, Means::AdminToken, Means::Operator]
        .into_iter()
        .find(|means| means.as_str() == name)
}

/// Converts a number to the databases' type: they have no unsigned 64-bit integers. byok has no
/// larger numbers.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
