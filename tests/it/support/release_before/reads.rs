//! Reads of the release before.

use std::sync::Arc;

use byok::merkle::Frontier;
use byok::model::{
    DekId, ErrorCode, Incident, IncidentId, Job, JobId, JobState, KeyVersion, Posture, Progress, Proof,
    TenantUid, Timestamp, Wrapped,
};
use byok::store::{DekRow, LogHead};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::statements::{DEKS, DEKS_OF_RECORDS, INCIDENTS, JOB, PROOFS};
use super::{PgQuery, ReleaseBefore};

impl ReleaseBefore {
    /// The DEKs with these ids, ordered by id.
    pub(crate) async fn deks(&mut self, tenant: TenantUid, ids: &[DekId]) -> Vec<DekRow> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let mut deks = self.all(sqlx::query(DEKS).bind(tenant.0).bind(ids), dek).await;
        deks.sort_by_key(|dek| dek.id.0);
        deks
    }

    pub(crate) async fn dek_of_record(&mut self, tenant: TenantUid, record: &str) -> Option<DekRow> {
        let query = sqlx::query(DEKS_OF_RECORDS).bind(tenant.0).bind(vec![record.to_owned()]);
        self.all(query, dek).await.pop()
    }

    pub(crate) async fn proofs(&mut self, tenant: TenantUid) -> Vec<Proof> {
        self.all(sqlx::query(PROOFS).bind(tenant.0), proof).await
    }

    pub(crate) async fn incidents(&mut self, tenant: TenantUid) -> Vec<Incident> {
        self.all(sqlx::query(INCIDENTS).bind(tenant.0).bind(9_i64), incident).await
    }

    pub(crate) async fn job(&mut self, tenant: TenantUid, id: JobId) -> Option<(Job, Option<DekId>)> {
        self.all(sqlx::query(JOB).bind(tenant.0).bind(id.0), job).await.pop()
    }

    async fn all<T>(&mut self, query: PgQuery, decode: fn(&PgRow) -> T) -> Vec<T> {
        let rows = query.fetch_all(&mut self.connection).await.expect("it is read");
        rows.iter().map(decode).collect()
    }
}

pub(super) fn head(row: &PgRow) -> LogHead {
    let (size, first) = (number(row, 0), number(row, 2));
    let frontier = Frontier::from_bytes(size - first, row.get(3)).expect("the head's frontier");
    LogHead { log: number(row, 1).try_into().expect("a log's number"), first, frontier }
}

fn dek(row: &PgRow) -> DekRow {
    let hash = |at: usize| row.get::<Option<Vec<u8>>, _>(at).map(|bytes| bytes.try_into().expect("32 bytes"));
    DekRow {
        id: DekId(row.get(0)),
        record_id: text(row, 1),
        wrapped: Wrapped {
            bytes: row.get(2),
            key_version: KeyVersion::new(row.get::<String, _>(3), row.get::<String, _>(4)),
            scheme: number(row, 5).try_into().expect("a scheme"),
        },
        created_at: at(row, 6),
        mac: hash(7),
        record_mac: hash(8),
    }
}

fn proof(row: &PgRow) -> Proof {
    Proof {
        key_version: KeyVersion::new(row.get::<String, _>(0), row.get::<String, _>(1)),
        posture: posture(row, 2),
        epoch: number(row, 3),
        revision: number(row, 4),
        proven_at: at(row, 5),
        since: at(row, 6),
        steady_since: row.get::<Option<OffsetDateTime>, _>(7).map(Timestamp::from),
        failures: number(row, 8).try_into().expect("it fits"),
        falls: number(row, 9).try_into().expect("it fits"),
        doubted_by: row.get(10),
        next_probe_at: at(row, 11),
    }
}

fn incident(row: &PgRow) -> Incident {
    Incident {
        id: IncidentId(row.get(0)),
        at: at(row, 1),
        key_version: KeyVersion::new(row.get::<String, _>(2), row.get::<String, _>(3)),
        was: posture(row, 4),
        posture: posture(row, 5),
        class: text(row, 6),
        http_status: row.get::<Option<i64>, _>(7).map(|status| status.try_into().expect("a status")),
        kms_request_id: text(row, 8),
    }
}

fn job(row: &PgRow) -> (Job, Option<DekId>) {
    let job = Job {
        id: JobId(row.get(0)),
        state: JobState::parse(row.get(1)).expect("a state"),
        target: KeyVersion::new(row.get::<String, _>(2), row.get::<String, _>(3)),
        progress: Progress {
            total: number(row, 4),
            rewrapped: number(row, 5),
            skipped: number(row, 6),
            failed: number(row, 7),
            kms_calls: number(row, 8),
        },
        stalled: row.get::<Option<&str>, _>(9).map(|code| ErrorCode::parse(code).expect("a code")),
        started_at: at(row, 10),
        updated_at: at(row, 11),
        finished_at: row.get::<Option<OffsetDateTime>, _>(12).map(Timestamp::from),
    };
    (job, row.get::<Option<Uuid>, _>(13).map(DekId))
}

fn posture(row: &PgRow, column: usize) -> Posture {
    Posture::parse(row.get(column)).expect("a posture")
}

fn number(row: &PgRow, column: usize) -> u64 {
    row.get::<i64, _>(column).try_into().expect("it is not negative")
}

fn text(row: &PgRow, column: usize) -> Option<Arc<str>> {
    row.get::<Option<String>, _>(column).map(Arc::from)
}

fn at(row: &PgRow, column: usize) -> Timestamp {
    Timestamp::from(row.get::<OffsetDateTime, _>(column))
}
