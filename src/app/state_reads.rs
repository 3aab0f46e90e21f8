//! Records reads of state: the progress of a rotation, or a checkpoint of the log. A client that
//! polls one each second would write millions of entries a month that say nothing. So these reads
//! leave one entry an hour for each person and operation. Everything else that a caller does leaves
//! its own entry.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use crate::model::{Means, Operation, Refusal, TenantUid};
use crate::tenancy::Caller;

use super::App;

/// How long one entry covers further reads.
const STANDS_FOR: Duration = Duration::from_secs(3_600);
/// The number of pairs of person and operation that are remembered. Beyond it, some leave an entry
/// more often.
const REMEMBERED: u64 = 10_000;
/// The detail of such an entry. Without it, a read of a rotation would look like the start of one.
const DETAIL: &str = "read state";

/// The key of a read: the person, who is a role and a user as they were authenticated, the
/// operation, and how often the log had been found shorter than before. An entry from before such a
/// rewind may be among what the database lost.
type Read = (TenantUid, Means, Arc<str>, Option<String>, Operation, u64);

/// The reads that an entry covers already. Each replica has its own.
pub(super) struct StateReads(Cache<Read, ()>);

impl Default for StateReads {
    fn default() -> Self {
        Self(Cache::builder().time_to_live(STANDS_FOR).max_capacity(REMEMBERED).build())
    }
}

impl App {
    /// Records that the caller read a state, unless an entry of the last hour covers the read.
    ///
    /// # Errors
    /// The entry could not be written. Then the state must not be answered.
    pub(super) async fn record_state_read(
        &self,
        caller: &Caller,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let (identity, rewinds) = (&caller.identity, self.committer.rewinds(caller.tenant().uid));
        let (role, user) = (identity.role.clone(), identity.user.clone());
        let read = (caller.tenant().uid, identity.means, role, user, operation, rewinds);
        if self.state_reads.0.contains_key(&read) {
            return Ok(());
        }
        self.record_read(caller, operation, DETAIL).await?;
        self.state_reads.0.insert(read, ());
        Ok(())
    }
}
