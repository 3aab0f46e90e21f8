//! The keys of a tenant, opened as its rows name them.

use std::sync::Arc;

use crate::model::{KeyId, Tenant};
use crate::store::{KeyRow, KeyState};
use crate::tenancy::{Key, KeySet, NotServed};

/// The function that builds the client of the key that a row names; `None` if nothing is configured
/// for it.
pub type OpenKey = dyn Fn(&Tenant, &KeyRow) -> Option<Key> + Send + Sync;

/// The keys of a tenant, with the revisions of the rows that they were opened by.
#[derive(Clone)]
pub(super) struct OpenedKeys {
    pub(super) keys: KeySet,
    revisions: Arc<[(KeyId, u64)]>,
}

impl OpenedKeys {
    /// Opens the keys of these rows. Keeps the clients of rows that have not changed since
    /// `before`: they are logged in, and have counted their calls of this minute.
    ///
    /// # Errors
    /// [`NotServed::NoKey`].
    pub(super) fn open(
        tenant: &Tenant,
        rows: &[KeyRow],
        open_key: &OpenKey,
        before: Option<&Self>,
    ) -> Result<Self, NotServed> {
        let (mut current, mut others) = (None, Vec::new());
        for row in rows {
            let kept = || before.and_then(|before| before.key_of(row));
            let opened = match row.state {
                KeyState::Draft => None,
                KeyState::Current | KeyState::Retired => kept().or_else(|| open_key(tenant, row)),
            };
            match (opened, row.state) {
                (Some(_), KeyState::Current) if current.is_some() => return Err(NotServed::NoKey),
                (Some(opened), KeyState::Current) => current = Some(opened),
                (opened, _) => others.extend(opened),
            }
        }
        let revisions = rows.iter().map(|row| (row.id, row.revision)).collect();
        Ok(Self { keys: KeySet::new(current.ok_or(NotServed::NoKey)?, others), revisions })
    }

    /// Returns the key of this row, if the row has not changed since the key was opened.
    fn key_of(&self, row: &KeyRow) -> Option<Key> {
        self.keys.key(row.id).filter(|_| self.revisions.contains(&(row.id, row.revision))).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::model::TenantUid;

    use super::*;

    fn row(id: u8, state: KeyState, revision: u64) -> KeyRow {
        KeyRow {
            id: KeyId([id; 16]),
            label: format!("{id}"),
            state,
            provider: None,
            region: None,
            identifier: None,
            credential_ref: None,
            revision,
        }
    }

    /// Opens these rows; returns also how many clients were built.
    fn open(rows: &[KeyRow], before: Option<&OpenedKeys>) -> (Result<OpenedKeys, NotServed>, usize) {
        let tenant = Tenant { uid: TenantUid([1; 16]), name: "acme".to_owned() };
        let built = Arc::new(AtomicUsize::new(0));
        let count = built.clone();
        let open_key = move |_: &Tenant, row: &KeyRow| {
            count.fetch_add(1, Ordering::SeqCst);
            Some(Key::uncalled(row.id))
        };
        let opened = OpenedKeys::open(&tenant, rows, &open_key, before);
        (opened, built.load(Ordering::SeqCst))
    }

    #[test]
    fn clients_are_kept_while_their_rows_have_not_changed() {
        let rows = [row(1, KeyState::Current, 1), row(2, KeyState::Retired, 1), row(3, KeyState::Draft, 1)];
        let (first, built) = open(&rows, None);
        let first = first.unwrap();
        assert_eq!((first.keys.all().count(), built), (2, 2), "a draft is not opened");
        assert_eq!(open(&rows, Some(&first)).1, 0);
        let changed = [row(1, KeyState::Current, 2), row(2, KeyState::Retired, 1)];
        let (second, built) = open(&changed, Some(&first));
        let second = second.unwrap();
        assert_eq!(built, 1);
        let kms = |opened: &OpenedKeys, id| opened.keys.key(KeyId([id; 16])).unwrap().kms.clone();
        assert!(Arc::ptr_eq(&kms(&first, 2), &kms(&second, 2)));
        assert!(!Arc::ptr_eq(&kms(&first, 1), &kms(&second, 1)));
    }

    #[test]
    fn a_tenant_needs_exactly_one_key_that_wraps() {
        let none = [row(1, KeyState::Retired, 1), row(2, KeyState::Draft, 1)];
        let two = [row(1, KeyState::Current, 1), row(2, KeyState::Current, 1)];
        for rows in [&none, &two] {
            assert_eq!(open(rows, None).0.err(), Some(NotServed::NoKey));
        }
    }
}
