//! A real PgBouncer in transaction mode, with fewer server connections than we open.

use std::sync::Arc;
use std::time::Duration;

use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::{LEVEL, empty, settings};
use crate::support::rows::{dek, entry, fence, prove, tenant, watch};
use byok::model::Posture;
use byok::store::{Batch, Change, CommitError, Commits as _, Database, DekReads, Postgres, Requirement};

#[tokio::test(flavor = "multi_thread")]
async fn behind_pgbouncer_it_migrates_commits_and_reads_under_contention() {
    let database = empty().await;
    let pgbouncer = PgBouncer::before(&database.url).await;
    let store = Arc::new(Postgres::connect_lazy(&settings(&pgbouncer.url, None, true)).unwrap());
    assert_eq!(store.migrate().await.unwrap().ran, LEVEL);
    assert_eq!(store.schema().await.unwrap().usable(), Ok(()));
    let tenant = tenant(&*store).await;
    let writers = [(); 6].map(|()| {
        let store = store.clone();
        tokio::spawn(async move {
            let (mut done, mut base) = (0, 0);
            while done < 15 {
                let record: Arc<str> = uuid::Uuid::new_v4().to_string().into();
                let row = dek(Some(&record));
                let batch = Batch {
                    tenant,
                    base,
                    entries: vec![entry()],
                    changes: vec![Change::InsertDek(row.clone())],
                    gate: None,
                    fence: Vec::new(),
                };
                match store.commit(&batch).await {
                    Ok(_) => {
                        done += 1;
                        assert_eq!(store.deks_of_records(tenant, &[record]).await.unwrap(), [row]);
                    }
                    Err(CommitError::Moved { size }) => base = size,
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
    });
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.log_size(tenant).await.unwrap(), 90);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_pgbouncer_the_fence_is_held_in_both_forms() {
    let database = empty().await;
    let pgbouncer = PgBouncer::before(&database.url).await;
    let store = Arc::new(Postgres::connect_lazy(&settings(&pgbouncer.url, None, true)).unwrap());
    store.migrate().await.unwrap();
    let tenant = tenant(&*store).await;
    let proof = watch(&*store, tenant, "1").await;
    let requirement = Requirement::Proven { epoch: 1, within: Duration::from_secs(600) };
    let batch = move || Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: vec![Change::InsertDek(dek(None))],
        gate: None,
        fence: vec![fence("1", requirement)],
    };
    let writers = [(); 6].map(|()| {
        let (store, proven_at) = (store.clone(), proof.proven_at);
        tokio::spawn(async move {
            for _ in 0..10 {
                let done = store.commit_in_turn(&mut batch()).await.unwrap();
                assert_eq!(done.reading.unwrap().proven_at, [proven_at]);
            }
        })
    });
    for writer in writers {
        writer.await.unwrap();
    }
    let last = Batch { base: 60, ..batch() };
    assert_eq!(store.commit(&last).await.unwrap().reading.unwrap().proven_at, [proof.proven_at]);
    prove(&*store, tenant, &proof, |to| to.posture = Posture::Revoked).await;
    assert_eq!(store.commit(&Batch { base: 61, ..batch() }).await, Err(CommitError::Fenced));
    assert_eq!(store.commit_in_turn(&mut batch()).await, Err(CommitError::Fenced));
    assert_eq!(store.commit(&last).await.unwrap().reading, None, "the commit is there");
    assert_eq!(store.log_size(tenant).await.unwrap(), 61);
}
