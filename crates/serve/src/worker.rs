//! The thread that owns the model, and the handles by which requests reach it.

use crate::error::{ApiError, ServeError};
use hyper::StatusCode;
use lapidary_runtime::RuntimeError;
use lapidary_runtime::generate::{Counts, Event, Job, LanguageModel, Request, Scheduler};
use lapidary_runtime::text::Vocabulary;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How often an idle thread looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);

/// The thread.
pub(crate) struct Worker {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// The way to it.
#[derive(Clone)]
pub(crate) struct Handle {
    sender: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    /// No more requests; those that run are to end at once.
    cut: AtomicBool,
    /// The thread has ended.
    dead: AtomicBool,
}

/// The events of some requests, in the order in which they come. When it is dropped, the requests
/// are cancelled.
pub(crate) struct Ticket {
    events: UnboundedReceiver<(usize, Event)>,
    cancel: Arc<AtomicBool>,
}

impl Ticket {
    /// The next event and the index of its request; `None` when there are none to come. The queue
    /// has no limit of its own: an answer's length has.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        self.events.recv().await
    }

    pub(crate) fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<(usize, Event)>> {
        self.events.poll_recv(context)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Worker {
    /// Gives the model a thread of its own.
    pub(crate) fn start<M: LanguageModel + Send + 'static>(
        model: M,
        vocabulary: Arc<Vocabulary>,
    ) -> Result<Self, ServeError> {
        let (sender, jobs) = channel();
        let shared = Arc::new(Shared::default());
        let handle = Handle { sender, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new().name("model".to_owned()).spawn(move || {
            let mut scheduler = Scheduler::new(model, vocabulary);
            let run = catch_unwind(AssertUnwindSafe(|| run(&mut scheduler, &jobs, &shared)));
            shared.dead.store(true, Ordering::Relaxed);
            let why = match run {
                Ok(()) => "the server is shutting down",
                Err(_) => "a defect ended the model's thread; the server must be started again",
            };
            scheduler.fail_all(RuntimeError::Ended(why.to_owned()));
        })?;
        Ok(Self { handle, thread })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends what still runs.
    pub(crate) fn cut(&self) {
        self.handle.shared.cut.store(true, Ordering::Relaxed);
    }

    /// Waits for the thread's end.
    pub(crate) fn finish(self) {
        self.cut();
        // A panic was told to whom it concerned.
        let _ = self.thread.join();
    }
}

fn run<M: LanguageModel>(scheduler: &mut Scheduler<M>, jobs: &Receiver<Job>, shared: &Shared) {
    while !shared.cut.load(Ordering::Relaxed) {
        while let Ok(job) = jobs.try_recv() {
            scheduler.submit(job);
        }
        let busy = scheduler.step();
        *shared.counts.lock().unwrap_or_else(PoisonError::into_inner) = scheduler.counts();
        if !busy {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => scheduler.submit(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

impl Handle {
    /// Hands requests over, each with the place in the queue that it holds until it has ended;
    /// `on_event` sees each event as it comes.
    pub(crate) fn submit(
        &self,
        requests: Vec<(Request, OwnedSemaphorePermit)>,
        on_event: impl FnMut(&Event) + Clone + Send + 'static,
    ) -> Result<Ticket, ApiError> {
        let (sender, events) = unbounded_channel();
        let cancel = Arc::new(AtomicBool::new(false));
        for (index, (request, place)) in requests.into_iter().enumerate() {
            let (sender, mut on_event) = (sender.clone(), on_event.clone());
            let deliver = Box::new(move |event: Event| {
                let _held = &place;
                on_event(&event);
                // When nobody listens, the request is about to be cancelled.
                let _ = sender.send((index, event));
            });
            let job = Job { request, cancel: Arc::clone(&cancel), deliver };
            if self.is_dead() || self.sender.send(job).is_err() {
                let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, "unavailable");
                return Err(ApiError::new(status, code, "the model does not run any more"));
            }
        }
        Ok(Ticket { events, cancel })
    }

    /// What the thread has done and is to do.
    pub(crate) fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Relaxed)
    }
}
