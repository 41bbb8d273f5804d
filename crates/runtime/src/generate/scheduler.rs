//! Continuous batching: every step takes each running answer one token further and, with what room
//! is left, reads some more of the prompts of those that have not begun (Orca, Yu et al. 2022;
//! chunked prefill, Sarathi, Agrawal et al. 2023).
//!
//! A sequence keeps its tokens when its answer has ended; a later prompt that begins with the same
//! tokens goes on from there.

use super::answer::Answer;
use super::{Event, Finish, LanguageModel, Request, Score};
use crate::text::Vocabulary;
use crate::{LogitRow, Piece, RuntimeError, Want};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of prompts in a step, when nobody waits for the next token of an answer.
const PREFILL: usize = 512;

/// The same when somebody does.
const PREFILL_BESIDE: usize = 128;

/// A request and who wants it.
pub struct Job {
    /// What is wanted.
    pub request: Request,
    /// Set from outside when it is wanted no more.
    pub cancel: Arc<AtomicBool>,
    /// Gets the events; must not wait.
    pub deliver: Box<dyn FnMut(Event) + Send>,
}

/// What a scheduler has done and has before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that wait for a sequence.
    pub waiting: usize,
    /// Requests that have one.
    pub running: usize,
    /// Steps of the model.
    pub steps: u64,
    /// Tokens of prompts that were read.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were there from an earlier request.
    pub reused_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
}

/// A model and the requests it works on.
pub struct Scheduler<M> {
    model: M,
    vocabulary: Arc<Vocabulary>,
    waiting: VecDeque<Job>,
    slots: Vec<Slot>,
    counts: Counts,
    /// Tokens of the step in preparation.
    batch: Vec<u32>,
    room: Vec<u32>,
}

/// A sequence of the model.
#[derive(Default)]
struct Slot {
    /// The prompt and the answer so far.
    tokens: Vec<u32>,
    /// How many of them the model has been given.
    done: usize,
    running: Option<Running>,
}

/// A request that has a sequence.
struct Running {
    job: Job,
    answer: Answer,
    scores: Vec<Score>,
    /// The order in which requests were begun.
    turn: u64,
}

/// A piece of the next step: tokens of a slot, which stand in `batch` at `range`.
struct Planned {
    slot: usize,
    range: Range<usize>,
    want: Want,
    /// How many of them are the prompt's.
    of_prompt: usize,
}

impl<M: LanguageModel> Scheduler<M> {
    /// A scheduler with nothing to do.
    pub fn new(model: M, vocabulary: Arc<Vocabulary>) -> Self {
        let slots = (0..model.sequences()).map(|_| Slot::default()).collect();
        let (waiting, counts) = (VecDeque::new(), Counts::default());
        Self { model, vocabulary, waiting, slots, counts, batch: vec![], room: vec![] }
    }

    /// Takes a request on; one that cannot be done fails at once.
    pub fn submit(&mut self, mut job: Job) {
        match job.request.check(self.model.vocabulary(), self.model.context()) {
            Ok(()) => self.waiting.push_back(job),
            Err(error) => (job.deliver)(Event::Failed(Arc::new(error))),
        }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// What was done and is to be done.
    pub fn counts(&self) -> Counts {
        let running = self.slots.iter().filter(|slot| slot.running.is_some()).count();
        Counts { waiting: self.waiting.len(), running, ..self.counts }
    }

    /// One step of the model; false when there is nothing to do.
    pub fn step(&mut self) -> bool {
        self.drop_cancelled();
        self.admit();
        let planned = self.plan();
        if planned.is_empty() {
            return !self.waiting.is_empty();
        }
        if let Err(error) = self.run(&planned) {
            self.fail_all(error);
        }
        true
    }

    /// Ends all requests, running or not.
    pub fn fail_all(&mut self, why: RuntimeError) {
        let why = Arc::new(why);
        for slot in &mut self.slots {
            if let Some(mut running) = slot.running.take() {
                (running.job.deliver)(Event::Failed(Arc::clone(&why)));
            }
        }
        for mut job in self.waiting.drain(..) {
            (job.deliver)(Event::Failed(Arc::clone(&why)));
        }
    }

    fn drop_cancelled(&mut self) {
        let cancelled = |job: &mut Job| {
            let cancelled = job.cancel.load(Ordering::Relaxed);
            if cancelled {
                (job.deliver)(Event::End(Finish::Cancelled));
            }
            cancelled
        };
        self.waiting.retain_mut(|job| !cancelled(job));
        for slot in &mut self.slots {
            slot.running.take_if(|running| cancelled(&mut running.job));
        }
    }

    /// Gives waiting requests the free sequences.
    fn admit(&mut self) {
        while let Some(slot) = self.free_slot() {
            let Some(mut job) = self.waiting.pop_front() else { return };
            let request = &job.request;
            if request.most_tokens == 0 && request.prompt_scores.is_none() {
                (job.deliver)(Event::End(Finish::Length));
                continue;
            }
            let answer = match Answer::new(request, &self.vocabulary) {
                Ok(answer) => answer,
                Err(error) => {
                    (job.deliver)(Event::Failed(Arc::new(error)));
                    continue;
                }
            };
            let (index, common) = slot;
            let slot = &mut self.slots[index];
            self.model.truncate(index, common);
            slot.tokens.clone_from(&request.prompt);
            slot.done = common;
            self.counts.reused_tokens += common as u64;
            let turn = self.counts.steps;
            slot.running = Some(Running { job, answer, scores: vec![], turn });
        }
    }

    /// The free sequence that has most of the first waiting prompt, and how much of it; of equals
    /// the one that has least to lose.
    fn free_slot(&self) -> Option<(usize, usize)> {
        let request = &self.waiting.front()?.request;
        let usable = match request.prompt_scores {
            // All rows are wanted, those of the tokens that are there too.
            Some(_) => 0,
            // The last token's row is.
            None => request.prompt.len().saturating_sub(1),
        };
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.running.is_none());
        let common = free.map(|(index, slot)| {
            let pairs = slot.tokens[..slot.done].iter().zip(&request.prompt);
            let same = pairs.take(usable).take_while(|(a, b)| a == b).count();
            (index, same, slot.done)
        });
        let best = common.max_by_key(|(_, same, done)| (*same, std::cmp::Reverse(*done)));
        best.map(|(index, same, _)| (index, same))
    }

    /// The pieces of the next step: the next token of every answer, then prompts in order.
    fn plan(&mut self) -> Vec<Planned> {
        self.batch.clear();
        let mut planned = vec![];
        let left = |slot: &Slot| slot.tokens.len() - slot.done;
        let mut order: Vec<usize> =
            (0..self.slots.len()).filter(|index| self.slots[*index].running.is_some()).collect();
        order.sort_by_key(|index| {
            let slot = &self.slots[*index];
            (left(slot) > 1, slot.running.as_ref().map(|running| running.turn))
        });
        let decoding = order.iter().any(|index| left(&self.slots[*index]) == 1);
        let mut budget = if decoding { PREFILL_BESIDE } else { PREFILL };
        for index in order {
            let slot = &self.slots[index];
            let count = match left(slot) {
                1 => 1,
                more => more.min(budget),
            };
            if count == 0 {
                continue;
            }
            budget = budget.saturating_sub(if left(slot) == 1 { 0 } else { count });
            let tokens = &slot.tokens[slot.done..slot.done + count];
            let range = self.batch.len()..self.batch.len() + count;
            self.batch.extend_from_slice(tokens);
            let request = slot.running.as_ref().map(|running| &running.job.request);
            let want = match request {
                Some(request)
                    if request.prompt_scores.is_some() && slot.done < request.prompt.len() =>
                {
                    Want::All
                }
                _ if count == left(slot) => Want::Last,
                _ => Want::None,
            };
            let of_prompt = request
                .map_or(0, |request| request.prompt.len().saturating_sub(slot.done).min(count));
            planned.push(Planned { slot: index, range, want, of_prompt });
        }
        planned
    }

    fn run(&mut self, planned: &[Planned]) -> Result<(), RuntimeError> {
        let batch = &self.batch;
        let pieces: Vec<Piece<'_>> = planned
            .iter()
            .map(|Planned { slot, range, want, .. }| Piece {
                sequence: *slot,
                tokens: &batch[range.clone()],
                want: *want,
            })
            .collect();
        let (slots, counts, room) = (&mut self.slots, &mut self.counts, &mut self.room);
        self.model.step(&pieces, &mut |row| {
            take_row(&mut slots[planned[row.piece].slot], row, counts, room);
        })?;
        counts.steps += 1;
        for Planned { slot, range, of_prompt, .. } in planned {
            slots[*slot].done += range.len();
            counts.prompt_tokens += *of_prompt as u64;
        }
        Ok(())
    }
}

/// A row of logits for a slot, whose `done` does not count this step's tokens yet.
fn take_row(slot: &mut Slot, row: LogitRow<'_>, counts: &mut Counts, room: &mut Vec<u32>) {
    // An answer that ended earlier in the step, or failed, has rows left that nobody wants.
    let Some(running) = &mut slot.running else { return };
    let Running { job, answer, scores, .. } = running;
    let next = slot.done + row.token + 1;
    if let Some(top) = job.request.prompt_scores {
        if let Some(token) = job.request.prompt.get(next) {
            scores.push(Score::of(row.logits, *token, top, room));
            return;
        }
        if next == job.request.prompt.len() {
            (job.deliver)(Event::Prompt(std::mem::take(scores)));
        }
    }
    if job.request.most_tokens == 0 {
        (job.deliver)(Event::End(Finish::Length));
        slot.running = None;
        return;
    }
    match answer.take(row.logits) {
        Ok(outcome) => {
            counts.generated_tokens += 1;
            outcome.events.into_iter().for_each(|event| (job.deliver)(event));
            match outcome.next {
                Some(token) => slot.tokens.push(token),
                None => slot.running = None,
            }
        }
        Err(error) => {
            (job.deliver)(Event::Failed(Arc::new(error)));
            slot.running = None;
        }
    }
}
