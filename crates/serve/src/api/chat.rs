//! `/v1/chat/completions`: messages answered by way of the model's chat template.

use super::completions::reason;
use super::fields::Fields;
use super::parameters::{MOST_SCORES, Parameters, usage};
use super::{App, done, message, seconds};
use crate::error::ApiError;
use crate::http::{Events, Reply, Step, events, json};
use hyper::Response;
use lapidary_runtime::chat::Chat;
use lapidary_runtime::generate::{Event, Request, Token};
use lapidary_runtime::text::Vocabulary;
use serde_json::{Map, Value, json as object};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

/// What was asked for.
pub(super) struct Asked {
    parameters: Parameters,
    requests: Vec<Request>,
    prompt_tokens: usize,
}

impl Asked {
    /// Reads a request.
    pub(super) fn read(app: &App, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        let prompt = prompt(app, &mut fields)?;
        let mut parameters = Parameters::read(app, &mut fields)?;
        let most: Option<usize> = fields.take("max_tokens")?;
        let most = fields.take("max_completion_tokens")?.or(most);
        let wanted = fields.take("logprobs")?.unwrap_or(false);
        let top = fields.count("top_logprobs", 0..=MOST_SCORES)?;
        if top.is_some() && !wanted {
            return Err(ApiError::parameter("top_logprobs", "goes with logprobs: true"));
        }
        let why = "functions cannot be called here; put their descriptions in a message";
        for name in ["tools", "tool_choice", "functions", "function_call"] {
            fields.refuse(name, why)?;
        }
        fields.refuse("modalities", "only text can be generated")?;
        fields.ignore(&["parallel_tool_calls"]);
        fields.finish()?;
        let room = app.context.saturating_sub(prompt.len());
        // A prompt that fills the context is an error, not an answer of no tokens.
        parameters.request.most_tokens = most.unwrap_or_else(|| room.max(1));
        parameters.request.scores = wanted.then_some(top.unwrap_or(0));
        if parameters.choices > app.limits.queue {
            return Err(ApiError::parameter("n", "is more than the queue can hold"));
        }
        let prompt_tokens = prompt.len();
        let requests = parameters.requests(&[prompt]);
        requests.iter().try_for_each(|request| request.check(app.tokens, app.context))?;
        Ok(Self { parameters, requests, prompt_tokens })
    }
}

/// The tokens of the messages of a request.
pub(super) fn prompt(app: &App, fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let Some(template) = app.vocabulary.template() else {
        let message = "the model has no chat template; use /v1/completions, or serve it with one";
        return Err(ApiError::malformed(message));
    };
    let messages: Option<Vec<Map<String, Value>>> = fields.take("messages")?;
    let messages = messages.filter(|messages| !messages.is_empty());
    let Some(messages) = messages else {
        return Err(ApiError::parameter("messages", "there must be at least one"));
    };
    let messages = messages.into_iter().enumerate().map(|(index, message)| plain(index, message));
    let chat = Chat {
        messages: messages.collect::<Result<_, _>>()?,
        tools: None,
        add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
        variables: fields.take("chat_template_kwargs")?.unwrap_or_default(),
    };
    let text = template.render(&chat, SystemTime::now())?;
    // The text has its special tokens already.
    Ok(app.vocabulary.prompt(&text, false)?)
}

/// A message whose content is a string, as templates want it: text parts are joined by line breaks.
fn plain(index: usize, mut message: Map<String, Value>) -> Result<Value, ApiError> {
    let wrong = |problem: &str| ApiError::parameter(&format!("messages[{index}]"), problem);
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong("its role must be a string"));
    }
    match message.get("content") {
        Some(Value::String(_)) => {}
        None | Some(Value::Null) => {
            message.insert("content".to_owned(), object!(""));
        }
        Some(Value::Array(parts)) => {
            let text = |part: &Value| -> Option<String> {
                let text = part.get("text")?.as_str()?;
                (part.get("type")? == "text").then(|| text.to_owned())
            };
            let texts: Option<Vec<String>> = parts.iter().map(text).collect();
            let Some(texts) = texts else { return Err(wrong("its content can only be text")) };
            message.insert("content".to_owned(), object!(texts.join("\n")));
        }
        Some(_) => return Err(wrong("its content must be a string or a list of text parts")),
    }
    Ok(Value::Object(message))
}

/// Answers, in one piece or as they come.
pub(super) async fn answer(app: &App, asked: Asked) -> Result<Response<Reply>, ApiError> {
    let Asked { parameters, requests, prompt_tokens } = asked;
    let scored = parameters.request.scores.is_some();
    let mut ticket = app.submit(requests)?;
    let mut stream = Stream {
        id: app.next_id("chatcmpl"),
        created: seconds(),
        model: app.name.clone(),
        vocabulary: Arc::clone(&app.vocabulary),
        scored,
        open: parameters.choices,
        tokens: 0,
        prompt_tokens,
        usage: parameters.stream_usage,
    };
    if parameters.stream {
        let begin = |index| {
            message(&stream.chunk(index, object!({"role": "assistant", "content": ""}), None, None))
        };
        let ready: VecDeque<_> = (0..parameters.choices).map(begin).collect();
        let make = Box::new(move |event| stream.step(event));
        return Ok(events(Events { ticket, ready, make, ended: false }));
    }
    let mut choices = vec![(String::new(), vec![], None); parameters.choices];
    while stream.open > 0 {
        let Some((index, event)) = ticket.next().await else {
            return Err(ApiError::internal("the model does not run any more"));
        };
        let (text, scores, end) = &mut choices[index];
        match event {
            Event::Prompt(_) => {}
            Event::Piece { text: more, tokens } => {
                *text += &more;
                stream.tokens += tokens.len();
                scores.extend(tokens);
            }
            Event::End(finish) => {
                *end = Some(reason(finish)?);
                stream.open -= 1;
            }
            Event::Failed(why) => return Err(ApiError::internal(why.to_string())),
        }
    }
    let choices = choices.into_iter().enumerate().map(|(index, (text, scores, end))| {
        object!({
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": stream.logprobs(&scores),
            "finish_reason": end,
        })
    });
    let mut whole = stream.around("chat.completion", choices.collect());
    whole["usage"] = usage(prompt_tokens, stream.tokens);
    Ok(json(&whole))
}

/// Answers as a stream of messages.
struct Stream {
    id: String,
    created: u64,
    model: String,
    vocabulary: Arc<Vocabulary>,
    scored: bool,
    /// Choices that have not ended.
    open: usize,
    tokens: usize,
    prompt_tokens: usize,
    usage: bool,
}

impl Stream {
    fn around(&self, object: &str, choices: Vec<Value>) -> Value {
        object!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(
        &self,
        index: usize,
        delta: Value,
        logprobs: Option<Value>,
        finish: Option<&str>,
    ) -> Value {
        let choice = object!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish,
        });
        self.around("chat.completion.chunk", vec![choice])
    }

    fn logprobs(&self, tokens: &[Token]) -> Option<Value> {
        let entry = |id: u32, logprob: f64| {
            let text = self.vocabulary.token_text(id);
            object!({"token": text, "logprob": logprob, "bytes": text.as_bytes()})
        };
        let scored = |token: &Token| -> Option<Value> {
            let score = token.score.as_ref()?;
            let top = score.top.iter().map(|(id, logprob)| entry(*id, *logprob));
            let mut scored = entry(token.id, score.logprob);
            scored["top_logprobs"] = top.collect();
            Some(scored)
        };
        let content = || tokens.iter().filter_map(scored).collect::<Vec<_>>();
        self.scored.then(|| object!({"content": content()}))
    }

    fn step(&mut self, event: Option<(usize, Event)>) -> Step {
        let failed =
            |error: &ApiError| Step { messages: vec![message(&error.to_json())], last: true };
        let mut messages = vec![];
        match event {
            None => return failed(&ApiError::internal("the model does not run any more")),
            Some((_, Event::Failed(why))) => return failed(&ApiError::internal(why.to_string())),
            Some((_, Event::Prompt(_))) => {}
            Some((index, Event::Piece { text, tokens })) => {
                self.tokens += tokens.len();
                let delta = object!({"content": text});
                messages.push(message(&self.chunk(index, delta, self.logprobs(&tokens), None)));
            }
            Some((index, Event::End(finish))) => match reason(finish) {
                Err(error) => return failed(&error),
                Ok(reason) => {
                    self.open -= 1;
                    messages.push(message(&self.chunk(index, object!({}), None, Some(reason))));
                }
            },
        }
        let last = self.open == 0;
        if last {
            if self.usage {
                let mut whole = self.around("chat.completion.chunk", vec![]);
                whole["usage"] = usage(self.prompt_tokens, self.tokens);
                messages.push(message(&whole));
            }
            messages.push(done());
        }
        Step { messages, last }
    }
}
