//! A model behind OpenAI's protocol, on HTTP/1.1.
//!
//! A [`Server`] is three parts: connections, whose sizes, numbers and times are limited ([`http`]);
//! paths, which turn JSON to requests and events to JSON ([`api`]); and one thread that owns the
//! model and answers all requests together ([`worker`]). Whoever goes away has their request
//! cancelled: the events of a request and its life hang on one [`Ticket`](worker::Ticket).

mod api;
mod error;
mod http;
mod metrics;
mod patience;
mod worker;

pub use error::ServeError;

use lapidary_runtime::generate::LanguageModel;
use lapidary_runtime::text::Vocabulary;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How a model is served.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen.
    pub address: SocketAddr,
    /// The name that the model is given in answers.
    pub name: String,
    /// What clients must send as a bearer token, if anything.
    pub key: Option<String>,
    /// Limits on what clients may ask for.
    pub limits: Limits,
}

/// Limits on what clients may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request.
    pub body: usize,
    /// Sequences that are worked on or wait.
    pub queue: usize,
    /// Connections.
    pub connections: usize,
    /// How long a client may take to send a request.
    pub reading: Duration,
    /// How long a client may leave an answer unread.
    pub writing: Duration,
    /// How long running requests may go on when the server is to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 << 20,
            queue: 1024,
            connections: 1024,
            reading: Duration::from_secs(30),
            writing: Duration::from_secs(60),
            grace: Duration::from_secs(30),
        }
    }
}

/// A server that listens, and answers once it runs.
pub struct Server {
    listener: std::net::TcpListener,
    app: Arc<api::App>,
    worker: worker::Worker,
}

impl Server {
    /// Listens at the address of the options.
    ///
    /// # Errors
    /// When the address cannot be had, or the model's thread cannot be started.
    pub fn bind<M: LanguageModel + Send + 'static>(
        model: M,
        vocabulary: Arc<Vocabulary>,
        options: &Options,
    ) -> Result<Self, ServeError> {
        let address = options.address;
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| ServeError::Listen { address, source })?;
        let (context, tokens) = (model.context(), model.vocabulary());
        let worker = worker::Worker::start(model, Arc::clone(&vocabulary))?;
        let app = api::App::new(vocabulary, worker.handle(), options, context, tokens);
        Ok(Self { listener, app: Arc::new(app), worker })
    }

    /// The address: with the port that was found where port 0 was asked for.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<SocketAddr, ServeError> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers requests until `stop` is set, then lets those that run end within the grace period.
    ///
    /// # Errors
    /// When the server cannot be started.
    pub fn run(self, stop: &AtomicBool) -> Result<(), ServeError> {
        let Self { listener, app, worker } = self;
        // The model has the processors; reading texts must not take them from it for long.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()?;
        runtime.block_on(http::serve(listener, app, &worker, stop))?;
        runtime.shutdown_timeout(Duration::from_secs(1));
        worker.finish();
        Ok(())
    }
}
