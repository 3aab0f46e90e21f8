//! Reads a tenant's entries from the database, one by one in the order of their positions, whatever
//! somebody did to the rows. Missing entries are left out. A row that cannot be read is returned
//! with its leaf. A position that has two rows is returned twice.

use std::collections::VecDeque;
use std::ops::Range;

use super::entry::BundleEntry;
use crate::audit::digest_of;
use crate::merkle::Hash;
use crate::model::TenantUid;
use crate::store::{LogReads, PlacedEntry, ReadError};

/// The bounds of the number of rows that are read at once. At least two, because a position may
/// have two rows.
const LEAST: u32 = 2;
const MOST: u32 = 512;
/// The size of a page in bytes above which the next page is smaller.
const PAGE_BYTES: usize = 4 << 20;
/// The number of leaves that are searched for the next row after one that cannot be read.
const AHEAD: u64 = 1_024;
/// After this many rows without even a leaf, the table is considered damaged, not the rows.
const REFUSED: u32 = 64;

pub(super) enum Row {
    /// An entry.
    Entry(Box<BundleEntry>),
    /// A row that is not a valid entry.
    Unreadable {
        /// The position of the row.
        position: u64,
        /// The leaf of its time and digest.
        leaf: Hash,
    },
}

impl Row {
    /// Returns the position of the row.
    pub(super) fn position(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.position,
            Self::Unreadable { position, .. } => *position,
        }
    }

    /// Returns the leaf of the time and the digest in the row.
    pub(super) fn leaf(&self) -> Hash {
        match self {
            Self::Entry(entry) => entry.leaf(),
            Self::Unreadable { leaf, .. } => *leaf,
        }
    }
}

pub(super) struct Pages<'s> {
    store: &'s dyn LogReads,
    tenant: TenantUid,
    /// The tenants that an entry may belong to if it is not this tenant's; read when first needed.
    others: Option<Vec<TenantUid>>,
    range: Range<u64>,
    limit: u32,
    refused: u32,
    ready: VecDeque<Row>,
}

impl<'s> Pages<'s> {
    pub(super) fn new(store: &'s dyn LogReads, tenant: TenantUid, range: Range<u64>) -> Self {
        Self { store, tenant, others: None, range, limit: 32, refused: 0, ready: VecDeque::new() }
    }

    /// Returns the next row; `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, ReadError> {
        while self.ready.is_empty() && self.range.start < self.range.end {
            match self.store.entries_from(self.tenant, self.range.start, self.limit).await {
                Ok(rows) => self.take(rows).await?,
                Err(ReadError::Malformed) => self.one_by_one().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(self.ready.pop_front())
    }

    async fn take(&mut self, mut rows: Vec<PlacedEntry>) -> Result<(), ReadError> {
        let full = rows.len() as u64 >= u64::from(self.limit);
        let bytes: usize = rows.iter().map(|row| row.row.items.len() + row.row.records.len() + 512).sum();
        self.limit = match (full, bytes > PAGE_BYTES) {
            // The entries are large, and the database returned only this many in the time that it
            // has.
            (false, _) => u32::try_from(rows.len()).map_or(MOST, |rows| rows.clamp(LEAST, MOST)),
            (true, true) => (self.limit / 2).max(LEAST),
            (true, false) => (self.limit * 2).min(MOST),
        };
        let end = match (rows.first(), rows.last()) {
            // Another row of the last position may follow, so that position is read again together
            // with it.
            (Some(first), Some(last)) if full && first.seq != last.seq => last.seq,
            (_, Some(last)) => last.seq.saturating_add(1),
            _ => self.range.end,
        };
        rows.retain(|row| row.seq < end && self.range.contains(&row.seq));
        self.range.start = end.min(self.range.end);
        // If a position has two rows, the intact one comes first.
        let tenant = self.tenant;
        let is_damaged = |row: &PlacedEntry| digest_of(tenant, &row.row) != Some(row.row.digest);
        if rows.windows(2).any(|pair| pair[0].seq == pair[1].seq) {
            rows.sort_by_cached_key(|row| (row.seq, is_damaged(row)));
        }
        for row in rows {
            let row = self.row(&row).await?;
            self.ready.push_back(row);
        }
        Ok(())
    }

    async fn row(&mut self, placed: &PlacedEntry) -> Result<Row, ReadError> {
        let Some(mut entry) = BundleEntry::of(placed.seq, &placed.row) else {
            return Ok(Row::Unreadable { position: placed.seq, leaf: placed.row.leaf() });
        };
        if entry.computed(self.tenant) != entry.digest.0 {
            let others = match self.others.take() {
                Some(others) => others,
                None => self.store.tenants().await?.into_iter().map(|tenant| tenant.uid).collect(),
            };
            let of = |tenant: &&TenantUid| entry.computed(**tenant) == entry.digest.0;
            entry.tenant = others.iter().find(of).map(TenantUid::to_string);
            self.others = Some(others);
        }
        Ok(Row::Entry(Box::new(entry)))
    }

    /// Gets past a row that makes a whole page unreadable.
    async fn one_by_one(&mut self) -> Result<(), ReadError> {
        let position = self.range.start;
        let ahead = position..position.saturating_add(AHEAD).min(self.range.end);
        let next = match self.store.leaves(self.tenant, ahead.clone()).await {
            Ok(leaves) => leaves.first().map_or(ahead.end, |(seq, _)| *seq),
            Err(ReadError::Malformed) => position,
            Err(error) => return Err(error),
        };
        self.range.start = next;
        if next == ahead.end {
            return Ok(());
        }
        self.range.start = next + 1;
        match self.store.entries_from(self.tenant, next, 1).await {
            Ok(rows) => {
                self.refused = 0;
                for row in rows.iter().filter(|row| row.seq == next) {
                    let row = self.row(row).await?;
                    self.ready.push_back(row);
                }
            }
            Err(ReadError::Malformed) => match self.store.leaves(self.tenant, next..next + 1).await {
                Ok(leaves) => {
                    self.refused = 0;
                    let row = |(position, leaf)| Row::Unreadable { position, leaf };
                    self.ready.extend(leaves.into_iter().map(row));
                }
                // There is not even a leaf, so the row is as good as gone.
                Err(ReadError::Malformed) if self.refused < REFUSED => self.refused += 1,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
