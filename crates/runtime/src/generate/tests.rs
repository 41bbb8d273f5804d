//! The scheduler over a model of hashes: what is generated together is what is generated alone.

use super::*;
use crate::stand_ins::{Hashes, byte_level};
use lapidary_kernels::random::mix;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Errors are not compared; what is told of them is.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

const VOCABULARY: usize = 300;
const CONTEXT: usize = 400;

type Log = Arc<Mutex<Vec<Event>>>;

fn scheduler(sequences: usize) -> Scheduler<Hashes> {
    Scheduler::new(Hashes::new(VOCABULARY, CONTEXT, sequences), byte_level())
}

fn submit<M: LanguageModel>(
    scheduler: &mut Scheduler<M>,
    request: Request,
) -> (Log, Arc<AtomicBool>) {
    let (log, cancel) = (Log::default(), Arc::default());
    let events = Arc::clone(&log);
    let deliver = Box::new(move |event| events.lock().unwrap().push(event));
    scheduler.submit(Job { request, cancel: Arc::clone(&cancel), deliver });
    (log, cancel)
}

fn alone(request: Request) -> Vec<Event> {
    let mut scheduler = scheduler(1);
    let (log, _) = submit(&mut scheduler, request);
    while scheduler.step() {}
    drop(scheduler);
    Arc::into_inner(log).unwrap().into_inner().unwrap()
}

/// Text, ids of tokens and the end of an answer.
fn answer(events: &[Event]) -> (String, Vec<u32>, Option<Finish>) {
    let (mut text, mut ids, mut end) = (String::new(), vec![], None);
    for event in events {
        match event {
            Event::Piece { text: more, tokens } => {
                text += more;
                ids.extend(tokens.iter().map(|token| token.id));
            }
            Event::End(finish) => end = Some(*finish),
            Event::Prompt(_) | Event::Failed(_) => {}
        }
    }
    (text, ids, end)
}

fn prompt(key: u64, length: usize) -> Vec<u32> {
    (0..length as u64).map(|i| (mix(key ^ mix(i)) % VOCABULARY as u64) as u32).collect()
}

/// Requests of all kinds, some with a beginning in common.
fn request(key: u64) -> Request {
    let draw = |what: u64, below: u64| mix(key ^ mix(what)) % below;
    let mut prompt = prompt(key % 3, 1 + draw(1, 180) as usize);
    if draw(2, 2) == 0 {
        prompt.extend(self::prompt(key, 5));
    }
    Request {
        prompt,
        most_tokens: draw(3, 30) as usize,
        sampling: Sampling {
            temperature: if draw(4, 2) == 0 { 0.0 } else { 1.0 },
            top_k: draw(5, 50) as usize,
            repetition_penalty: 1.0 + draw(6, 2) as f32 / 8.0,
            seed: key,
            ..Sampling::default()
        },
        stop: if draw(7, 2) == 0 { vec!["e".to_owned(), "th".to_owned()] } else { vec![] },
        scores: (draw(8, 2) == 0).then_some(draw(9, 4) as usize),
        prompt_scores: (draw(10, 3) == 0).then_some(draw(11, 4) as usize),
        ..Request::default()
    }
}

#[test]
fn together_is_as_alone() {
    for round in 0..4 {
        let mut scheduler = scheduler(1 + 2 * round as usize);
        let mut jobs = vec![];
        for key in 0..40 {
            let request = request(1000 * round + key);
            jobs.push((request.clone(), submit(&mut scheduler, request).0));
            // Requests come while others are under way.
            for _ in 0..key % 4 {
                scheduler.step();
            }
        }
        while scheduler.step() {}
        for (request, log) in jobs {
            assert_eq!(*log.lock().unwrap(), alone(request.clone()), "{request:?}");
        }
        assert_eq!(scheduler.counts().running, 0);
        assert!(scheduler.model().widest <= 512 + 7);
    }
}

#[test]
fn scores_are_those_of_the_logits() {
    let request = Request {
        prompt: prompt(1, 150),
        most_tokens: 3,
        prompt_scores: Some(3),
        scores: Some(1),
        ..Request::default()
    };
    let events = alone(request.clone());
    let Some(Event::Prompt(scores)) = events.first() else { panic!("{events:?}") };
    assert_eq!(scores.len(), 149);
    let (_, answer, _) = answer(&events);
    let all = [request.prompt.clone(), answer.clone()].concat();
    let expected = |at: usize| -> Vec<f64> {
        let logits = Hashes::logits(VOCABULARY, &all[..at]);
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        logits.iter().map(|logit| f64::from(*logit) - sum.ln()).collect()
    };
    let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
    for (index, score) in scores.iter().enumerate() {
        let expected = expected(index + 1);
        assert!(close(score.logprob, expected[all[index + 1] as usize]));
        let mut ranked: Vec<u32> = (0..VOCABULARY as u32).collect();
        ranked.sort_by(|a, b| expected[*b as usize].total_cmp(&expected[*a as usize]));
        let top: Vec<u32> = score.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, ranked[..3]);
        assert!(
            score.top.iter().all(|(token, logprob)| close(*logprob, expected[*token as usize]))
        );
        // The same number in both places, bit for bit.
        let same = score.top.iter().find(|(token, _)| *token == all[index + 1]);
        assert!(same.is_none_or(|(_, logprob)| *logprob == score.logprob));
    }
    // Greedy: the token is the likeliest.
    for event in &events {
        let Event::Piece { tokens, .. } = event else { continue };
        for token in tokens {
            let score = token.score.as_ref().unwrap();
            assert_eq!(score.top, [(token.id, score.logprob)]);
        }
    }
    assert_eq!(answer.len(), 3);
}

#[test]
fn a_prompt_can_be_scored_without_an_answer() {
    let request = |most_tokens, prompt| Request {
        prompt,
        most_tokens,
        prompt_scores: Some(1),
        ..Request::default()
    };
    let none = alone(request(0, prompt(1, 20)));
    let one = alone(request(1, prompt(1, 20)));
    assert_eq!(none[0], one[0]);
    assert_eq!(none[1..], [Event::End(Finish::Length)]);
    assert!(matches!(one.last(), Some(Event::End(Finish::Length))));
    assert_eq!(alone(request(0, vec![5])), [Event::Prompt(vec![]), Event::End(Finish::Length)]);
    let nothing = Request { prompt: vec![1], ..Request::default() };
    assert_eq!(alone(nothing), [Event::End(Finish::Length)]);
}

#[test]
fn stop_strings_cut_text_and_tokens() {
    let vocabulary = byte_level();
    let base = Request {
        prompt: prompt(2, 10),
        most_tokens: 60,
        sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
        ..Request::default()
    };
    let (whole, ids, end) = answer(&alone(base.clone()));
    assert_eq!(end, Some(Finish::Length));
    assert_eq!(ids.len(), 60);
    assert_eq!(vocabulary.tokenizer().decode(&ids, false).unwrap(), whole);
    // Every stretch of the text as a stop string, also those that lie across tokens.
    let characters: Vec<char> = whole.chars().collect();
    for start in (0..characters.len().saturating_sub(4)).step_by(3) {
        let stop: String = characters[start..start + 4].iter().collect();
        let events = alone(Request { stop: vec![stop.clone()], ..base.clone() });
        let (text, cut, end) = answer(&events);
        assert_eq!(text, whole[..whole.find(&stop).unwrap()]);
        assert_eq!(end, Some(Finish::Stop));
        assert_eq!(cut, ids[..cut.len()]);
        let last = events.iter().rev().find_map(|event| match event {
            Event::Piece { tokens, .. } => tokens.last().cloned(),
            _ => None,
        });
        assert!(last.is_none_or(|token| token.offset < text.chars().count()));
    }
}

#[test]
fn what_is_cancelled_gives_its_place_away() {
    let mut scheduler = scheduler(2);
    let long = |key| Request { prompt: prompt(key, 20), most_tokens: 300, ..Request::default() };
    let (first, cancel_first) = submit(&mut scheduler, long(1));
    let (second, _) = submit(&mut scheduler, long(2));
    let (third, _) = submit(&mut scheduler, long(3));
    let (fourth, cancel_fourth) = submit(&mut scheduler, long(4));
    for _ in 0..10 {
        scheduler.step();
    }
    assert_eq!((scheduler.counts().running, scheduler.counts().waiting), (2, 2));
    cancel_first.store(true, Ordering::Relaxed);
    cancel_fourth.store(true, Ordering::Relaxed);
    scheduler.step();
    assert_eq!((scheduler.counts().running, scheduler.counts().waiting), (2, 0));
    while scheduler.step() {}
    for log in [first, fourth] {
        assert_eq!(log.lock().unwrap().last(), Some(&Event::End(Finish::Cancelled)));
    }
    assert_eq!(*second.lock().unwrap(), alone(long(2)));
    assert_eq!(*third.lock().unwrap(), alone(long(3)));
}

#[test]
fn a_beginning_that_is_there_is_not_read_again() {
    let mut scheduler = scheduler(3);
    let base = Request { prompt: prompt(1, 100), most_tokens: 5, ..Request::default() };
    let (first, _) = submit(&mut scheduler, base.clone());
    while scheduler.step() {}
    assert_eq!(scheduler.counts().prompt_tokens, 100);
    // The whole chat so far, and a bit more.
    let (_, ids, _) = answer(&first.lock().unwrap());
    let longer = [base.prompt.clone(), ids, vec![9, 9, 9]].concat();
    let next = Request { prompt: longer, ..base.clone() };
    let (second, _) = submit(&mut scheduler, next.clone());
    let (again, _) = submit(&mut scheduler, base.clone());
    while scheduler.step() {}
    // The last token of the answer was never given to the model.
    assert_eq!(scheduler.counts().reused_tokens, 104);
    assert_eq!(*second.lock().unwrap(), alone(next));
    assert_eq!(*again.lock().unwrap(), alone(base));
}

#[test]
fn what_cannot_be_done_fails_and_nothing_else_does() {
    let mut scheduler = scheduler(1);
    let fits = Request { prompt: vec![1], most_tokens: CONTEXT - 1, ..Request::default() };
    let bad = [
        Request { prompt: vec![], ..fits.clone() },
        Request { prompt: vec![VOCABULARY as u32], ..fits.clone() },
        Request { most_tokens: CONTEXT, ..fits.clone() },
        Request { most_tokens: usize::MAX, ..fits.clone() },
        Request { sampling: Sampling { top_p: 7.0, ..Sampling::default() }, ..fits.clone() },
    ];
    for request in bad {
        let (log, _) = submit(&mut scheduler, request);
        assert!(matches!(log.lock().unwrap()[..], [Event::Failed(_)]));
    }
    let (log, _) = submit(&mut scheduler, fits);
    while scheduler.step() {}
    let (_, ids, end) = answer(&log.lock().unwrap());
    assert_eq!((ids.len(), end), (CONTEXT - 1, Some(Finish::Length)));
}

#[test]
fn a_step_that_fails_fails_its_requests_and_the_next_goes_on() {
    let mut scheduler = scheduler(2);
    let request = Request { prompt: prompt(1, 10), most_tokens: 50, ..Request::default() };
    let logs = [1, 2].map(|_| submit(&mut scheduler, request.clone()).0);
    for _ in 0..5 {
        scheduler.step();
    }
    let mut model = Hashes::new(VOCABULARY, CONTEXT, 2);
    model.fails_at = Some(3);
    let mut failing = Scheduler::new(model, byte_level());
    let (log, _) = submit(&mut failing, request.clone());
    while failing.step() {}
    assert!(matches!(log.lock().unwrap().last(), Some(Event::Failed(_))));
    let (log, _) = submit(&mut failing, request.clone());
    while failing.step() {}
    assert_eq!(*log.lock().unwrap(), alone(request));
    scheduler.fail_all(RuntimeError::Ended("the end".to_owned()));
    for log in logs {
        let log = log.lock().unwrap();
        let Some(Event::Failed(why)) = log.last() else { panic!("{log:?}") };
        assert_eq!(why.to_string(), "the end");
    }
    assert!(!scheduler.step());
}
