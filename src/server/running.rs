//! Where requests are worked on: on a runtime that connections and requests have to themselves. What they wait for (the
//! database, the KMS, the committer) and what watches over the keys runs on the other one, so that a probe waits behind no
//! request, and behind no connection.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, block_in_place};
use tokio_util::sync::PollSemaphore;

/// How long the end of the requests' runtime waits for what holds one of its threads.
const ENDING: Duration = Duration::from_secs(1);

/// The runtime of connections and requests. Ends with its value.
pub struct RequestRuntime(Option<Runtime>);

impl RequestRuntime {
    /// Starts it, with a thread for each core.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start() -> io::Result<Self> {
        Builder::new_multi_thread().thread_name("byok-requests").enable_all().build().map(Some).map(Self)
    }

    /// What spawns on it, also from elsewhere.
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Runs something on it.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match &self.0 {
            Some(runtime) => runtime.spawn(work),
            None => tokio::spawn(work),
        }
    }

    /// Ends it, and waits until what was on it is gone.
    pub async fn end(mut self) {
        if let Some(runtime) = self.0.take() {
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(ENDING)).await;
        }
    }
}

impl Drop for RequestRuntime {
    /// Waits for nothing: within another runtime that would be a panic.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// How requests are polled.
pub(super) struct Running {
    /// The runtime that everything else is on.
    rest: Handle,
    /// Turns at what takes long, one for each core.
    turns: Arc<Semaphore>,
}

impl Running {
    /// Requests whose connections, timers and tasks, but for that of their client, are this runtime's.
    pub(super) fn beside(rest: Handle) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { rest, turns: Arc::new(Semaphore::new(cores)) }
    }

    /// A request that is worked on.
    pub(super) fn request(&self) -> RunningRequest<'_> {
        RunningRequest { running: self, turns: PollSemaphore::new(self.turns.clone()) }
    }
}

/// How one request is polled.
pub(super) struct RunningRequest<'a> {
    running: &'a Running,
    turns: PollSemaphore,
}

impl RunningRequest<'_> {
    /// Polls it. Where that `takes_long`, the thread leaves its other tasks to another one meanwhile, so that `/live` and
    /// short requests wait behind no long one; and no more do so than there are cores.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        takes_long: bool,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let rest = &self.running.rest;
        let turn = match takes_long && rest.runtime_flavor() == RuntimeFlavor::MultiThread {
            true => ready!(self.turns.poll_acquire(context)),
            false => None,
        };
        let poll_beside = || {
            let _rest = rest.enter();
            poll(context)
        };
        match &turn {
            Some(_) => block_in_place(poll_beside),
            None => poll_beside(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_takes_long_holds_up_nothing_else_on_its_thread() {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (begun, began) = mpsc::channel();
        let long = async move {
            let running = Running::beside(Handle::current());
            let mut request = running.request();
            poll_fn(move |context| {
                request.poll(context, true, |_| {
                    begun.send(()).unwrap();
                    Poll::Ready(released.recv_timeout(Duration::from_secs(60)).is_ok())
                })
            })
            .await
        };
        let long = runtime.spawn(long);
        began.recv().unwrap();
        let (done, other) = mpsc::channel();
        runtime.spawn(async move { done.send(()) });
        assert!(other.recv_timeout(Duration::from_secs(30)).is_ok(), "the one worker is blocked");
        release.send(()).unwrap();
        assert!(runtime.block_on(long).unwrap());
    }

    #[test]
    fn what_a_request_starts_is_the_other_runtimes() {
        let rest =
            Builder::new_multi_thread().worker_threads(1).thread_name("rest").enable_all().build().unwrap();
        let requests = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let running = Running::beside(rest.handle().clone());
        let name = async move {
            let mut request = running.request();
            let task = poll_fn(|context| {
                request.poll(context, false, |_| {
                    Poll::Ready(tokio::spawn(async { std::thread::current().name().map(str::to_owned) }))
                })
            });
            task.await.await.unwrap()
        };
        let name = requests.block_on(requests.spawn(name)).unwrap();
        assert_eq!(name.as_deref(), Some("rest"));
    }
}
