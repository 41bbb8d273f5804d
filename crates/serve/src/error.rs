//! Errors of the server, and those that clients get, in OpenAI's form.

use hyper::StatusCode;
use lapidary_runtime::RuntimeError;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// What keeps a server from running.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; is another server there? --port 0 finds a port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system refused something else: a thread, a socket.
    #[error("cannot run the server: {0}")]
    System(#[from] std::io::Error),
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The parameter that is to blame.
    pub(crate) parameter: Option<String>,
    pub(crate) code: &'static str,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), parameter: None, code }
    }

    /// A parameter with a value that cannot be.
    pub(crate) fn parameter(name: &str, problem: impl std::fmt::Display) -> Self {
        let message = format!("{name}: {problem}");
        let parameter = Some(name.to_owned());
        Self { parameter, ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A request that is not what it should be as a whole.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// Something that is no fault of the client's.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// The body of the answer.
    pub(crate) fn to_json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.parameter, "code": self.code,
        }})
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        match &error {
            RuntimeError::Parameter { name, problem } => Self::parameter(name, problem),
            RuntimeError::TooLong { .. } => {
                let code = "context_length_exceeded";
                Self::new(StatusCode::BAD_REQUEST, code, error.to_string())
            }
            RuntimeError::NotFinite => Self::internal(error.to_string()),
            // The rest is what a text, its tokens or its messages can bring about.
            _ => Self::malformed(error.to_string()),
        }
    }
}
