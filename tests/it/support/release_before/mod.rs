//! The statements of the release before, on a connection of their own: what a server of that
//! release does to the database while this one serves beside it. In that release a tenant had one
//! key, and there was no `key_id`.

mod reads;
mod statements;
mod writes;

use byok::model::{TenantUid, Timestamp};
use byok::store::{DekRow, EntryRow, Fence, LogHead};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection as _, PgConnection, Row as _};

type PgQuery = Query<'static, sqlx::Postgres, PgArguments>;

/// A server of the release before, as the database sees it. Panics if a statement fails.
pub(crate) struct ReleaseBefore {
    connection: PgConnection,
}

impl ReleaseBefore {
    /// Connects as the role of this URL.
    pub(crate) async fn connect(url: &str) -> Self {
        Self { connection: PgConnection::connect(url).await.expect("the server answers") }
    }

    /// Appends to the current head of the log. Returns whether the fence was passed.
    pub(crate) async fn append(
        &mut self,
        tenant: TenantUid,
        entries: &[EntryRow],
        deks: &[DekRow],
        fence: &[Fence],
    ) -> bool {
        let head = self.head(tenant).await;
        let query = writes::append(tenant, &head, entries, deks, fence);
        query.fetch_optional(&mut self.connection).await.expect("it is appended").is_some()
    }

    /// The count that a statement returns of the rows that it touched.
    async fn touched(&mut self, query: PgQuery) -> i64 {
        query.fetch_one(&mut self.connection).await.expect("it is written").get(0)
    }

    /// The head of the tenant's log.
    async fn head(&mut self, tenant: TenantUid) -> LogHead {
        let row = sqlx::query(statements::HEAD).bind(tenant.0).fetch_one(&mut self.connection).await;
        reads::head(&row.expect("the tenant has a log"))
    }
}

fn timestamptz(at: Timestamp) -> OffsetDateTime {
    at.to_datetime()
}

fn signed(number: u64) -> i64 {
    number.try_into().expect("it fits")
}
