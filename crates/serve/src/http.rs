//! Connections: accepted, limited, read within a time, and ended when the server is to stop.

use crate::api::{self, App};
use crate::error::{ApiError, ServeError};
use crate::patience::Patience;
use crate::worker::{Ticket, Worker};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lapidary_runtime::generate::Event;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{interval, sleep, timeout};

/// How often the flag that stops the server is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long a body that is too long is read, so that the client comes to read the answer.
const DISCARDING: Duration = Duration::from_secs(2);

/// Longest head of a request, in bytes.
const LONGEST_HEAD: usize = 32 << 10;

/// Bodies that are in memory at once, in bytes.
const BODIES: usize = 64 << 20;

/// Accepts connections until `stop` is set, then sees those off that are there.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    app: Arc<App>,
    worker: &Worker,
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    let limits = app.limits.clone();
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(limits.connections));
    let bodies = Arc::new(Semaphore::new(BODIES.max(limits.body)));
    let (stopping, stopped) = watch::channel(false);
    let mut look = interval(LOOK);
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = look.tick() => {}
            accepted = accept(&listener, &places) => {
                let Some((stream, place)) = accepted else { continue };
                let (app, bodies) = (Arc::clone(&app), Arc::clone(&bodies));
                tokio::spawn(connection(stream, place, app, bodies, stopped.clone()));
            }
        }
    }
    drop(listener);
    // Whoever listens has a permit too, and gives it back.
    let _ = stopping.send(true);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    if timeout(limits.grace, places.acquire_many(all)).await.is_err() {
        worker.cut();
        let _ = timeout(Duration::from_secs(1), places.acquire_many(all)).await;
    }
    Ok(())
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(_) => {
            // A peer that is gone again, or too many open files: then some must close first.
            sleep(LOOK).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    app: Arc<App>,
    bodies: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    // Tokens are to arrive when they are there.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patience::new(stream, app.limits.writing));
    let reading = app.limits.reading;
    let service = service_fn(|request| {
        let (app, bodies) = (Arc::clone(&app), Arc::clone(&bodies));
        async move { Ok::<_, Infallible>(answer(request, app, bodies).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(reading).max_buf_size(LONGEST_HEAD);
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    tokio::select! {
        // What goes wrong on a connection is its peer's loss alone.
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// The answer to a request, whatever it is.
async fn answer(
    request: Request<Incoming>,
    app: Arc<App>,
    bodies: Arc<Semaphore>,
) -> Response<Reply> {
    let (head, body) = request.into_parts();
    let route = api::route(&head);
    let answered = async {
        let route = route.clone()?;
        app.authorize(route, &head.headers)?;
        let bytes = match route.takes_body() {
            true => {
                json_or_nothing(head.headers.get(header::CONTENT_TYPE))?;
                read(body, &app, &bodies).await?
            }
            false => Bytes::new(),
        };
        api::answer(route, bytes, &app).await
    };
    let answered = answered.await;
    let response = answered.unwrap_or_else(|error: ApiError| refusal(&error));
    let name = route.map_or("other", |route| route.name());
    app.metrics.answered(name, response.status().as_u16());
    response
}

/// The body of a request, if it is not too long and comes soon enough.
async fn read(mut body: Incoming, app: &App, bodies: &Semaphore) -> Result<Bytes, ApiError> {
    let limit = app.limits.body;
    let too_long = || {
        let message = format!("the request has more than {limit} bytes; send less at a time");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    };
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    if announced.is_some_and(|bytes| bytes > limit) {
        discard(body).await;
        return Err(too_long());
    }
    let permits = u32::try_from(announced.unwrap_or(limit)).map_err(|_| too_long())?;
    let reading = async {
        let _room = bodies.acquire_many(permits).await;
        Limited::new(&mut body, limit).collect().await
    };
    match timeout(app.limits.reading, reading).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_long())
        }
        Ok(Err(_)) => Err(ApiError::malformed("the request ended before its body was complete")),
        Err(_) => {
            let message = "the request took too long to arrive";
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
        }
    }
}

/// Reads for a while what is not wanted: a client that still sends would not see the answer.
async fn discard(mut body: Incoming) {
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(DISCARDING, reading).await;
}

/// Refuses what announces itself as something else than JSON: a page in a browser can send such
/// requests to any server, but JSON only to those that allow it.
fn json_or_nothing(content_type: Option<&HeaderValue>) -> Result<(), ApiError> {
    let Some(found) = content_type else { return Ok(()) };
    let kind = found.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("content-type is {found:?}; send JSON, as application/json");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// The body of an answer: whole, or events as they come.
pub(crate) enum Reply {
    Whole(Full<Bytes>),
    Events(Box<Events>),
}

/// Makes messages of an event and the index of its request; of `None` after the last.
pub(crate) type Make = Box<dyn FnMut(Option<(usize, Event)>) -> Step + Send>;

/// Server-sent events made of a ticket's events.
pub(crate) struct Events {
    pub(crate) ticket: Ticket,
    /// Messages that were made and not sent.
    pub(crate) ready: VecDeque<Bytes>,
    pub(crate) make: Make,
    pub(crate) ended: bool,
}

/// Messages to be sent, and whether they are the last.
pub(crate) struct Step {
    pub(crate) messages: Vec<Bytes>,
    pub(crate) last: bool,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = match self.get_mut() {
            Self::Whole(whole) => return Pin::new(whole).poll_frame(context),
            Self::Events(events) => events,
        };
        loop {
            if let Some(message) = events.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            if events.ended {
                return Poll::Ready(None);
            }
            let Poll::Ready(event) = events.ticket.poll_next(context) else { return Poll::Pending };
            let Step { messages, last } = (events.make)(event);
            events.ready.extend(messages);
            events.ended = last;
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Events(events) => events.ended && events.ready.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer of a kind.
pub(crate) fn whole(kind: &'static str, body: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Full::new(body.into())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer of JSON.
pub(crate) fn json(value: &serde_json::Value) -> Response<Reply> {
    whole("application/json", value.to_string())
}

/// An answer of events.
pub(crate) fn events(events: Events) -> Response<Reply> {
    let mut response = Response::new(Reply::Events(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn refusal(error: &ApiError) -> Response<Reply> {
    let mut response = json(&error.to_json());
    *response.status_mut() = error.status;
    let (name, value) = match error.status {
        StatusCode::UNAUTHORIZED => (header::WWW_AUTHENTICATE, "Bearer"),
        StatusCode::TOO_MANY_REQUESTS => (header::RETRY_AFTER, "1"),
        // What is left of the body is not read.
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
            (header::CONNECTION, "close")
        }
        _ => return response,
    };
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}
