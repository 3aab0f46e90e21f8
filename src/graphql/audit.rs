//! The audit log, as the schema shows it: a connection with cursors.

use async_graphql::{ID, InputObject, Object, SimpleObject};

use crate::app::{AuditPage, AuditQuery, CheckpointShown};
use crate::model::{Entry, ErrorCode, Item, Means, Operation, Outcome, Source};

use super::scalars::{Bigint, Timestamptz};
use super::words::Word;

/// Which entries of the audit log; all conditions must hold.
#[derive(Default, InputObject)]
#[graphql(name = "ByokAuditFilter")]
pub(super) struct AuditFilter {
    /// At or after this moment.
    from: Option<Timestamptz>,
    /// Before this moment.
    until: Option<Timestamptz>,
    /// Only this operation.
    operation: Option<Word<Operation>>,
    /// Only this outcome.
    outcome: Option<Word<Outcome>>,
    /// Only this caller.
    user: Option<String>,
    /// Only calls with an item of this record.
    record_id: Option<ID>,
}

impl AuditFilter {
    /// The query for a page of them, and for whether newer ones stand before it.
    pub(super) fn into_query(self, first: Option<i32>, after: Option<String>, newer: bool) -> AuditQuery {
        let mut query = AuditQuery { after, newer, ..AuditQuery::default() };
        // A negative count is as little a count as 0, which the use case refuses.
        query.first = first.map(|first| u32::try_from(first).unwrap_or(0));
        query.filter.from = self.from.map(|Timestamptz(moment)| moment);
        query.filter.until = self.until.map(|Timestamptz(moment)| moment);
        query.filter.operation = self.operation.map(|Word(operation)| operation);
        query.filter.outcome = self.outcome.map(|Word(outcome)| outcome);
        query.filter.user = self.user;
        query.filter.record_id = self.record_id.map(String::from);
        query
    }
}

/// A page of the audit log. It may hold fewer entries than asked for, or none, and have more to follow: how much of the log is
/// searched for one page is bounded.
#[derive(SimpleObject)]
#[graphql(name = "ByokAuditConnection")]
pub(super) struct AuditConnection {
    /// The entries with their cursors, newest first.
    edges: Vec<AuditEdge>,
    /// Where the page begins and ends.
    page_info: PageInfo,
}

/// An entry and its place.
#[derive(SimpleObject)]
#[graphql(name = "ByokAuditEdge")]
struct AuditEdge {
    /// The entry's place, to go on from.
    cursor: String,
    /// The entry.
    node: AuditEntry,
}

/// Where a page begins and ends, as Relay has it.
#[derive(SimpleObject)]
#[graphql(name = "ByokPageInfo")]
struct PageInfo {
    /// Whether more may follow; false means that the end was reached.
    has_next_page: bool,
    /// Whether entries of this filter stand before the page, newer ones; false also where finding out would take too long.
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
    /// The signed note (c2sp.org/tlog-checkpoint): what to keep.
    note: String,
    /// Of which log.
    origin: String,
    /// How many leaves it has.
    size: Bigint,
    /// Its root, in base64.
    root: String,
    /// The public keys that verify it (c2sp.org/signed-note), the current one first.
    keys: Vec<String>,
}

impl From<CheckpointShown> for AuditCheckpoint {
    fn from(shown: CheckpointShown) -> Self {
        let CheckpointShown { note, origin, size, root, keys } = shown;
        Self { note, origin, size: Bigint(size), root, keys }
    }
}

struct AuditEntry(Entry);

/// One call, as the audit log holds it.
#[Object(name = "ByokAuditEntry")]
impl AuditEntry {
    /// Its id.
    async fn id(&self) -> ID {
        self.0.id.into()
    }

    /// When the call was made durable.
    async fn at(&self) -> Timestamptz {
        Timestamptz(self.0.at)
    }

    /// What was asked for.
    async fn operation(&self) -> Word<Operation> {
        Word(self.0.operation)
    }

    /// How it ended.
    async fn outcome(&self) -> Word<Outcome> {
        Word(self.0.outcome)
    }

    /// The caller's role.
    async fn role(&self) -> &str {
        &self.0.role
    }

    /// The caller; null when unknown, or after an erasure.
    async fn user(&self) -> Option<&str> {
        self.0.user.as_deref()
    }

    /// How the caller was recognised.
    async fn means(&self) -> Word<Means> {
        Word(self.0.means)
    }

    /// The id of the request; null after an erasure.
    async fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// What an operation on the log itself did; null for any other.
    async fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The earlier entry whose answer was withheld after it had been written: this refusal stands in its stead.
    async fn voids(&self) -> Option<ID> {
        self.0.extensions.voids().map(ID::from)
    }

    /// How many items the call had.
    async fn item_count(&self) -> u64 {
        self.0.item_count()
    }

    /// How many items were refused that `items` leaves out, by code.
    async fn unlisted_refusals(&self) -> Vec<RefusalCount> {
        let counts = self.0.extensions.unlisted_refusals().into_iter();
        counts.map(|(code, count)| RefusalCount { code: Word(code), count }).collect()
    }

    /// The items, in the order of the call. Of many that were refused, the first.
    async fn items(&self) -> Vec<AuditItem<'_>> {
        self.0.items.iter().map(AuditItem).collect()
    }
}

/// How many items were refused for one reason.
#[derive(SimpleObject)]
#[graphql(name = "ByokRefusalCount")]
struct RefusalCount {
    /// Why.
    code: Word<ErrorCode>,
    /// How many.
    count: u64,
}

struct AuditItem<'a>(&'a Item);

/// What was done with one record.
#[Object(name = "ByokAuditItem")]
impl AuditItem<'_> {
    /// The record; null where the call named none, or after an erasure.
    async fn record_id(&self) -> Option<ID> {
        self.0.record_id.as_deref().map(ID::from)
    }

    /// The data key, where one was found.
    async fn dek_id(&self) -> Option<ID> {
        self.0.dek_id.map(ID::from)
    }

    /// The version of the customer's key that wrapped the data key.
    async fn key_version(&self) -> Option<String> {
        self.0.key_version.as_ref().map(ToString::to_string)
    }

    /// Where the data key came from.
    async fn source(&self) -> Option<Word<Source>> {
        self.0.source.map(Word)
    }

    /// The KMS's own id of the request that unwrapped the data key.
    async fn kms_request_id(&self) -> Option<&str> {
        self.0.kms_request_id.as_deref()
    }

    /// Why the item was refused; null when it was done.
    async fn error(&self) -> Option<Word<ErrorCode>> {
        self.0.refused.map(Word)
    }
}
