//! The audit log, as the schema shows it: a connection with cursors.

use async_graphql::{ID, InputObject, Object, SimpleObject};

use crate::app::{AuditPage, AuditQuery, CurrentCheckpoint};
use crate::model::{Entry, ErrorCode, Item, Means, Operation, Outcome, Source};

use super::enums::EnumValue;
use super::scalars::{Bigint, Timestamptz};

/// A filter of the audit log; all conditions must hold.
#[derive(Default, InputObject)]
#[graphql(name = "ByokAuditFilter")]
pub(super) struct AuditFilter {
    /// At or after this moment.
    from: Option<Timestamptz>,
    /// Before this moment.
    until: Option<Timestamptz>,
    /// Only this operation.
    operation: Option<EnumValue<Operation>>,
    /// Only this outcome.
    outcome: Option<EnumValue<Outcome>>,
    /// Only this caller.
    user: Option<String>,
    /// Only calls with an item of this record.
    record_id: Option<ID>,
}

impl AuditFilter {
    /// The query for a page of these entries; `newer` also asks whether there are newer ones before
    /// it.
    pub(super) fn into_query(self, first: Option<i32>, after: Option<String>, newer: bool) -> AuditQuery {
        let mut query = AuditQuery { after, newer, ..AuditQuery::default() };
        // A negative count becomes 0, which the use case refuses.
        query.first = first.map(|first| u32::try_from(first).unwrap_or(0));
        query.filter.from = self.from.map(|Timestamptz(moment)| moment);
        query.filter.until = self.until.map(|Timestamptz(moment)| moment);
        query.filter.operation = self.operation.map(|EnumValue(operation)| operation);
        query.filter.outcome = self.outcome.map(|EnumValue(outcome)| outcome);
        query.filter.user = self.user;
        query.filter.record_id = self.record_id.map(String::from);
        query
    }
}

/// A page of the audit log. It may hold fewer entries than requested, or none, although more
/// follow: the part of the log that is searched for one page is limited.
#[derive(SimpleObject)]
#[graphql(name = "ByokAuditConnection")]
pub(super) struct AuditConnection {
    /// The entries with their cursors, newest first.
    edges: Vec<AuditEdge>,
    /// Where the page begins and ends.
    page_info: PageInfo,
}

/// An entry and its cursor.
#[derive(SimpleObject)]
#[graphql(name = "ByokAuditEdge")]
struct AuditEdge {
    /// The position of the entry, to continue from.
    cursor: String,
    /// The entry.
    node: AuditEntry,
}

/// Where a page begins and ends, as Relay defines it.
#[derive(SimpleObject)]
#[graphql(name = "ByokPageInfo")]
struct PageInfo {
    /// Whether more entries may follow; false means that this is the end.
    has_next_page: bool,
    /// Whether newer entries of this filter come before the page; false also if finding out would
    /// take too long.
    has_previous_page: bool,
    /// The first entry's cursor; null on an empty page.
    start_cursor: Option<String>,
    /// What to pass as `after` for the next page; null on an empty last page.
    end_cursor: Option<String>,
}

impl From<AuditPage> for AuditConnection {
    fn from(page: AuditPage) -> Self {
        let has_next_page = page.next.is_some();
        let start_cursor = page.entries.first().map(|(cursor, _)| cursor.clone());
        let end_cursor = page.next.or_else(|| page.entries.last().map(|(cursor, _)| cursor.clone()));
        let edge = |(cursor, entry)| AuditEdge { cursor, node: AuditEntry(entry) };
        Self {
            edges: page.entries.into_iter().map(edge).collect(),
            page_info: PageInfo {
                has_next_page,
                has_previous_page: page.has_newer,
                start_cursor,
                end_cursor,
            },
        }
    }
}

/// The size and root of the audit log, signed.
#[derive(SimpleObject)]
#[graphql(name = "ByokAuditCheckpoint")]
pub(super) struct AuditCheckpoint {
    /// The signed note (c2sp.org/tlog-checkpoint). Keep it to verify the log later.
    note: String,
    /// The name of the log.
    origin: String,
    /// The number of leaves.
    size: Bigint,
    /// The root hash, in base64.
    root: String,
    /// The public keys that verify it (c2sp.org/signed-note), the current one first.
    keys: Vec<String>,
}

impl From<CurrentCheckpoint> for AuditCheckpoint {
    fn from(checkpoint: CurrentCheckpoint) -> Self {
        let CurrentCheckpoint { note, origin, size, root, keys } = checkpoint;
        Self { note, origin, size: Bigint(size), root, keys }
    }
}

struct AuditEntry(Entry);

/// An entry of the audit log: one call or event.
#[Object(name = "ByokAuditEntry")]
impl AuditEntry {
    /// The id of the entry.
    async fn id(&self) -> ID {
        self.0.id.into()
    }

    /// When the entry became durable.
    async fn at(&self) -> Timestamptz {
        Timestamptz(self.0.at)
    }

    /// The operation of the call, or the event.
    async fn operation(&self) -> EnumValue<Operation> {
        EnumValue(self.0.operation)
    }

    /// The result.
    async fn outcome(&self) -> EnumValue<Outcome> {
        EnumValue(self.0.outcome)
    }

    /// The caller's role.
    async fn role(&self) -> &str {
        &self.0.role
    }

    /// The caller; null if unknown or erased.
    async fn user(&self) -> Option<&str> {
        self.0.user.as_deref()
    }

    /// How the caller was recognised.
    async fn means(&self) -> EnumValue<Means> {
        EnumValue(self.0.means)
    }

    /// The id of the request; null if erased.
    async fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// What an operation on the log itself did; null for any other operation.
    async fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The earlier entry that this refusal replaces: its answer was withheld after the entry was
    /// written.
    async fn voids(&self) -> Option<ID> {
        self.0.extensions.voids().map(ID::from)
    }

    /// The number of items of the call.
    async fn item_count(&self) -> u64 {
        self.0.item_count()
    }

    /// The number of refused items that `items` leaves out, by code.
    async fn unlisted_refusals(&self) -> Vec<RefusalCount> {
        let counts = self.0.extensions.unlisted_refusals().into_iter();
        counts.map(|(code, count)| RefusalCount { code: EnumValue(code), count }).collect()
    }

    /// The items, in the order of the call. Of many refused items, only the first.
    async fn items(&self) -> Vec<AuditItem<'_>> {
        self.0.items.iter().map(AuditItem).collect()
    }
}

/// The number of items refused with one code.
#[derive(SimpleObject)]
#[graphql(name = "ByokRefusalCount")]
struct RefusalCount {
    /// The code.
    code: EnumValue<ErrorCode>,
    /// The number of items.
    count: u64,
}

struct AuditItem<'a>(&'a Item);

/// An item of an entry: what was done with one record.
#[Object(name = "ByokAuditItem")]
impl AuditItem<'_> {
    /// The record; null if the call named none, or if erased.
    async fn record_id(&self) -> Option<ID> {
        self.0.record_id.as_deref().map(ID::from)
    }

    /// The data key, if one was found.
    async fn dek_id(&self) -> Option<ID> {
        self.0.dek_id.map(ID::from)
    }

    /// The version of the customer's key that wrapped the data key.
    async fn key_version(&self) -> Option<String> {
        self.0.key_version.as_ref().map(ToString::to_string)
    }

    /// Where the data key came from.
    async fn source(&self) -> Option<EnumValue<Source>> {
        self.0.source.map(EnumValue)
    }

    /// The KMS's own id of the request that unwrapped the data key.
    async fn kms_request_id(&self) -> Option<&str> {
        self.0.kms_request_id.as_deref()
    }

    /// Why the item was refused; null when it was done.
    async fn error(&self) -> Option<EnumValue<ErrorCode>> {
        self.0.refused.map(EnumValue)
    }
}
