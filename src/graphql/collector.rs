//! Makes one call of what the aliases of a request ask for.
//!
//! The rule: async-graphql puts the root fields of a query into one `FuturesUnordered`, which polls in the order in
//! which its futures became ready. All are ready at first, so each of them runs up to its own first wait before any runs
//! for a second time. A field hands its item in before it waits; the first to do so wakes itself at once, and when it
//! runs again all others have handed in theirs. There is no timer, and nothing is counted: a field that never comes this
//! far (a bad argument, `@skip`) is not waited for. Were the order ever another, there would be more calls than one,
//! and the same answers.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use tokio::sync::oneshot;

/// Items of one request that wait for the call that takes them all.
pub(super) struct Collector<I, A> {
    waiting: Mutex<Vec<(I, oneshot::Sender<A>)>>,
}

impl<I, A> Collector<I, A> {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(Vec::new()) }
    }

    /// Hands an item in and waits for its answer. `call` is made by the first who hands in, with all items; it answers
    /// each, in order. `None` where it did not.
    pub(super) async fn ask<F: Future<Output = Vec<A>>>(
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
            let_the_others_in().await;
            let all = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let (items, askers): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            for (asker, answer) in askers.into_iter().zip(call(items).await) {
                // Whoever no longer waits needs no answer.
                let _ = asker.send(answer);
            }
        }
        // Past tokio's budget for one turn (128 such waits) the rest would come in again later, and the answer's fields
        // would lose the order of the query's.
        tokio::task::unconstrained(mine).await.ok()
    }
}

/// Ready the second time it is polled, and woken at once: behind everything that is ready now.
fn let_the_others_in() -> impl Future<Output = ()> {
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
            collector.ask(n, call).await.unwrap()
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
        // The value of a variable is looked at when its field runs, so the fields beside it run.
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
    async fn who_gets_no_answer_learns_it() {
        let collector = Collector::<i32, i32>::new();
        assert_eq!(collector.ask(1, async |_| Vec::new()).await, None);
        assert_eq!(collector.ask(1, async |items| items).await, Some(1));
    }
}
