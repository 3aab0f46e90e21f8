//! The statements by which the release before wrote and read, on a connection of its own: what a server of that release does to
//! the database while this one serves beside it. It knew no `key_id`, and a tenant had one key.

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

/// A server of the release before, as far as the database sees it. It panics when a statement is refused.
pub(crate) struct ReleaseBefore {
    connection: PgConnection,
}

impl ReleaseBefore {
    /// As the role of this URL.
    pub(crate) async fn connect(url: &str) -> Self {
        Self { connection: PgConnection::connect(url).await.expect("the server answers") }
    }

    /// Appends to the log as it stands now; whether the fence let it.
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

    /// How many rows a statement touched that counts them.
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
