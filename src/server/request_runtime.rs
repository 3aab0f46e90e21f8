//! The runtime for connections and requests. Everything that they wait for (the database, the KMS,
//! the committer) and the prober run on the main runtime instead, so that no probe waits behind a
//! request or a connection.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, block_in_place};
use tokio_util::sync::PollSemaphore;

/// How long shutting the runtime down waits for a task that blocks one of its threads.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// The runtime for connections and requests. Dropping it shuts it down.
pub struct RequestRuntime(Option<Runtime>);

impl RequestRuntime {
    /// Starts the runtime, with a thread for each core.
    ///
    /// # Errors
    /// The system cannot create threads.
    pub fn start() -> io::Result<Self> {
        Builder::new_multi_thread().thread_name("byok-requests").enable_all().build().map(Some).map(Self)
    }

    /// A handle that spawns on this runtime, also from elsewhere.
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Spawns a task on this runtime.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match &self.0 {
            Some(runtime) => runtime.spawn(work),
            None => tokio::spawn(work),
        }
    }

    /// Shuts the runtime down, and waits until its tasks are dropped.
    pub async fn end(mut self) {
        if let Some(runtime) = self.0.take() {
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(SHUTDOWN)).await;
        }
    }
}

impl Drop for RequestRuntime {
    /// Does not wait: within another runtime that would panic.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Polls requests with the main runtime entered.
pub(super) struct RequestPoller {
    /// The runtime for everything but connections and requests.
    main: Handle,
    /// Permits to poll a request that takes long, one for each core.
    long_polls: Arc<Semaphore>,
}

impl RequestPoller {
    /// A poller of requests that open their connections, timers and tasks on the runtime `main`.
    pub(super) fn new(main: Handle) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { main, long_polls: Arc::new(Semaphore::new(cores)) }
    }

    /// The polling of one request.
    pub(super) fn request(&self) -> PolledRequest<'_> {
        PolledRequest { main: &self.main, long_polls: PollSemaphore::new(self.long_polls.clone()) }
    }
}

/// The polling of one request.
pub(super) struct PolledRequest<'a> {
    main: &'a Handle,
    long_polls: PollSemaphore,
}

impl PolledRequest<'_> {
    /// Polls the request. If that `takes_long`, the thread first hands its other tasks to another
    /// thread, so that `/live` and short requests do not wait; at most as many threads as there are
    /// cores do so at once.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        takes_long: bool,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let main = self.main;
        let permit = if takes_long && main.runtime_flavor() == RuntimeFlavor::MultiThread {
            ready!(self.long_polls.poll_acquire(context))
        } else {
            None
        };
        let poll_entered = || {
            let _main = main.enter();
            poll(context)
        };
        match &permit {
            Some(_) => block_in_place(poll_entered),
            None => poll_entered(),
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
    fn a_long_poll_delays_no_other_task_of_its_thread() {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (begun, began) = mpsc::channel();
        let long = async move {
            let poller = RequestPoller::new(Handle::current());
            let mut request = poller.request();
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
    fn a_request_spawns_its_tasks_on_the_main_runtime() {
        let main =
            Builder::new_multi_thread().worker_threads(1).thread_name("main").enable_all().build().unwrap();
        let requests = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let poller = RequestPoller::new(main.handle().clone());
        let name = async move {
            let mut request = poller.request();
            let task = poll_fn(|context| {
                request.poll(context, false, |_| {
                    Poll::Ready(tokio::spawn(async { std::thread::current().name().map(str::to_owned) }))
                })
            });
            task.await.await.unwrap()
        };
        let name = requests.block_on(requests.spawn(name)).unwrap();
        assert_eq!(name.as_deref(), Some("main"));
    }
}
