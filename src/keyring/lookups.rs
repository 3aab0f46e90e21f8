//! Reads of DEKs by record. While reads are under way, the records that many calls look for are
//! collected and read in one statement. A thousand first calls at once then cause a few reads, not
//! a thousand that wait for each other's connections.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::TenantUid;
use crate::store::{DekRow, ReadError};

/// How many statements run at once.
const MAX_READS: usize = 4;
/// How many records one statement looks for, unless a single call asks for more.
const MAX_RECORDS: usize = 1_000;

type Rows = Result<Vec<DekRow>, ReadError>;

/// The records that one call looks for.
struct Lookup {
    tenant: TenantUid,
    records: Vec<Arc<str>>,
    answer: oneshot::Sender<Rows>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Lookup>,
    readers: usize,
}

/// The lookups of all calls.
#[derive(Clone, Default)]
pub(super) struct Lookups(Arc<Mutex<State>>);

impl Lookups {
    /// Returns the newest row of each record that has one. The read begins after this call was
    /// made, whichever task does it.
    pub(super) async fn newest<F>(
        &self,
        tenant: TenantUid,
        records: Vec<Arc<str>>,
        read: impl Fn(TenantUid, Vec<Arc<str>>) -> F + Send + 'static,
    ) -> Rows
    where
        F: Future<Output = Rows> + Send,
    {
        let (answer, rows) = oneshot::channel();
        let reader = {
            let mut state = self.state();
            state.waiting.push_back(Lookup { tenant, records, answer });
            let is_free = state.readers < MAX_READS;
            state.readers += usize::from(is_free);
            is_free.then(|| Reader { lookups: self.clone(), has_stopped: false })
        };
        if let Some(mut reader) = reader {
            // This runs in a task of its own: the caller that started it may hang up, and others
            // wait for it.
            tokio::spawn(async move {
                while let Some((tenant, group)) = reader.next() {
                    let mut records: Vec<_> =
                        group.iter().flat_map(|lookup| &lookup.records).cloned().collect();
                    records.sort_unstable();
                    records.dedup();
                    match read(tenant, records).await {
                        // A row that cannot be read must not fail the lookups of the other rows.
                        Err(ReadError::Rejected | ReadError::Malformed) if group.len() > 1 => {
                            for alone in group {
                                distribute(read(tenant, alone.records.clone()).await, vec![alone]);
                            }
                        }
                        rows => distribute(rows, group),
                    }
                }
            });
        }
        rows.await.unwrap_or(Err(ReadError::Unavailable))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the tasks that read.
struct Reader {
    lookups: Lookups,
    has_stopped: bool,
}

impl Reader {
    /// Returns the next lookups of one tenant, in order, or stops the reader if there are none.
    /// Both happen under one lock, so that a lookup that arrives right afterwards is not left to a
    /// reader that has stopped.
    fn next(&mut self) -> Option<(TenantUid, Vec<Lookup>)> {
        let mut state = self.lookups.state();
        let Some(first) = state.waiting.pop_front() else {
            state.readers -= 1;
            self.has_stopped = true;
            return None;
        };
        let (tenant, mut count) = (first.tenant, first.records.len());
        let mut group = vec![first];
        while let Some(next) = state.waiting.pop_front_if(|next| {
            count += next.records.len();
            next.tenant == tenant && count <= MAX_RECORDS
        }) {
            group.push(next);
        }
        Some((tenant, group))
    }
}

impl Drop for Reader {
    /// After a panic: if no other task reads, the callers that wait are released.
    fn drop(&mut self) {
        if !self.has_stopped {
            let mut state = self.lookups.state();
            state.readers -= 1;
            if state.readers == 0 {
                state.waiting.clear();
            }
        }
    }
}

/// Sends each lookup the rows of its records.
fn distribute(rows: Rows, group: Vec<Lookup>) {
    let rows = rows.map(|rows| {
        let named = rows.into_iter().filter_map(|row| Some((row.record_id.clone()?, row)));
        named.collect::<HashMap<Arc<str>, DekRow>>()
    });
    for Lookup { records, answer, .. } in group {
        let own = rows.as_ref().map(|rows| records.iter().filter_map(|record| rows.get(record).cloned()));
        let _ = answer.send(own.map(Iterator::collect).map_err(|error| *error));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{FutureExt as _, join_all};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::model::{DekId, KeyVersion, Timestamp, Wrapped};

    fn row(record: &Arc<str>) -> DekRow {
        let wrapped = Wrapped { bytes: Vec::new(), key_version: KeyVersion::new("k", "1"), scheme: 1 };
        let (record_id, created_at) = (Some(record.clone()), Timestamp(0));
        DekRow { id: DekId::new(), record_id, wrapped, created_at, mac: None, record_mac: None }
    }

    #[tokio::test]
    async fn concurrent_lookups_are_read_at_once_and_each_gets_its_own() {
        let (lookups, reads) = (Lookups::default(), Arc::new(Mutex::new(Vec::new())));
        let gate = Arc::new(Semaphore::new(0));
        let look = |record: Arc<str>| {
            let (reads, gate) = (reads.clone(), gate.clone());
            lookups.newest(TenantUid([1; 16]), vec![record], move |_, records| {
                let (reads, gate) = (reads.clone(), gate.clone());
                async move {
                    reads.lock().unwrap().push(records.len());
                    let _open = gate.acquire().await.unwrap();
                    Ok(records.iter().filter(|record| !record.starts_with("no")).map(row).collect())
                }
            })
        };
        let name = |n: usize| Arc::from(if n.is_multiple_of(2) { format!("{n}") } else { format!("no {n}") });
        let opened = async {
            // Waits until the first lookup has begun to read, and all others wait or are part of
            // that read.
            while reads.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            gate.add_permits(1_000);
        };
        let (found, ()) = tokio::join!(join_all((0..100).map(|n| look(name(n)))), opened);
        for (n, rows) in found.into_iter().enumerate() {
            let records: Vec<_> = rows.unwrap().into_iter().filter_map(|row| row.record_id).collect();
            assert_eq!(records, Vec::from_iter(n.is_multiple_of(2).then(|| name(n))), "{n}");
        }
        let reads = reads.lock().unwrap();
        assert_eq!(reads.iter().sum::<usize>(), 100);
        assert!(reads.len() <= MAX_READS + 1, "{reads:?}");
    }

    #[tokio::test]
    async fn a_failed_read_fails_waiters_and_a_panic_its_reader() {
        let lookups = Lookups::default();
        let record = || vec![Arc::from("r")];
        let failing = lookups.newest(TenantUid([1; 16]), record(), async |_, _| Err(ReadError::Rejected));
        assert_eq!(failing.await, Err(ReadError::Rejected));
        for _ in 0..=MAX_READS {
            let panics = lookups.newest(TenantUid([1; 16]), record(), async |_, _| panic!("it fails"));
            assert_eq!(panics.await, Err(ReadError::Unavailable));
        }
        let works = lookups.newest(TenantUid([1; 16]), record(), async |_, _| Ok(Vec::new()));
        assert_eq!(works.await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_lookup_after_all_readers_have_stopped_starts_a_new_reader() {
        let lookups = Lookups::default();
        let reader = || {
            lookups.state().readers += 1;
            Reader { lookups: lookups.clone(), has_stopped: false }
        };
        let mut readers: Vec<Reader> = (0..MAX_READS).map(|_| reader()).collect();
        assert!(readers.iter_mut().all(|reader| reader.next().is_none()));
        let record = vec![Arc::from("r")];
        let rows = lookups.newest(TenantUid([1; 16]), record, async |_, _| Ok(Vec::new()));
        assert_eq!(rows.now_or_never(), None, "it is read in its own task");
        drop(readers);
        assert_eq!(lookups.state().readers, 1);
    }

    #[tokio::test]
    async fn an_unreadable_row_fails_only_the_lookups_of_its_record() {
        let lookups = Lookups::default();
        let look = |record: &str| {
            lookups.newest(TenantUid([1; 16]), vec![Arc::from(record)], async |_, records: Vec<Arc<str>>| {
                tokio::task::yield_now().await;
                if records.iter().any(|record| &**record == "bad") {
                    Err(ReadError::Malformed)
                } else {
                    Ok(records.iter().map(row).collect())
                }
            })
        };
        let names = ["1", "2", "3", "4", "5", "bad", "6", "7"];
        for (name, found) in names.iter().zip(join_all(names.map(look)).await) {
            assert_eq!(found.is_ok(), *name != "bad", "{name}");
        }
    }
}
