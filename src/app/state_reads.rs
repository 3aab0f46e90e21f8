//! Reads of a state: how far a rotation is, the log's checkpoint. Whoever polls one each second would write millions of
//! entries a month that say nothing, so they leave one entry an hour for each person and operation; all else that a caller
//! does leaves its own.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use crate::model::{Caller, Means, Operation, Refusal, TenantUid};

use super::App;

/// How long one entry stands for all reads.
const STANDS_FOR: Duration = Duration::from_secs(3_600);
/// How many persons and operations are remembered; of more, some leave an entry more often.
const REMEMBERED: u64 = 10_000;
/// What such an entry says: without it, a look at a rotation would read as the start of one.
const DETAIL: &str = "read state";

/// Who read which state: a person is a role and a user, as they were recognised. And how often the log had been found shorter
/// than it was: an entry of before may be gone with what the database lost.
type Read = (TenantUid, Means, Arc<str>, Option<String>, Operation, u64);

/// The reads that an entry stands for already. Each replica has its own.
pub(super) struct StateReads(Cache<Read, ()>);

impl Default for StateReads {
    fn default() -> Self {
        Self(Cache::builder().time_to_live(STANDS_FOR).max_capacity(REMEMBERED).build())
    }
}

impl App {
    /// Records that the caller read a state, unless an entry of this hour stands for it.
    ///
    /// # Errors
    /// The entry could not be written: then the state must not be answered.
    pub(super) async fn record_state_read(
        &self,
        caller: &Caller,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let (identity, rewinds) = (&caller.identity, self.committer.rewinds());
        let (role, user) = (identity.role.clone(), identity.user.clone());
        let read = (caller.tenant.uid, identity.means, role, user, operation, rewinds);
        if self.state_reads.0.contains_key(&read) {
            return Ok(());
        }
        self.record_read(caller, operation, DETAIL).await?;
        self.state_reads.0.insert(read, ());
        Ok(())
    }
}
