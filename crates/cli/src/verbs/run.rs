//! `lapidary run`: a text continued, a question answered, or a chat.

use super::{chat_template, disk, open};
use crate::arguments::RunArguments;
use crate::error::CliError;
use crate::output::{Output, tell};
use crate::signal::stop_flag;
use lapidary_runtime::chat::Chat;
use lapidary_runtime::generate::{Event, Finish, Job, Request, Scheduler};
use lapidary_runtime::sampling::Sampling;
use lapidary_runtime::text::Vocabulary;
use lapidary_runtime::{Decoder, RuntimeError, other_rounding};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read, stdin};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Instant, SystemTime};

/// Longest text that is read from standard input.
const MOST_TEXT: u64 = 1 << 26;

/// A model that answers.
struct Session<'a> {
    arguments: &'a RunArguments,
    scheduler: Scheduler<Decoder>,
    vocabulary: Arc<Vocabulary>,
    stop: Arc<AtomicBool>,
}

/// An answer and what it took.
struct Answer {
    text: String,
    finish: Finish,
    prompt_tokens: usize,
    tokens: usize,
    prompt_seconds: f64,
    answer_seconds: f64,
}

pub(crate) fn run(
    arguments: &RunArguments,
    threads: Option<NonZeroUsize>,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let stop = stop_flag();
    let source = open(&disk(), &arguments.model)?;
    let template = chat_template(&arguments.chat_template)?;
    let vocabulary = Arc::new(Vocabulary::open(&source, template)?);
    if arguments.system.is_some() && vocabulary.template().is_none() {
        let what = "--system goes with a chat template, which this model does not have; put the \
                    text into the prompt, or name a template with --chat-template";
        return Err(CliError::Usage(what.to_owned()));
    }
    let options = arguments.running.options(threads, 1);
    let decoder = Decoder::from_source(&source, &options)?;
    if let Some(note) = other_rounding(&source, options.precision).filter(|_| !quiet) {
        tell(&format!("note: {note}"));
    }
    drop(source);
    let scheduler = Scheduler::new(decoder, Arc::clone(&vocabulary));
    let mut session = Session { arguments, scheduler, vocabulary, stop };
    let text = match &arguments.prompt {
        Some(text) => text.clone(),
        None if stdin().is_terminal() => return session.chat(quiet, output),
        None => read_all()?,
    };
    let answer = session.once(&text, output)?;
    // The end of the answer's line first: what follows is no part of it.
    output.result(|| answer.to_json(), String::new)?;
    output.flush()?;
    if !quiet {
        tell(&answer.speed());
    }
    Ok(())
}

/// All of standard input, as text.
fn read_all() -> Result<String, CliError> {
    let mut bytes = vec![];
    let read = stdin().lock().take(MOST_TEXT + 1).read_to_end(&mut bytes);
    read.map_err(|error| CliError::Usage(format!("cannot read standard input: {error}")))?;
    if bytes.len() as u64 > MOST_TEXT {
        return Err(CliError::Usage(format!("standard input has more than {MOST_TEXT} bytes")));
    }
    String::from_utf8(bytes)
        .map_err(|error| CliError::Usage(format!("standard input is not text in UTF-8: {error}")))
}

impl Session<'_> {
    /// One text: as a message where the model has a chat template, else as it is.
    fn once(&mut self, text: &str, output: &mut Output) -> Result<Answer, CliError> {
        let tokens = match (self.arguments.raw, self.vocabulary.template()) {
            (false, Some(_)) => {
                let mut messages = self.first_messages();
                messages.push(message("user", text));
                self.render(&messages)?
            }
            _ => self.vocabulary.prompt(text, true)?,
        };
        self.answer(tokens, output)
    }

    /// A line, an answer, and so on until the lines end.
    fn chat(&mut self, quiet: bool, output: &mut Output) -> Result<(), CliError> {
        if self.arguments.raw || self.vocabulary.template().is_none() {
            let what = "there is no prompt: give one with --prompt or on standard input (a chat \
                        needs a model with a chat template)";
            return Err(CliError::Usage(what.to_owned()));
        }
        tell("a line is a message; an empty one begins again; Ctrl-D ends");
        let mut messages = self.first_messages();
        loop {
            let mut line = String::new();
            let read = stdin().lock().take(MOST_TEXT).read_line(&mut line);
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    let what = format!("cannot read standard input: {error}");
                    return Err(CliError::Usage(what));
                }
            }
            if line.trim().is_empty() {
                messages = self.first_messages();
                continue;
            }
            messages.push(message("user", line.trim()));
            let tokens = self.render(&messages)?;
            let answer = self.answer(tokens, output)?;
            messages.push(message("assistant", &answer.text));
            output.piece("\n")?;
            if !quiet {
                tell(&answer.speed());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// What a conversation begins with.
    fn first_messages(&self) -> Vec<Value> {
        self.arguments.system.iter().map(|text| message("system", text)).collect()
    }

    fn render(&self, messages: &[Value]) -> Result<Vec<u32>, CliError> {
        let Some(template) = self.vocabulary.template() else { return Ok(vec![]) };
        let chat =
            Chat { messages: messages.to_vec(), add_generation_prompt: true, ..Chat::default() };
        let text = template.render(&chat, SystemTime::now())?;
        Ok(self.vocabulary.prompt(&text, false)?)
    }

    fn answer(&mut self, prompt: Vec<u32>, output: &mut Output) -> Result<Answer, CliError> {
        let arguments = self.arguments;
        let context = self.scheduler.model().context();
        let room = context.saturating_sub(prompt.len()).max(1);
        let prompt_tokens = prompt.len();
        let request = Request {
            prompt,
            most_tokens: arguments.max_tokens.map_or(room, NonZeroUsize::get),
            sampling: Sampling {
                temperature: arguments.temperature,
                top_k: arguments.top_k,
                top_p: arguments.top_p,
                min_p: arguments.min_p,
                repetition_penalty: arguments.repetition_penalty,
                seed: arguments.seed,
                ..Sampling::default()
            },
            stop: arguments.stop.clone(),
            ignore_end: arguments.ignore_end,
            skip_special: true,
            ..Request::default()
        };
        request.check(self.scheduler.model().vocabulary(), context)?;
        let (sender, events) = channel();
        let deliver = Box::new(move |event| drop(sender.send(event)));
        let begun = Instant::now();
        self.scheduler.submit(Job { request, cancel: Arc::clone(&self.stop), deliver });
        let (mut text, mut tokens, mut first) = (String::new(), 0, None);
        loop {
            let busy = self.scheduler.step();
            for event in events.try_iter() {
                match event {
                    Event::Prompt(_) => {}
                    Event::Piece { text: more, tokens: new } => {
                        first.get_or_insert_with(Instant::now);
                        tokens += new.len();
                        text += &more;
                        output.piece(&more)?;
                    }
                    Event::End(finish) => {
                        let first = first.unwrap_or_else(Instant::now);
                        return Ok(Answer {
                            text,
                            finish,
                            prompt_tokens,
                            tokens,
                            prompt_seconds: (first - begun).as_secs_f64(),
                            answer_seconds: first.elapsed().as_secs_f64(),
                        });
                    }
                    Event::Failed(why) => return Err(CliError::Answer(why)),
                }
            }
            if !busy {
                return Err(RuntimeError::Ended("the answer has no end".to_owned()).into());
            }
        }
    }
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

impl Answer {
    fn to_json(&self) -> Value {
        let finish = match self.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "interrupted",
        };
        json!({
            "text": self.text,
            "finish_reason": finish,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "prompt_s": self.prompt_seconds,
            "decode_tokens_per_s": self.decoded_per_second(),
        })
    }

    /// Tokens a second, without the first, which comes out of the prompt.
    fn decoded_per_second(&self) -> Option<f64> {
        (self.tokens > 1).then(|| (self.tokens - 1) as f64 / self.answer_seconds)
    }

    fn speed(&self) -> String {
        let decoded = self
            .decoded_per_second()
            .map_or_else(String::new, |rate| format!(", {rate:.1} a second"));
        format!(
            "[{} tokens read in {:.2} s, {} written{decoded}]",
            self.prompt_tokens, self.prompt_seconds, self.tokens
        )
    }
}
