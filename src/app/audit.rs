//! Reading the audit log, page by page. Who reads it is recorded too.

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
/// A page holds no more items than this, and no more bytes of their record ids and of what is packed, but for its first entry:
/// an entry may have tens of thousands of items.
const MAX_ITEMS: u32 = 20_000;
const MAX_BYTES: usize = 8 << 20;
/// What an entry takes in an answer, about: itself, each item, and each byte of what is packed, a control character of which
/// has six in JSON.
const ENTRY_BYTES: usize = 1 << 10;
const ITEM_BYTES: usize = 320;
const ESCAPED: usize = 6;
/// How many entries are read from the database at once.
const AT_ONCE: u32 = 32;
/// A page ends, however few entries it holds, once the database has so often found fewer than asked for in what it reads at
/// once: a filter that hardly anything matches is gone on with from the next page.
const SHORT_READS: u32 = 2;

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Which entries.
    pub filter: EntryFilter,
    /// How many; 50 when `None`, at most 500.
    pub first: Option<u32>,
    /// The cursor that the page before ended with.
    pub after: Option<String>,
    /// Whether to find out if newer entries stand before the page.
    pub newer: bool,
}

/// A page, newest entries first.
#[derive(Clone, Debug)]
pub struct AuditPage {
    /// Entries, each with its own cursor.
    pub entries: Vec<(String, Entry)>,
    /// Where the next page begins, where more may follow; that page may hold nothing.
    pub next: Option<String>,
    /// Whether newer entries that match stand before the page, where that was asked and was found out within a read's bounds.
    pub has_newer: bool,
    /// How many bytes it may take in an answer.
    pub bytes: usize,
}

impl App {
    /// Reads a page of the caller's tenant's log, of no more entries than an answer of so many bytes can hold, but for its
    /// first.
    ///
    /// # Errors
    /// Not permitted, a cursor that is not ours, a page size out of bounds, or the database out of reach.
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
            Some(place) => self.has_from(caller, &filter, place).await?,
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

    /// Whether an entry that matches is at this place or above, as far as one bounded read from the newest on shows it.
    async fn has_from(&self, caller: &Caller, filter: &EntryFilter, place: u64) -> Result<bool, Refusal> {
        let read = self.store.entries(caller.tenant.uid, filter, None, 1).await.map_err(read_refusal)?;
        Ok(read.entries.first().is_some_and(|newest| newest.seq >= place))
    }

    /// Up to `first` entries, fewer where they hold very many items, are large, or are far between, and the place that the next page goes
    /// on below.
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

/// How large entries are.
#[derive(Clone, Copy, Default)]
struct Size {
    items: u32,
    /// Bytes of record ids and of what is packed.
    packed: usize,
    /// Bytes of an answer that shows them, at most about.
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

/// Finds a record whose id is too long to be kept by what the log calls it, and by the id itself in entries of releases that
/// kept any.
fn with_recorded_id(mut filter: EntryFilter) -> EntryFilter {
    filter.record_hash = filter.record_id.as_deref().and_then(|record_id| match recorded_id(record_id) {
        Cow::Borrowed(_) => None,
        Cow::Owned(hash) => Some(hash),
    });
    filter
}

/// Below which place to read, and how many.
fn bounds(query: &AuditQuery) -> Result<(Option<u64>, usize), Refusal> {
    let before = query.after.as_deref().map(place_of).transpose()?;
    match query.first.unwrap_or(PAGE) {
        first @ 1..=MAX_PAGE => Ok((before, first as usize)),
        _ => Err(Refusal::because(ErrorCode::RequestMalformed, "A page holds 1 to 500 entries.").at("first")),
    }
}

fn cursor_of(place: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("a1:{place}"))
}

fn place_of(cursor: &str) -> Result<u64, Refusal> {
    let place = || {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let place = std::str::from_utf8(&bytes).ok()?.strip_prefix("a1:")?.parse().ok()?;
        // PostgreSQL's bigint is signed.
        i64::try_from(place).ok().map(|_| place)
    };
    place().ok_or_else(|| ErrorCode::CursorInvalid.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cursor_of_ours_is_taken() {
        assert_eq!(place_of(&cursor_of(17)), Ok(17));
        for bad in ["", "17", "a1:17", "YTE6LTE", &URL_SAFE_NO_PAD.encode("a1:18446744073709551615")] {
            assert_eq!(place_of(bad).unwrap_err().code, ErrorCode::CursorInvalid, "{bad}");
        }
    }
}
