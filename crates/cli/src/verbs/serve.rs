//! `lapidary serve`: a model behind OpenAI's protocol.

use super::{base_model, chat_template, disk, locate, open};
use crate::arguments::ServeArguments;
use crate::error::CliError;
use crate::output::{Output, tell};
use crate::signal::stop_flag;
use lapidary_runtime::text::Vocabulary;
use lapidary_runtime::{Decoder, other_rounding};
use lapidary_serve::{Limits, Options, Server};
use serde_json::json;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn run(
    arguments: &ServeArguments,
    threads: Option<NonZeroUsize>,
    output: &mut Output,
) -> Result<(), CliError> {
    let stop = stop_flag();
    let fs = disk();
    let source = open(&fs, &arguments.model)?;
    let vocabulary = Vocabulary::open(&source, chat_template(&arguments.chat_template)?)?;
    let running = arguments.running.options(threads, arguments.sequences.get());
    let decoder = Decoder::from_source(&source, &running)?;
    if let Some(note) = other_rounding(&source, running.precision) {
        tell(&format!("note: {note}"));
    }
    drop(source);
    let context = decoder.context();
    let path = locate(&*fs, &arguments.model)?;
    let name = arguments.name.clone().unwrap_or_else(|| base_model(&arguments.model, &path));
    let key = arguments.api_key.clone().or_else(|| std::env::var("LAPIDARY_API_KEY").ok());
    let key = key.filter(|key| !key.is_empty());
    let open_to_all = !arguments.host.is_loopback() && key.is_none();
    let options = Options {
        address: SocketAddr::new(arguments.host, arguments.port),
        name: name.clone(),
        key,
        limits: Limits {
            body: usize::try_from(arguments.max_body).unwrap_or(usize::MAX),
            queue: arguments.queue.get(),
            grace: Duration::from_secs(arguments.grace),
            ..Limits::default()
        },
    };
    let server = Server::bind(decoder, Arc::new(vocabulary), &options)?;
    let address = server.address()?;
    if open_to_all {
        tell("note: whoever reaches this address can use the model; --api-key asks for a key");
    }
    let sequences = arguments.sequences;
    output.result(
        || {
            json!({
                "address": address.to_string(), "model": name, "context": context,
                "sequences": sequences,
            })
        },
        || {
            format!(
                "serving {name} at http://{address}/v1 ({sequences} sequences of {context} \
                 tokens); Ctrl-C ends it"
            )
        },
    )?;
    output.flush()?;
    Ok(server.run(&stop)?)
}
