//! The database as its operator sees it: its schema, what the serving role could do that it should
//! not, and the partitions of the next months.

use async_trait::async_trait;
use sqlx::Row;

use crate::config;

use super::super::migration::{Rollout, applied, level};
use super::super::{Database, Exposure, MigrateError, MigrationReport, OpenError, ReadError};
use super::migrate::{APPLIED, HAS_TABLE, MIGRATIONS, PARTITIONS, migrate};
use super::{Postgres, reads};

reads! {
    /// Owners of the schema and of the database can drop what is in them.
    EXPOSURE = "
        WITH audit AS (
            SELECT c.oid, c.relowner, c.relnamespace FROM pg_class c WHERE c.oid = to_regclass('np_byok_audit')
            UNION ALL
            SELECT c.oid, c.relowner, c.relnamespace FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
            WHERE i.inhparent = to_regclass('np_byok_audit')
        )
        SELECT
            COALESCE((SELECT bool_or(pg_has_role(current_user, relowner, 'MEMBER')) FROM audit), false)
                OR COALESCE((SELECT bool_or(pg_has_role(current_user, n.nspowner, 'MEMBER'))
                    FROM pg_namespace n WHERE n.oid IN (SELECT relnamespace FROM audit)), false)
                OR (SELECT pg_has_role(current_user, datdba, 'MEMBER') FROM pg_database
                    WHERE datname = current_database()),
            (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
            COALESCE((SELECT bool_or(has_table_privilege(oid, 'UPDATE, DELETE, TRUNCATE')) FROM audit), false),
            EXISTS (SELECT FROM audit WHERE 2 <> (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = audit.oid
                AND t.tgname IN ('np_byok_audit_row', 'np_byok_audit_whole') AND t.tgenabled IN ('O', 'A'))),
            current_setting('fsync') = 'off' OR current_setting('full_page_writes') = 'off',
            EXISTS (SELECT FROM pg_namespace n
                CROSS JOIN LATERAL aclexplode(COALESCE(n.nspacl, acldefault('n', n.nspowner))) AS granted
                WHERE n.oid IN (SELECT relnamespace FROM audit) AND granted.privilege_type = 'CREATE'
                    AND granted.grantee <> n.nspowner AND granted.grantee NOT IN (SELECT relowner FROM audit)
                    AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = granted.grantee AND r.rolsuper)),
            EXISTS (SELECT FROM pg_proc f WHERE f.pronamespace IN (SELECT relnamespace FROM audit)
                AND f.proname ~ '^np_byok_'
                AND NOT COALESCE('search_path=pg_catalog, pg_temp' = ANY (f.proconfig), false))";
}

impl Postgres {
    async fn migrate_during(&self, rollout: Rollout) -> Result<MigrationReport, MigrateError> {
        self.check_compatible().await?;
        let access = self.access();
        let (owner, serving) = (access.as_owner(), access.serving.get_username());
        migrate(owner, (owner.get_username() != serving).then_some(serving), rollout).await
    }
}

#[async_trait]
impl Database for Postgres {
    async fn migrate(&self) -> Result<MigrationReport, MigrateError> {
        self.migrate_during(Rollout::InProgress).await
    }

    async fn finish_rollout(&self) -> Result<MigrationReport, MigrateError> {
        self.migrate_during(Rollout::Complete).await
    }

    async fn build_indexes(&self) -> Result<u32, ReadError> {
        self.build_missing_indexes().await
    }

    fn level(&self) -> u32 {
        level(MIGRATIONS)
    }

    async fn schema(&self) -> Result<MigrationReport, ReadError> {
        let there = self.first(sqlx::query(HAS_TABLE), |row| row.try_get(0)).await?;
        let rows =
            if there == Some(true) { self.all(sqlx::query(APPLIED), applied).await? } else { Vec::new() };
        Ok(MigrationReport::of(MIGRATIONS, &rows))
    }

    async fn exposure(&self) -> Result<Exposure, ReadError> {
        let exposure = self.first(sqlx::query(EXPOSURE), |row| {
            Ok(Exposure {
                owns_audit: row.try_get(0)?,
                superuser: row.try_get(1)?,
                may_change_entries: row.try_get(2)?,
                unguarded: row.try_get(3)?,
                volatile: row.try_get(4)?,
                schema_is_open: row.try_get(5)?,
                open_search_path: row.try_get(6)?,
            })
        });
        exposure.await?.ok_or(ReadError::Malformed)
    }

    fn switch_urls(&self, settings: &config::Store) -> Result<bool, OpenError> {
        match &settings.engine {
            config::Engine::Postgres(postgres) => self.switch_urls(postgres),
            config::Engine::Sqlite { .. } => Ok(false),
        }
    }

    async fn upkeep(&self) -> Result<(), ReadError> {
        Ok(self.rows(sqlx::query(PARTITIONS)).await.map(drop)?)
    }
}
