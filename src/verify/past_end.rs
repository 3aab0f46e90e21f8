//! What stands behind the end of a log: entries that nobody appended, the restore that ended it, and what later entries say.

use super::finding::{Against, Finding};
use super::log::Log;
use super::pages::{Pages, Row};
use crate::audit::origin_of;
use crate::merkle::Hash;
use crate::model::Operation;
use crate::store::ReadError;

impl Log<'_> {
    /// Places behind the log's end where an entry stands.
    pub(super) async fn beyond(&self) -> Result<Vec<u64>, ReadError> {
        // Entries first and then the head: those that are appended meanwhile are before it.
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

    /// The entry behind the end of a log that has ended: where it is that of the restore, it says how that log ended.
    pub(super) async fn restore(&mut self) -> Result<(), ReadError> {
        let end = self.head.end();
        let Some(Row::Entry(entry)) = Pages::new(self.store, self.tenant.uid, end..end + 1).next().await?
        else {
            return Ok(());
        };
        let said = entry.detail.as_deref().unwrap_or_default().strip_prefix("restore ");
        let mut words = said.unwrap_or_default().split(' ');
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
            let (places, against) = (self.head.first..end, Against::Restore(size));
            self.walk.report.find(Finding::Rewritten { places, against, expected, found });
        }
        Ok(())
    }

    /// What entries behind the log's end say of it: those of the logs after it, and what the server wrote meanwhile.
    pub(super) async fn later(&mut self, end: u64) -> Result<(), ReadError> {
        if !self.walk.is_awaiting() {
            return Ok(());
        }
        let mut next = self.head.end();
        let mut pages = Pages::new(self.store, self.tenant.uid, next..end);
        while let Some(row) = pages.next().await? {
            if row.place() > next {
                self.walk.erasures.hide(next);
            }
            next = row.place() + 1;
            if let Row::Entry(entry) = row
                && entry.computed(self.tenant.uid) == entry.digest.0
            {
                self.walk.speaks(&entry);
            }
        }
        if next < end {
            self.walk.erasures.hide(next);
        }
        Ok(())
    }
}
