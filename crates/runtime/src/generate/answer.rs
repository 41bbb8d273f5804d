//! One answer as it grows: logits to tokens, tokens to text, and its end.

use super::{Event, Finish, Request, Score, Token};
use crate::RuntimeError;
use crate::sampling::Sampler;
use crate::text::{Detokenizer, StopStrings, Vocabulary};
use std::collections::VecDeque;
use std::sync::Arc;

/// An answer.
pub(super) struct Answer {
    vocabulary: Arc<Vocabulary>,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopStrings,
    stop_tokens: Vec<u32>,
    ignore_end: bool,
    scores: Option<usize>,
    most_tokens: usize,
    tokens: usize,
    /// Characters of the text, of which some may be held back for a stop string.
    seen: usize,
    /// Characters that were handed on.
    released: usize,
    /// Tokens that were not.
    pending: VecDeque<Token>,
    room: Vec<u32>,
}

/// What a row of logits led to.
pub(super) struct Outcome {
    /// The token to go on with; `None` at the end.
    pub(super) next: Option<u32>,
    pub(super) events: Vec<Event>,
}

impl Answer {
    pub(super) fn new(
        request: &Request,
        vocabulary: &Arc<Vocabulary>,
    ) -> Result<Self, RuntimeError> {
        Ok(Self {
            vocabulary: Arc::clone(vocabulary),
            sampler: Sampler::new(request.sampling.clone(), &request.prompt)?,
            detokenizer: Detokenizer::new(Arc::clone(vocabulary), request.skip_special),
            stops: StopStrings::new(&request.stop),
            stop_tokens: request.stop_tokens.clone(),
            ignore_end: request.ignore_end,
            scores: request.scores,
            most_tokens: request.most_tokens,
            tokens: 0,
            seen: 0,
            released: 0,
            pending: VecDeque::new(),
            room: vec![],
        })
    }

    /// Takes the logits after the tokens so far.
    pub(super) fn take(&mut self, logits: &[f32]) -> Result<Outcome, RuntimeError> {
        let id = self.sampler.sample(logits)?;
        self.tokens += 1;
        let score = self.scores.map(|top| Score::of(logits, id, top, &mut self.room));
        self.pending.push_back(Token { id, offset: self.seen, score });
        let model_ends = !self.ignore_end && self.vocabulary.is_end(id);
        if model_ends || self.stop_tokens.contains(&id) {
            return self.end(Finish::Stop);
        }
        let text = self.detokenizer.push(id)?;
        let (text, stopped) = self.add(&text);
        if stopped {
            return Ok(self.outcome(None, text, Some(Finish::Stop)));
        }
        if self.tokens == self.most_tokens {
            let mut last = self.end(Finish::Length)?;
            if let Some(Event::Piece { text: rest, .. }) = last.events.first_mut() {
                rest.insert_str(0, &text);
            } else if !text.is_empty() {
                last.events.insert(0, Event::Piece { text, tokens: vec![] });
            }
            return Ok(last);
        }
        Ok(self.outcome(Some(id), text, None))
    }

    /// Hands on what was held back.
    fn end(&mut self, finish: Finish) -> Result<Outcome, RuntimeError> {
        let rest = self.detokenizer.finish()?;
        let (mut text, stopped) = self.add(&rest);
        if !stopped {
            let held = self.stops.finish();
            self.released += held.chars().count();
            text += &held;
        }
        let finish = if stopped { Finish::Stop } else { finish };
        Ok(self.outcome(None, text, Some(finish)))
    }

    /// Text that can be handed on once there is more, and whether a stop string was in it.
    fn add(&mut self, text: &str) -> (String, bool) {
        self.seen += text.chars().count();
        let (text, stopped) = self.stops.push(text);
        self.released += text.chars().count();
        if stopped {
            // What lies behind the beginning of the stop string is no part of the answer.
            self.pending.retain(|token| token.offset < self.released);
            self.seen = self.released;
        }
        (text, stopped)
    }

    fn outcome(&mut self, next: Option<u32>, text: String, end: Option<Finish>) -> Outcome {
        // A token whose text is not handed on may still turn out to be behind a stop string.
        let certain = |token: &Token| token.offset < self.released || end.is_some();
        let count = self.pending.iter().take_while(|token| certain(token)).count();
        let tokens: Vec<Token> = self.pending.drain(..count).collect();
        let mut events = vec![];
        if !text.is_empty() || !tokens.is_empty() {
            events.push(Event::Piece { text, tokens });
        }
        events.extend(end.map(Event::End));
        Outcome { next, events }
    }
}
