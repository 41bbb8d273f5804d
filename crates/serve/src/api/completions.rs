//! `/v1/completions`: prompts continued, echoed, scored.
//!
//! With `echo` and `logprobs`, an answer scores the tokens of the prompt too, all but the first, as
//! lm-evaluation-harness needs it: a token's log-probability and that of the likeliest are the same
//! number where they are the same token, and the tokens that end an answer are counted among its own.

use super::fields::Fields;
use super::parameters::{MOST_SCORES, Parameters, usage};
use super::{App, done, message, seconds};
use crate::error::ApiError;
use crate::http::{Events, Reply, Step, events, json};
use hyper::Response;
use lapidary_runtime::generate::{Event, Finish, Request, Score, Token};
use lapidary_runtime::text::{Detokenizer, Vocabulary};
use serde::Deserialize;
use serde_json::{Map, Value, json as object};
use std::collections::VecDeque;
use std::sync::Arc;

/// Tokens of an answer where nothing is said.
const DEFAULT_TOKENS: usize = 16;

/// What was asked for.
pub(super) struct Asked {
    requests: Vec<Request>,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    stream: bool,
    stream_usage: bool,
}

/// The forms of a prompt.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of token ids, or a list of either that is not empty"
)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Asked {
    /// Reads a request.
    pub(super) fn read(app: &App, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        let prompts = fields.take("prompt")?.unwrap_or(Prompts::Text(String::new()));
        let mut parameters = Parameters::read(app, &mut fields)?;
        let tokens: usize = fields.take("max_tokens")?.unwrap_or(DEFAULT_TOKENS);
        parameters.request.most_tokens = tokens;
        let echo = fields.take("echo")?.unwrap_or(false);
        let scores = fields.count("logprobs", 0..=MOST_SCORES)?;
        let special = fields.take("add_special_tokens")?.unwrap_or(true);
        fields.refuse("suffix", "text can only be continued, not filled in; leave it out")?;
        fields.finish()?;
        parameters.request.scores = scores;
        parameters.request.prompt_scores = scores.filter(|_| echo);
        let encode = |text: &str| app.vocabulary.prompt(text, special);
        let tokens = match prompts {
            Prompts::Text(text) => vec![encode(&text)?],
            Prompts::Tokens(tokens) => vec![tokens],
            Prompts::Texts(texts) => {
                many(app, &parameters, texts.len())?;
                texts.iter().map(|text| encode(text)).collect::<Result<_, _>>()?
            }
            Prompts::ManyTokens(tokens) => tokens,
        };
        many(app, &parameters, tokens.len())?;
        let prompt_tokens = tokens.iter().map(Vec::len).sum();
        let requests = parameters.requests(&tokens);
        let choice = |request: &Request| {
            request.check(app.tokens, app.context)?;
            Choice::new(&app.vocabulary, request, echo)
        };
        let choices = requests.iter().map(choice).collect::<Result<_, _>>()?;
        let Parameters { stream, stream_usage, .. } = parameters;
        Ok(Self { requests, choices, prompt_tokens, stream, stream_usage })
    }
}

/// Refuses no prompts, and more than the queue can ever hold.
fn many(app: &App, parameters: &Parameters, prompts: usize) -> Result<(), ApiError> {
    let (most, count) = (app.limits.queue, prompts.saturating_mul(parameters.choices));
    if (1..=most).contains(&count) {
        return Ok(());
    }
    let problem = format!("there must be from 1 to {most} prompts times n, not {count}");
    Err(ApiError::parameter("prompt", problem))
}

/// Answers, in one piece or as they come.
pub(super) async fn answer(app: &App, asked: Asked) -> Result<Response<Reply>, ApiError> {
    let Asked { requests, mut choices, prompt_tokens, stream, stream_usage } = asked;
    let mut ticket = app.submit(requests)?;
    let head = Head { id: app.next_id("cmpl"), created: seconds(), model: app.name.clone() };
    if stream {
        let open = choices.len();
        let mut stream =
            Stream { head, choices, open, tokens: 0, prompt_tokens, usage: stream_usage };
        return Ok(events(Events {
            ticket,
            ready: VecDeque::new(),
            make: Box::new(move |event| stream.step(event)),
            ended: false,
        }));
    }
    let (mut open, mut tokens) = (choices.len(), 0);
    while open > 0 {
        let Some((index, event)) = ticket.next().await else {
            return Err(ApiError::internal("the model does not run any more"));
        };
        let choice = &mut choices[index];
        match choice.take(event)? {
            Taken::More(count) => tokens += count,
            Taken::End => open -= 1,
        }
    }
    let choices: Vec<Value> = choices.iter_mut().enumerate().map(|(i, c)| c.flush(i)).collect();
    let mut whole = head.around(choices);
    whole["usage"] = usage(prompt_tokens, tokens);
    Ok(json(&whole))
}

/// What all messages of an answer begin with.
struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn around(&self, choices: Vec<Value>) -> Value {
        object!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.model, "choices": choices,
        })
    }
}

/// One of the answers.
struct Choice {
    vocabulary: Arc<Vocabulary>,
    scored: bool,
    /// The prompt's tokens and where their text begins, until they are echoed.
    echoed: Vec<(u32, usize)>,
    /// Characters of the prompt's text, where it is echoed.
    base: usize,
    /// What was not sent yet.
    text: String,
    scores: Vec<Scored>,
    finish: Option<&'static str>,
}

/// A token with its place in the text, and how likely it was; the first of a prompt has no score.
struct Scored {
    id: u32,
    offset: usize,
    score: Option<Score>,
}

enum Taken {
    /// So many more tokens.
    More(usize),
    End,
}

impl Choice {
    fn new(vocabulary: &Arc<Vocabulary>, request: &Request, echo: bool) -> Result<Self, ApiError> {
        let scored = request.scores.is_some();
        let (mut text, mut echoed) = (String::new(), vec![]);
        if echo {
            // With its special tokens, so that text and tokens agree.
            let mut detokenizer = Detokenizer::new(Arc::clone(vocabulary), false);
            let mut offset = 0;
            for token in &request.prompt {
                echoed.push((*token, offset));
                let piece = detokenizer.push(*token)?;
                offset += piece.chars().count();
                text += &piece;
            }
            text += &detokenizer.finish()?;
        }
        let base = text.chars().count();
        let (vocabulary, scores) = (Arc::clone(vocabulary), vec![]);
        Ok(Self { vocabulary, scored, echoed, base, text, scores, finish: None })
    }

    fn take(&mut self, event: Event) -> Result<Taken, ApiError> {
        match event {
            Event::Prompt(scores) => {
                // The first token follows nothing.
                let scores = std::iter::once(None).chain(scores.into_iter().map(Some));
                let echoed = std::mem::take(&mut self.echoed).into_iter();
                let scored = echoed.zip(scores);
                self.scores.extend(scored.map(|((id, offset), score)| Scored {
                    id,
                    offset,
                    score,
                }));
                Ok(Taken::More(0))
            }
            Event::Piece { text, tokens } => {
                self.text += &text;
                let count = tokens.len();
                if self.scored {
                    let base = self.base;
                    let scored =
                        |Token { id, offset, score }| Scored { id, offset: base + offset, score };
                    self.scores.extend(tokens.into_iter().map(scored));
                }
                Ok(Taken::More(count))
            }
            Event::End(finish) => {
                self.finish = Some(reason(finish)?);
                Ok(Taken::End)
            }
            Event::Failed(why) => Err(ApiError::internal(why.to_string())),
        }
    }

    /// What is there to be sent.
    fn flush(&mut self, index: usize) -> Value {
        let text = std::mem::take(&mut self.text);
        let scores = std::mem::take(&mut self.scores);
        object!({
            "index": index,
            "text": text,
            "logprobs": self.scored.then(|| self.logprobs(&scores)),
            "finish_reason": self.finish,
        })
    }

    fn logprobs(&self, scores: &[Scored]) -> Value {
        let text = |id: u32| self.vocabulary.token_text(id);
        let tokens: Vec<String> = scores.iter().map(|scored| text(scored.id)).collect();
        let likeliest = |scored: &Scored, token: &String| -> Option<Map<String, Value>> {
            let score = scored.score.as_ref()?;
            let mut top = Map::new();
            // Of tokens with the same text the likeliest counts, and the first is that.
            for (id, logprob) in &score.top {
                top.entry(text(*id)).or_insert_with(|| object!(logprob));
            }
            top.entry(token.as_str()).or_insert_with(|| object!(score.logprob));
            Some(top)
        };
        let top: Vec<_> =
            scores.iter().zip(&tokens).map(|(s, token)| likeliest(s, token)).collect();
        let logprob = |scored: &Scored| scored.score.as_ref().map(|score| score.logprob);
        object!({
            "tokens": tokens,
            "token_logprobs": scores.iter().map(logprob).collect::<Vec<_>>(),
            "top_logprobs": top,
            "text_offset": scores.iter().map(|scored| scored.offset).collect::<Vec<_>>(),
        })
    }
}

/// OpenAI's word for the end of an answer.
pub(super) fn reason(finish: Finish) -> Result<&'static str, ApiError> {
    match finish {
        Finish::Stop => Ok("stop"),
        Finish::Length => Ok("length"),
        Finish::Cancelled => Err(ApiError::internal("the request was cancelled")),
    }
}

/// Answers as a stream of messages.
struct Stream {
    head: Head,
    choices: Vec<Choice>,
    /// Choices that have not ended.
    open: usize,
    tokens: usize,
    prompt_tokens: usize,
    usage: bool,
}

impl Stream {
    fn step(&mut self, event: Option<(usize, Event)>) -> Step {
        let taken = match event {
            None => Err(ApiError::internal("the model does not run any more")),
            Some((index, event)) => self.choices[index].take(event).map(|taken| (index, taken)),
        };
        let (index, taken) = match taken {
            Ok(taken) => taken,
            Err(error) => return Step { messages: vec![message(&error.to_json())], last: true },
        };
        match taken {
            Taken::More(tokens) => self.tokens += tokens,
            Taken::End => self.open -= 1,
        }
        let mut messages = vec![message(&self.head.around(vec![self.choices[index].flush(index)]))];
        let last = self.open == 0;
        if last {
            if self.usage {
                let mut whole = self.head.around(vec![]);
                whole["usage"] = usage(self.prompt_tokens, self.tokens);
                messages.push(message(&whole));
            }
            messages.push(done());
        }
        Step { messages, last }
    }
}
