//! Reads the audit log page by page. Each read is recorded in the log too.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::audit::{recorded_id, unpack};
use crate::model::{Caller, Entry, ErrorCode, Operation, Outcome, Refusal};
use crate::store::{EntryFilter, PlacedEntry};

use super::App;
use super::record::read_refusal;

const PAGE: u32 = 50;
const MAX_PAGE: u32 = 500;
/// The most items on a page. It and [`MAX_BYTES`], which bounds the record ids and the packed data,
/// do not apply to the first entry of a page: one entry may have tens of thousands of items.
const MAX_ITEMS: u32 = 20_000;
const MAX_BYTES: usize = 8 << 20;
/// The approximate sizes in an answer: of the entry itself, of each item, and of each byte of
/// packed data. A control character takes six bytes in JSON.
const ENTRY_BYTES: usize = 1 << 10;
const ITEM_BYTES: usize = 320;
const ESCAPED: usize = 6;
/// The number of entries per read from the database.
const AT_ONCE: u32 = 32;
/// The number of short reads after which a page ends, however few entries it holds. A read is short
/// if the database found fewer entries than asked for within one bounded read. So a filter that
/// hardly anything matches continues on the next page.
const SHORT_READS: u32 = 2;

/// The parameters of a read of the audit log.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// The entries to return.
    pub filter: EntryFilter,
    /// The page size: 50 when `None`, at most 500.
    pub first: Option<u32>,
    /// The cursor at which the previous page ended.
    pub after: Option<String>,
    /// Whether to find out if there are newer entries before the page.
    pub newer: bool,
}

/// A page, newest entries first.
#[derive(Clone, Debug)]
pub struct AuditPage {
    /// The entries, each with its own cursor.
    pub entries: Vec<(String, Entry)>,
    /// The cursor of the next page, if there may be more entries. That page may turn out to be
    /// empty.
    pub next: Option<String>,
    /// Whether there are newer entries before the page that match. It is `true` only if the query
    /// asked for it and one bounded read found such an entry.
    pub has_newer: bool,
    /// The largest size that the page may have in an answer, in bytes.
    pub bytes: usize,
}

impl App {
    /// Reads a page of the log of the caller's tenant. The page holds no more entries than fit into
    /// an answer of `largest_answer` bytes, except that its first entry is returned whatever its
    /// size.
    ///
    /// # Errors
    /// The call is not permitted, the cursor was not issued by this API, the page size is out of
    /// bounds, or the database is out of reach.
    pub async fn audit(
        &self,
        caller: &Caller,
        query: &AuditQuery,
        largest_answer: usize,
    ) -> Result<AuditPage, Refusal> {
        let operation = Operation::Audit;
        self.enter(caller, operation).await?;
        let (before, first) = match bounds(query) {
            Ok(bounds) => bounds,
            Err(refusal) => return Err(self.refuse_entered(caller, operation, refusal).await),
        };
        let filter = with_recorded_id(query.filter.clone());
        let has_newer = match before.filter(|_| query.newer) {
            Some(position) => self.has_from(caller, &filter, position).await?,
            None => false,
        };
        let (placed, next) = self.placed(caller, &filter, before, first, largest_answer).await?;
        let bytes = placed.iter().map(|placed| Size::of(placed).shown).sum();
        let entries: Option<Vec<_>> =
            placed.iter().map(|placed| Some((cursor_of(placed.seq), unpack(&placed.row)?))).collect();
        let entries = entries.ok_or_else(|| {
            tracing::error!("an entry of the audit log is not of a form that this server writes");
            Refusal::from(ErrorCode::Internal)
        })?;
        self.record(caller, operation, Outcome::Ok, Vec::new(), Vec::new()).await?;
        Ok(AuditPage { entries, next: next.map(cursor_of), has_newer, bytes })
    }

    /// Returns whether an entry at this position or above matches, as far as one bounded read that
    /// begins at the newest entry shows it.
    async fn has_from(&self, caller: &Caller, filter: &EntryFilter, position: u64) -> Result<bool, Refusal> {
        let read = self.store.entries(caller.tenant.uid, filter, None, 1).await.map_err(read_refusal)?;
        Ok(read.entries.first().is_some_and(|newest| newest.seq >= position))
    }

    /// Reads up to `first` entries, and returns them with the position below which the next page
    /// continues. It returns fewer entries if they hold very many items, are large, or are far
    /// apart.
    async fn placed(
        &self,
        caller: &Caller,
        filter: &EntryFilter,
        mut before: Option<u64>,
        first: usize,
        largest_answer: usize,
    ) -> Result<(Vec<PlacedEntry>, Option<u64>), Refusal> {
        let mut page: Vec<PlacedEntry> = Vec::new();
        let (mut sum, mut short_reads) = (Size::default(), 0);
        loop {
            let read = self.store.entries(caller.tenant.uid, filter, before, AT_ONCE).await;
            let read = read.map_err(read_refusal)?;
            if read.entries.len() < AT_ONCE as usize {
                short_reads += 1;
            }
            for placed in read.entries {
                let more = sum.and(Size::of(&placed));
                if page.len() == first || !page.is_empty() && more.is_too_large(largest_answer) {
                    let last = page.last().map(|last| last.seq);
                    return Ok((page, last));
                }
                sum = more;
                page.push(placed);
            }
            if read.next.is_none() || short_reads == SHORT_READS {
                return Ok((page, read.next));
            }
            before = read.next;
        }
    }
}

/// The size of one or more entries.
#[derive(Clone, Copy, Default)]
struct Size {
    items: u32,
    /// The bytes of the record ids and of the packed data.
    packed: usize,
    /// An approximate upper bound of the bytes in an answer that shows the entries.
    shown: usize,
}

impl Size {
    fn of(placed: &PlacedEntry) -> Self {
        let (items, packed) = (placed.row.item_count, placed.row.records.len() + placed.row.items.len());
        let shown = ENTRY_BYTES + ITEM_BYTES * items as usize + ESCAPED * packed;
        Self { items, packed, shown }
    }

    fn and(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_add(other.items),
            packed: self.packed + other.packed,
            shown: self.shown + other.shown,
        }
    }

    fn is_too_large(self, largest_answer: usize) -> bool {
        self.items > MAX_ITEMS || self.packed > MAX_BYTES || self.shown > largest_answer
    }
}

/// Adds the hash to a filter for a record id that is too long for the log to keep as it is. The
/// filter still has the id itself, because entries of earlier releases may have kept it.
fn with_recorded_id(mut filter: EntryFilter) -> EntryFilter {
    filter.record_hash = filter.record_id.as_deref().and_then(|record_id| match recorded_id(record_id) {
        Cow::Borrowed(_) => None,
        Cow::Owned(hash) => Some(hash),
    });
    filter
}

/// Returns the position below which to read, and the number of entries to read.
fn bounds(query: &AuditQuery) -> Result<(Option<u64>, usize), Refusal> {
    let before = query.after.as_deref().map(position_of).transpose()?;
    match query.first.unwrap_or(PAGE) {
        first @ 1..=MAX_PAGE => Ok((before, first as usize)),
        _ => Err(Refusal::because(ErrorCode::RequestMalformed, "A page holds 1 to 500 entries.").at("first")),
    }
}

fn cursor_of(position: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("a1:{position}"))
}

fn position_of(cursor: &str) -> Result<u64, Refusal> {
    let position = || {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let position = std::str::from_utf8(&bytes).ok()?.strip_prefix("a1:")?.parse().ok()?;
        // PostgreSQL's bigint is signed.
        i64::try_from(position).ok().map(|_| position)
    };
    position().ok_or_else(|| ErrorCode::CursorInvalid.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cursor_of_ours_is_taken() {
        assert_eq!(position_of(&cursor_of(17)), Ok(17));
        for bad in ["", "17", "a1:17", "YTE6LTE", &URL_SAFE_NO_PAD.encode("a1:18446744073709551615")] {
            assert_eq!(position_of(bad).unwrap_err().code, ErrorCode::CursorInvalid, "{bad}");
        }
    }
}
