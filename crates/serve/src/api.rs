//! The paths of the server and what they have in common.

mod chat;
mod completions;
mod fields;
mod parameters;
mod tokens;

use crate::error::ApiError;
use crate::http::{Reply, json, whole};
use crate::metrics::Metrics;
use crate::worker::{Handle, Ticket};
use crate::{Limits, Options};
use hyper::body::Bytes;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode, header};
use lapidary_runtime::generate::{Event, Request};
use lapidary_runtime::text::Vocabulary;
use lapidary_store::hash::sha256;
use serde_json::json as object;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// What all requests share.
pub(crate) struct App {
    pub(crate) vocabulary: Arc<Vocabulary>,
    worker: Handle,
    name: String,
    /// Most tokens of a sequence.
    context: usize,
    /// Tokens of the model.
    tokens: usize,
    created: u64,
    /// Hash of the key that clients must have.
    key: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<Metrics>,
    /// Places for sequences, running and waiting.
    places: Arc<Semaphore>,
    answers: AtomicU64,
}

/// A path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Health,
    Metrics,
    Models,
    TokenizerInfo,
    Tokenize,
    Detokenize,
    Completions,
    ChatCompletions,
}

const ROUTES: [(&str, Method, Route); 9] = [
    ("/health", Method::GET, Route::Health),
    ("/metrics", Method::GET, Route::Metrics),
    ("/v1/models", Method::GET, Route::Models),
    ("/tokenizer_info", Method::GET, Route::TokenizerInfo),
    ("/tokenize", Method::POST, Route::Tokenize),
    ("/detokenize", Method::POST, Route::Detokenize),
    ("/v1/completions", Method::POST, Route::Completions),
    ("/v1/chat/completions", Method::POST, Route::ChatCompletions),
    ("/", Method::GET, Route::Health),
];

impl Route {
    /// The path, as metrics name it.
    pub(crate) fn name(self) -> &'static str {
        ROUTES.iter().find(|(_, _, route)| *route == self).map_or("other", |(path, _, _)| *path)
    }

    pub(crate) fn takes_body(self) -> bool {
        ROUTES.iter().any(|(_, method, route)| *route == self && *method == Method::POST)
    }
}

/// The route of a request.
pub(crate) fn route(head: &Parts) -> Result<Route, ApiError> {
    let path = head.uri.path();
    let found = ROUTES.iter().find(|(known, _, _)| *known == path);
    let Some((_, method, route)) = found else {
        let known: Vec<&str> = ROUTES.iter().map(|(path, _, _)| *path).collect();
        let message = format!("there is nothing at {path}; there is {}", known.join(", "));
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    // What answers GET answers HEAD, without the body: load balancers ask so whether a server lives.
    let asked = if head.method == Method::HEAD { &Method::GET } else { &head.method };
    if asked != method {
        let message = format!("{path} takes {method}, not {}", head.method);
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
    }
    Ok(*route)
}

/// Answers a request, of which the route and the body are known.
pub(crate) async fn answer(
    route: Route,
    body: Bytes,
    app: &Arc<App>,
) -> Result<Response<Reply>, ApiError> {
    match route {
        Route::Health if app.worker.is_dead() => {
            let message = "the model does not run any more";
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message))
        }
        Route::Health => Ok(json(&object!({"status": "ok", "model": app.name}))),
        Route::Metrics => {
            let text = app.metrics.render(&app.worker.counts());
            Ok(whole("text/plain; version=0.0.4; charset=utf-8", text))
        }
        Route::Models => Ok(json(&app.models())),
        Route::TokenizerInfo => Ok(json(&tokens::info(app))),
        Route::Tokenize => aside(app, body, tokens::tokenize).await.map(|value| json(&value)),
        Route::Detokenize => aside(app, body, tokens::detokenize).await.map(|value| json(&value)),
        Route::Completions => {
            let asked = aside(app, body, completions::Asked::read).await?;
            completions::answer(app, asked).await
        }
        Route::ChatCompletions => {
            let asked = aside(app, body, chat::Asked::read).await?;
            chat::answer(app, asked).await
        }
    }
}

/// Reads a body away from the thread of the connections: long texts take a while.
async fn aside<T: Send + 'static>(
    app: &Arc<App>,
    body: Bytes,
    read: fn(&App, &[u8]) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let app = Arc::clone(app);
    let reading = tokio::task::spawn_blocking(move || read(&app, &body));
    reading.await.unwrap_or_else(|_| Err(ApiError::internal("a defect ended the request")))
}

impl App {
    pub(crate) fn new(
        vocabulary: Arc<Vocabulary>,
        worker: Handle,
        options: &Options,
        context: usize,
        tokens: usize,
    ) -> Self {
        Self {
            vocabulary,
            worker,
            name: options.name.clone(),
            context,
            tokens,
            created: seconds(),
            key: options.key.as_ref().map(|key| sha256(key.as_bytes())),
            limits: options.limits.clone(),
            metrics: Arc::default(),
            places: Arc::new(Semaphore::new(options.limits.queue)),
            answers: AtomicU64::new(0),
        }
    }

    /// Checks the bearer token. Hashes are compared, all of them whatever differs, so that the time
    /// it takes says nothing of the key.
    pub(crate) fn authorize(&self, route: Route, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = self.key.as_ref().filter(|_| route != Route::Health) else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, token) = given.and_then(|value| value.split_once(' ')).unwrap_or_default();
        let given = sha256(token.trim().as_bytes());
        let differ = key.bytes().zip(given.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
        if scheme.eq_ignore_ascii_case("bearer") && std::hint::black_box(differ) == 0 {
            return Ok(());
        }
        let message = "this server wants its key as a bearer token in the authorization header";
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }

    /// Hands requests that were checked to the model, if there is room for them.
    fn submit(&self, requests: Vec<Request>) -> Result<Ticket, ApiError> {
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.places).try_acquire_many_owned(count);
        let Ok(mut places) = places else {
            let message = "the queue is full; try again in a while";
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message));
        };
        let placed = requests.into_iter().filter_map(|request| Some((request, places.split(1)?)));
        self.worker.submit(placed.collect(), self.timed())
    }

    /// Takes the times of a request's sequences.
    fn timed(&self) -> impl FnMut(&Event) + Clone + Send + 'static {
        let metrics = Arc::clone(&self.metrics);
        let (begun, mut before) = (Instant::now(), None::<Instant>);
        move |event: &Event| match event {
            Event::Piece { tokens, .. } if !tokens.is_empty() => {
                let now = Instant::now();
                match before.replace(now) {
                    None => metrics.first_token(now - begun),
                    // Tokens that were held back come together.
                    Some(before) => tokens.iter().for_each(|_| {
                        metrics.next_token((now - before) / tokens.len() as u32);
                    }),
                }
            }
            Event::Prompt(_) | Event::Piece { .. } => {}
            Event::End(_) | Event::Failed(_) => metrics.ended(begun.elapsed()),
        }
    }

    /// An id for an answer.
    fn next_id(&self, kind: &str) -> String {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:x}-{number:x}", self.created)
    }

    fn models(&self) -> serde_json::Value {
        object!({"object": "list", "data": [{
            "id": self.name, "object": "model", "created": self.created, "owned_by": "lapidary",
            "max_model_len": self.context,
        }]})
    }
}

/// Seconds since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A message of an event stream.
fn message(value: &serde_json::Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// The end of an event stream.
fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}
