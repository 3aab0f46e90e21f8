//! Checks what follows the end of a log: entries that were never appended, the restore that ended
//! the log, and what later entries say.

use super::finding::{Against, Finding};
use super::log::Log;
use super::pages::{Pages, Row};
use crate::audit::origin_of;
use crate::merkle::Hash;
use crate::model::Operation;
use crate::store::ReadError;

impl Log<'_> {
    /// Returns the positions after the log's end that have an entry.
    pub(super) async fn beyond(&self) -> Result<Vec<u64>, ReadError> {
        // The caller reads the head after these entries, so entries that are appended meanwhile lie
        // before the new head.
        let end = self.head.end();
        match self.store.entries_from(self.tenant.uid, end, 64).await {
            Ok(rows) => Ok(rows.iter().map(|row| row.seq).collect()),
            Err(ReadError::Malformed) => {
                let leaves = self.store.leaves(self.tenant.uid, end..end.saturating_add(64)).await?;
                Ok(leaves.iter().map(|(seq, _)| *seq).collect())
            }
            Err(error) => Err(error),
        }
    }

    /// Checks the entry after the end of an ended log. If it is the entry of the restore, it states
    /// how that log ended.
    pub(super) async fn restore(&mut self) -> Result<(), ReadError> {
        let end = self.head.end();
        let Some(Row::Entry(entry)) = Pages::new(self.store, self.tenant.uid, end..end + 1).next().await?
        else {
            return Ok(());
        };
        let statement = entry.detail.as_deref().unwrap_or_default().strip_prefix("restore ");
        let mut words = statement.unwrap_or_default().split(' ');
        let (Some(origin), Some(size), Some(root), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Ok(());
        };
        let (Ok(size), Some(expected)) = (size.parse(), Hash::from_base64(root)) else { return Ok(()) };
        let found = self.head.frontier.root();
        if entry.operation == Operation::Restore.as_str()
            && entry.computed(self.tenant.uid) == entry.digest.0
            && origin.ends_with(&origin_of("", &self.tenant.name, self.head.log))
            && (size, expected) != (self.head.frontier.size(), found)
        {
            let (range, against) = (self.head.first..end, Against::Restore(size));
            self.walk.report.find(Finding::Rewritten { range, against, expected, found });
        }
        Ok(())
    }

    /// Takes in what the entries after the log's end say about it: those of later logs, and those
    /// that the server wrote meanwhile.
    pub(super) async fn later(&mut self, end: u64) -> Result<(), ReadError> {
        if !self.walk.is_awaiting() {
            return Ok(());
        }
        let mut next = self.head.end();
        let mut pages = Pages::new(self.store, self.tenant.uid, next..end);
        while let Some(row) = pages.next().await? {
            if row.position() > next {
                self.walk.erasures.hide(next);
            }
            next = row.position() + 1;
            if let Row::Entry(entry) = row
                && entry.computed(self.tenant.uid) == entry.digest.0
            {
                self.walk.note_statements(&entry);
            }
        }
        if next < end {
            self.walk.erasures.hide(next);
        }
        Ok(())
    }
}
