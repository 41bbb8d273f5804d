//! Parameters that all kinds of completions have.

use super::App;
use super::fields::Fields;
use crate::error::ApiError;
use lapidary_runtime::generate::Request;
use lapidary_runtime::sampling::Sampling;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most stop strings of a request, and bytes of one.
const MOST_STOPS: usize = 64;
const LONGEST_STOP: usize = 1024;

/// The most of the likeliest tokens that can be asked for.
pub(super) const MOST_SCORES: usize = 20;

/// What every kind of completion takes.
pub(super) struct Parameters {
    /// The request, but for its prompt, tokens and scores.
    pub(super) request: Request,
    /// Answers to each prompt.
    pub(super) choices: usize,
    pub(super) stream: bool,
    /// A last message with the number of tokens.
    pub(super) stream_usage: bool,
}

/// One string or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a string, or a list of strings")]
enum Strings {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

impl Parameters {
    pub(super) fn read(app: &App, fields: &mut Fields) -> Result<Self, ApiError> {
        let plain = Sampling::default();
        let sampling = Sampling {
            temperature: fields.take("temperature")?.unwrap_or(1.0),
            top_k: top_k(fields)?,
            top_p: fields.take("top_p")?.unwrap_or(plain.top_p),
            min_p: fields.take("min_p")?.unwrap_or(plain.min_p),
            repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(1.0),
            frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(0.0),
            presence_penalty: fields.take("presence_penalty")?.unwrap_or(0.0),
            bias: bias(fields)?,
            seed: fields.take::<i64>("seed")?.map_or_else(any_seed, i64::cast_unsigned),
        };
        sampling.check()?;
        let choices = fields.count("n", 1..=app.limits.queue.max(1))?.unwrap_or(1);
        if let Some(best) = fields.take::<usize>("best_of")?.filter(|best| *best != choices) {
            let problem = format!("{best} of which {choices} are shown: set it as n, or leave it");
            return Err(ApiError::parameter("best_of", problem));
        }
        let stream = fields.take("stream")?.unwrap_or(false);
        let options: Option<StreamOptions> = fields.take("stream_options")?;
        let stream_usage = options.and_then(|options| options.include_usage).unwrap_or(false);
        if fields.take::<String>("model")?.is_some_and(|name| name.len() > 1000) {
            return Err(ApiError::parameter("model", "is too long for a name"));
        }
        let request = Request {
            sampling,
            stop: stops(fields)?,
            stop_tokens: fields.take("stop_token_ids")?.unwrap_or_default(),
            ignore_end: fields.take("ignore_eos")?.unwrap_or(false),
            skip_special: fields.take("skip_special_tokens")?.unwrap_or(true),
            ..Request::default()
        };
        let json_only = "only plain text can be generated";
        for name in ["response_format", "guided_json", "guided_regex", "guided_choice"] {
            fields.refuse(name, json_only)?;
        }
        fields.ignore(&["user", "metadata", "store", "service_tier"]);
        Ok(Self { request, choices, stream, stream_usage })
    }

    /// The requests for some prompts: for each, as many as there are choices, with seeds of their
    /// own.
    pub(super) fn requests(&self, prompts: &[Vec<u32>]) -> Vec<Request> {
        let one = |prompt: &Vec<u32>, choice: usize| {
            let mut request = Request { prompt: prompt.clone(), ..self.request.clone() };
            request.sampling.seed = request.sampling.seed.wrapping_add(choice as u64);
            request
        };
        let choices = 0..self.choices;
        prompts.iter().flat_map(|p| choices.clone().map(move |choice| one(p, choice))).collect()
    }
}

/// `top_k`; 0 and -1 are both used for "all".
fn top_k(fields: &mut Fields) -> Result<usize, ApiError> {
    match fields.take::<i64>("top_k")? {
        None | Some(-1) => Ok(0),
        Some(given) => usize::try_from(given).map_err(|_| {
            ApiError::parameter("top_k", format!("must be -1, 0 or more, not {given}"))
        }),
    }
}

/// `logit_bias`: an object from token ids to numbers.
fn bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let given: Option<BTreeMap<String, f32>> = fields.take("logit_bias")?;
    let one = |(token, bias): (String, f32)| {
        let token = token.parse().map_err(|_| {
            let shown: String = token.chars().take(40).collect();
            ApiError::parameter("logit_bias", format!("{shown:?} is not the id of a token"))
        })?;
        Ok((token, bias))
    };
    given.unwrap_or_default().into_iter().map(one).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop")? {
        None => vec![],
        Some(Strings::One(stop)) => vec![stop],
        Some(Strings::Several(stops)) => stops,
    };
    if stops.len() > MOST_STOPS || stops.iter().any(|stop| stop.len() > LONGEST_STOP) {
        let problem = format!("at most {MOST_STOPS} strings of {LONGEST_STOP} bytes");
        return Err(ApiError::parameter("stop", problem));
    }
    Ok(stops)
}

/// A seed for whoever gives none.
fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// `{"prompt_tokens": …}` of an answer.
pub(super) fn usage(prompt: usize, completion: usize) -> Value {
    serde_json::json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}
