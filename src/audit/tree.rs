//! The tree of a tenant's log, read: roots, frontiers and proofs of any part of it. Reads; decides nothing.

use std::ops::Range;

use crate::merkle::{Frontier, Hash, Node, consistency_ranges, cover, fold, inclusion_ranges, root_of};
use crate::model::TenantUid;
use crate::store::{LogHead, ReadError, Store};

/// Why a part of a tree cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// The database.
    Store(ReadError),
    /// The leaf at this place of the log is not there.
    Missing {
        /// The entry's place.
        seq: u64,
    },
}

impl From<ReadError> for TreeError {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}

/// One log's tree. Leaves are counted from 0 within the log; the entry of leaf n stands at `head.first + n`.
pub struct Tree<'s> {
    store: &'s dyn Store,
    tenant: TenantUid,
    /// Where the log ended when it was opened.
    pub head: LogHead,
}

impl<'s> Tree<'s> {
    /// The tree of the tenant's current log; `None` for a tenant without one.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(store: &'s dyn Store, tenant: TenantUid) -> Result<Option<Self>, ReadError> {
        Ok(store.log_head(tenant).await?.map(|head| Self { store, tenant, head }))
    }

    /// The roots of the [`cover`] of these leaves.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn cover(&self, leaves: Range<u64>) -> Result<Vec<Hash>, TreeError> {
        let mut roots = Vec::new();
        for node in cover(leaves) {
            roots.push(self.node(node).await?);
        }
        Ok(roots)
    }

    /// The tree as it was at that size.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn frontier_at(&self, size: u64) -> Result<Frontier, TreeError> {
        let roots = self.cover(0..size).await?;
        Frontier::new(size, roots).map_err(|_| TreeError::Store(ReadError::Rejected))
    }

    /// The proof that leaf `index` is in the tree of this size.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, TreeError> {
        self.roots(inclusion_ranges(index, size)).await
    }

    /// The proof that the tree of size `from` is the beginning of that of size `to`.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>, TreeError> {
        self.roots(consistency_ranges(from, to)).await
    }

    async fn roots(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Hash>, TreeError> {
        let mut roots = Vec::with_capacity(ranges.len());
        for range in ranges {
            roots.push(fold(&self.cover(range).await?));
        }
        Ok(roots)
    }

    async fn node(&self, node: Node) -> Result<Hash, TreeError> {
        let leaves = node.leaves();
        let places = self.head.first + leaves.start..self.head.first + leaves.end;
        let found = self.store.leaves(self.tenant, places.clone()).await?;
        for (place, (seq, _)) in places.clone().zip(&found) {
            if place != *seq {
                return Err(TreeError::Missing { seq: place });
            }
        }
        match places.start + found.len() as u64 {
            end if end == places.end => Ok(root_of(found.into_iter().map(|(_, leaf)| leaf))),
            seq => Err(TreeError::Missing { seq }),
        }
    }
}
