//! Tests of lanes, over a store that is made here.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use super::lane::IDLE;
use super::*;
use crate::model::{Proof, SystemClock};
use crate::store::{Batch, CommitError, Committed, ReadError, Snapshot, TenantRow};

const ONE: TenantUid = TenantUid([1; 16]);
const OTHER: TenantUid = TenantUid([2; 16]);

/// The sizes of logs. The commits of a tenant without a log never end.
#[derive(Default)]
struct Sizes(Mutex<HashMap<TenantUid, u64>>);

#[async_trait]
impl Commits for Sizes {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        if let Some(size) = self.0.lock().unwrap().get_mut(&batch.tenant) {
            if *size != batch.base {
                return Err(CommitError::Moved { size: *size });
            }
            *size += batch.entries.len() as u64;
            return Ok(Committed { applied: Vec::new(), reading: None });
        }
        std::future::pending().await
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        Ok(self.0.lock().unwrap().get(&tenant).copied().unwrap_or(0))
    }

    async fn proofs(&self, _: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        Err(ReadError::Unavailable)
    }

    async fn gate_row(&self, _: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        Err(ReadError::Unavailable)
    }
}

fn start(sizes: &Arc<Sizes>) -> Committer {
    Committer::start(sizes.clone(), Arc::new(SystemClock))
}

fn unit(tenant: TenantUid) -> Unit {
    let entry = crate::model::Entry::of_operator(Timestamp(0), crate::model::Operation::Audit, None, None);
    let entry = Some(crate::audit::pack(tenant, &entry));
    Unit::unconditional(tenant, entry, Vec::new())
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_commits_never_end_delays_no_other() {
    let sizes = Arc::new(Sizes::default());
    sizes.0.lock().unwrap().insert(ONE, 0);
    let committer = start(&sizes);
    let stuck = committer.commit(unit(OTHER));
    tokio::pin!(stuck);
    for _ in 0..100 {
        tokio::select! {
            biased;
            _ = &mut stuck => panic!("it never ends"),
            committed = committer.commit(unit(ONE)) => assert!(committed.is_ok()),
        }
    }
    assert_eq!(sizes.0.lock().unwrap()[&ONE], 100);
}

#[tokio::test(start_paused = true)]
async fn an_ended_lane_is_started_again_and_knows_its_log() {
    let sizes = Arc::new(Sizes(Mutex::new(HashMap::from([(ONE, 0), (OTHER, 0)]))));
    let committer = start(&sizes);
    for tenant in [ONE, ONE, OTHER, OTHER] {
        committer.commit(unit(tenant)).await.unwrap();
    }
    assert_eq!(committer.shared.lanes.len(), 2);
    tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
    assert!(committer.shared.lanes.is_empty(), "nobody has committed for a while");
    // The database went back in time meanwhile, for one of them.
    sizes.0.lock().unwrap().insert(ONE, 1);
    assert_eq!(committer.commit(unit(ONE)).await.err(), Some(CommitFailed::Unavailable));
    assert!(committer.commit(unit(OTHER)).await.is_ok());
    assert_eq!((committer.rewinds(ONE), committer.rewinds(OTHER)), (1, 0));
    assert_eq!(committer.rewound(), [(ONE, 1)]);
    // It continues from there, also in a later lane.
    tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
    assert!(committer.commit(unit(ONE)).await.is_ok());
    assert_eq!(committer.rewinds(ONE), 1);
}
