//! Reads of what is announced, published and streamed.

use async_trait::async_trait;

use crate::model::{Incident, TenantUid};

use super::super::row;
use super::super::{DueAnnouncement, OutgoingReads, Publication, ReadError, StreamRow};
use super::{Postgres, reads};

reads! {
    INCIDENTS = "
        SELECT id, at, key_id, key_name, key_version, was, posture, class, http_status::int8, kms_request_id
        FROM np_byok_incidents WHERE tenant = $1 ORDER BY id DESC LIMIT $2";

    DUE_ANNOUNCEMENTS = "
        SELECT i.id, i.at, i.key_id, i.key_name, i.key_version, i.was, i.posture, i.class, i.http_status::int8,
            i.kms_request_id, t.uid, t.name, a.attempts::int8,
            (EXTRACT(EPOCH FROM clock_timestamp() - i.at) * 1000000)::int8
        FROM np_byok_announcements a
        JOIN np_byok_incidents i ON i.tenant = a.tenant AND i.id = a.incident
        JOIN np_byok_tenants t ON t.uid = a.tenant
        WHERE a.outcome IS NULL AND a.next_attempt_at <= clock_timestamp() AND NOT EXISTS (
            SELECT FROM np_byok_announcements b
            JOIN np_byok_incidents j ON j.tenant = b.tenant AND j.id = b.incident
            WHERE b.outcome IS NULL AND b.place < a.place AND b.tenant = a.tenant
                AND j.key_id = i.key_id AND j.key_name = i.key_name AND j.key_version = i.key_version)
        ORDER BY a.place LIMIT $1";

    PUBLICATIONS = "
        SELECT place, log::int8, size, published_at, failures::int8, (next_attempt_at <= now())::int::int8
        FROM np_byok_publications WHERE tenant = $1 ORDER BY place";

    STREAMS = "SELECT name, next, failing_since FROM np_byok_streams WHERE tenant = $1 ORDER BY name";
}

#[async_trait]
impl OutgoingReads for Postgres {
    async fn incidents(&self, tenant: TenantUid, limit: u32) -> Result<Vec<Incident>, ReadError> {
        self.all(sqlx::query(INCIDENTS).bind(tenant.0).bind(i64::from(limit)), row::incident).await
    }

    async fn due_announcements(&self, limit: u32) -> Result<Vec<DueAnnouncement>, ReadError> {
        self.all(sqlx::query(DUE_ANNOUNCEMENTS).bind(i64::from(limit)), row::due_announcements).await
    }

    async fn publications(&self, tenant: TenantUid) -> Result<Vec<Publication>, ReadError> {
        self.all(sqlx::query(PUBLICATIONS).bind(tenant.0), row::publication).await
    }

    async fn streams(&self, tenant: TenantUid) -> Result<Vec<StreamRow>, ReadError> {
        self.all(sqlx::query(STREAMS).bind(tenant.0), row::stream).await
    }
}
