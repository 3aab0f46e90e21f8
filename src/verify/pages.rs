//! A tenant's entries from the database, one by one in the order of their places, whatever somebody did to the rows. What
//! is not there is left out; a row that cannot be read is given with its leaf; a place that is taken twice comes twice.

use std::collections::VecDeque;
use std::ops::Range;

use super::entry::BundleEntry;
use crate::audit::digest_of;
use crate::merkle::Hash;
use crate::model::TenantUid;
use crate::store::{LogReads, PlacedEntry, ReadError};

/// How many rows are read at once, between these. Two at least: a place may be taken twice.
const LEAST: u32 = 2;
const MOST: u32 = 512;
/// What a page may come to before the next is smaller.
const PAGE_BYTES: usize = 4 << 20;
/// How many leaves are looked at to find the next row behind one that cannot be read.
const AHEAD: u64 = 1_024;
/// So many rows without even a leaf: it is the table that is damaged, not the rows.
const REFUSED: u32 = 64;

pub(super) enum Row {
    /// An entry.
    Entry(Box<BundleEntry>),
    /// A row that is no entry of ours.
    Unreadable {
        /// Where.
        place: u64,
        /// By its time and digest.
        leaf: Hash,
    },
}

impl Row {
    /// Where it stands.
    pub(super) fn place(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.place,
            Self::Unreadable { place, .. } => *place,
        }
    }

    /// Its leaf, by the time and the digest that it has.
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
    /// Whose entry one may be that is not this tenant's.
    others: Option<Vec<TenantUid>>,
    places: Range<u64>,
    limit: u32,
    refused: u32,
    ready: VecDeque<Row>,
}

impl<'s> Pages<'s> {
    pub(super) fn new(store: &'s dyn LogReads, tenant: TenantUid, places: Range<u64>) -> Self {
        Self { store, tenant, others: None, places, limit: 32, refused: 0, ready: VecDeque::new() }
    }

    /// The next row; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, ReadError> {
        while self.ready.is_empty() && self.places.start < self.places.end {
            match self.store.entries_from(self.tenant, self.places.start, self.limit).await {
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
            // As many as the database gave of large ones, in the time that it has.
            (false, _) => u32::try_from(rows.len()).map_or(MOST, |rows| rows.clamp(LEAST, MOST)),
            (true, true) => (self.limit / 2).max(LEAST),
            (true, false) => (self.limit * 2).min(MOST),
        };
        let end = match (rows.first(), rows.last()) {
            // Another row of the last place may follow: it is read again, with those.
            (Some(first), Some(last)) if full && first.seq != last.seq => last.seq,
            (_, Some(last)) => last.seq.saturating_add(1),
            _ => self.places.end,
        };
        rows.retain(|row| row.seq < end && self.places.contains(&row.seq));
        self.places.start = end.min(self.places.end);
        // Where a place is taken twice, the row that is sound comes first.
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
            return Ok(Row::Unreadable { place: placed.seq, leaf: placed.row.leaf() });
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
        let place = self.places.start;
        let ahead = place..place.saturating_add(AHEAD).min(self.places.end);
        let next = match self.store.leaves(self.tenant, ahead.clone()).await {
            Ok(leaves) => leaves.first().map_or(ahead.end, |(seq, _)| *seq),
            Err(ReadError::Malformed) => place,
            Err(error) => return Err(error),
        };
        self.places.start = next;
        if next == ahead.end {
            return Ok(());
        }
        self.places.start = next + 1;
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
                    let row = |(place, leaf)| Row::Unreadable { place, leaf };
                    self.ready.extend(leaves.into_iter().map(row));
                }
                // Not even a leaf: it is as good as gone.
                Err(ReadError::Malformed) if self.refused < REFUSED => self.refused += 1,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
