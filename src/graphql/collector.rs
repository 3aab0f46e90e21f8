//! Combines the items of all aliases of a request into one call.
//!
//! async-graphql puts the root fields of a query into one `FuturesUnordered`, which polls its
//! futures in the order in which they became ready. All are ready at first, so each runs up to its
//! first wait before any runs a second time. A field submits its item before it waits; the first to
//! do so wakes itself at once, and when it runs again all others have submitted theirs. There is no
//! timer and no count: a field that never gets this far (a bad argument, `@skip`) is not waited
//! for. In another order of polling there would be more than one call, and the same answers.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use tokio::sync::oneshot;

/// The items of one request that wait for their common call.
pub(super) struct Collector<I, A> {
    waiting: Mutex<Vec<(I, oneshot::Sender<A>)>>,
}

impl<I, A> Collector<I, A> {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(Vec::new()) }
    }

    /// Submits an item and waits for its answer. The first to submit makes `call` with all items;
    /// it must return an answer for each, in order. `None` if it returned none for this item.
    pub(super) async fn submit<F: Future<Output = Vec<A>>>(
        &self,
        item: I,
        call: impl FnOnce(Vec<I>) -> F,
    ) -> Option<A> {
        let (answer, mine) = oneshot::channel();
        let leads = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push((item, answer));
            waiting.len() == 1
        };
        if leads {
            until_others_have_submitted().await;
            let all = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let (items, senders): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            for (sender, answer) in senders.into_iter().zip(call(items).await) {
                // A field that no longer waits needs no answer.
                let _ = sender.send(answer);
            }
        }
        // Beyond tokio's budget of one poll (128 such waits) the other fields would finish later,
        // and the fields of the answer would not be in the order of the query.
        tokio::task::unconstrained(mine).await.ok()
    }
}

/// Ready at the second poll and woken at once, so that it runs after everything that is ready now.
fn until_others_have_submitted() -> impl Future<Output = ()> {
    let mut waited = false;
    poll_fn(move |context| {
        if waited {
            return Poll::Ready(());
        }
        waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::Arc;
    use std::time::Duration;

    use async_graphql::{Context, EmptyMutation, EmptySubscription, Object, Request, Schema, Variables};
    use serde_json::json;

    use super::*;

    #[derive(Default)]
    struct Calls(Mutex<Vec<usize>>);

    struct Query;

    #[Object]
    impl Query {
        /// Twice `n`.
        async fn twice(&self, context: &Context<'_>, n: i32) -> i32 {
            let calls = context.data_unchecked::<Arc<Calls>>();
            let collector = context.data_unchecked::<Collector<i32, i32>>();
            let call = async |items: Vec<i32>| {
                calls.0.lock().unwrap().push(items.len());
                tokio::time::sleep(Duration::from_millis(1)).await;
                items.into_iter().map(|n| 2 * n).collect()
            };
            collector.submit(n, call).await.unwrap()
        }

        /// Something that waits on its own.
        async fn slow(&self) -> bool {
            tokio::time::sleep(Duration::from_millis(1)).await;
            true
        }
    }

    async fn run(query: &str, variables: serde_json::Value) -> (serde_json::Value, Vec<usize>) {
        let schema = Schema::build(Query, EmptyMutation, EmptySubscription).finish();
        let calls = Arc::new(Calls::default());
        let request = Request::new(query)
            .variables(Variables::from_json(variables))
            .data(calls.clone())
            .data(Collector::<i32, i32>::new());
        let answer =
            tokio::time::timeout(Duration::from_secs(10), schema.execute(request)).await.expect("no hang");
        let calls = calls.0.lock().unwrap().clone();
        (serde_json::to_value(answer).unwrap(), calls)
    }

    #[tokio::test]
    async fn ten_thousand_aliases_are_one_call() {
        let mut query = String::from("{");
        (0..10_000).for_each(|n| write!(query, "f{n}: twice(n: {n}) ").unwrap());
        let (answer, calls) = run(&(query + "}"), json!({})).await;
        assert_eq!(calls, [10_000]);
        assert_eq!(answer["data"]["f9999"], 19_998);
        assert!(answer.get("errors").is_none());
    }

    #[tokio::test]
    async fn a_field_whose_argument_is_bad_is_not_waited_for() {
        // The value of a variable is parsed when its field runs, so the other fields do run.
        let mut query = String::from("query($bad: Int!) {");
        (0..1_000).for_each(|n| {
            write!(query, "f{n}: twice(n: {}) ", if n % 10 == 0 { "$bad" } else { "7" }).unwrap()
        });
        let (answer, calls) = run(&(query + "}"), json!({"bad": 5_000_000_000_u64})).await;
        assert_eq!(calls, [900]);
        assert_eq!(answer["errors"].as_array().unwrap().len(), 100);
    }

    #[tokio::test]
    async fn skipped_fields_and_fragments_and_equal_aliases_are_one_call() {
        let query = "query($no: Boolean!) {
            slow
            a: twice(n: 1)
            b: twice(n: 2) @skip(if: true)
            c: twice(n: 3) @include(if: $no)
            ...F
            ... on Query { e: twice(n: 5) a: twice(n: 1) }
        }
        fragment F on Query { d: twice(n: 4) ... @include(if: $no) { g: twice(n: 6) } }";
        let (answer, calls) = run(query, json!({"no": false})).await;
        assert_eq!(answer["data"], json!({"slow": true, "a": 2, "d": 8, "e": 10}));
        assert_eq!(calls, [4]);
    }

    #[tokio::test]
    async fn a_missing_answer_is_none() {
        let collector = Collector::<i32, i32>::new();
        assert_eq!(collector.submit(1, async |_| Vec::new()).await, None);
        assert_eq!(collector.submit(1, async |items| items).await, Some(1));
    }
}
