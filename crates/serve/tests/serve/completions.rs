//! `/v1/completions` against the model itself.

use crate::client::{Reply, post};
use crate::support::{decoder, serve_demo, vocabulary};
use lapidary_runtime::{Decoder, Piece, Want};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

fn encode(text: &str) -> Vec<u32> {
    vocabulary().tokenizer().encode(text, false).unwrap()
}

/// Log-probabilities after each token.
fn scores(decoder: &mut Decoder, tokens: &[u32]) -> Vec<Vec<f64>> {
    decoder.truncate(0, 0);
    let mut rows = vec![];
    let mut logits = decoder.step(&[Piece { sequence: 0, tokens, want: Want::All }]).unwrap();
    while let Some(row) = logits.next() {
        let sum: f64 = row.logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        rows.push(row.logits.iter().map(|logit| f64::from(*logit) - sum.ln()).collect());
    }
    rows
}

fn likeliest(scores: &[f64]) -> usize {
    (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
}

/// A greedy answer by the model alone.
fn greedy(decoder: &mut Decoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let next = likeliest(scores(decoder, &tokens).last().unwrap()) as u32;
        tokens.push(next);
    }
    tokens.split_off(prompt.len())
}

fn numbers(value: &Value) -> Vec<Option<f64>> {
    value.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[test]
fn greedy_answers_are_the_models_own() {
    let server = serve_demo();
    let mut alone = decoder(1);
    for text in ["Once upon a time", "The lapidary said", " ", "a"] {
        let prompt = encode(text);
        let expected = greedy(&mut alone, &prompt, 12);
        let expected = vocabulary().tokenizer().decode(&expected, true).unwrap();
        let request = json!({
            "model": "m", "prompt": text, "max_tokens": 12, "temperature": 0, "ignore_eos": true,
        });
        let reply = post(server.address, PATH, &request);
        assert_eq!(reply.status, 200);
        let json = reply.json();
        assert_eq!(json["choices"][0]["text"], expected.as_str());
        assert_eq!(json["choices"][0]["finish_reason"], "length");
        assert_eq!(json["object"], "text_completion");
        let usage = json!({
            "prompt_tokens": prompt.len(), "completion_tokens": 12,
            "total_tokens": prompt.len() + 12,
        });
        assert_eq!(json["usage"], usage);
    }
}

#[test]
fn every_form_of_a_prompt_is_the_same_prompt() {
    let server = serve_demo();
    let (first, second) = ("Once upon a time", "The cat");
    let ask = |prompt: Value| -> Vec<Value> {
        let request = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
        let reply = post(server.address, PATH, &request);
        assert_eq!(reply.status, 200, "{}", reply.json());
        let choices = reply.json()["choices"].as_array().unwrap().clone();
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], index);
        }
        choices.iter().map(|choice| choice["text"].clone()).collect()
    };
    let one = ask(json!(first));
    assert_eq!(ask(json!([first])), one);
    assert_eq!(ask(json!(encode(first))), one);
    assert_eq!(ask(json!([encode(first)])), one);
    let two = ask(json!([first, second]));
    assert_eq!(two[0], one[0]);
    assert_eq!(two[1..], ask(json!(second)));
    assert_eq!(ask(json!([encode(first), encode(second)])), two);
    // Nothing at all is continued from the token that begins a text.
    assert_eq!(ask(json!("")), ask(json!([0])));
}

/// What lm-evaluation-harness does with an answer: `token_logprobs[ctxlen:-1]`, and whether each is
/// the largest of its `top_logprobs`, as equal floats.
#[test]
fn prompts_are_scored_as_the_harness_needs_it() {
    let server = serve_demo();
    let mut alone = decoder(1);
    let texts =
        ["Once upon a time there was a", "The", "Hello, my name is é 日 and", "a b c d e f"];
    let prompts: Vec<Vec<u32>> = texts.map(encode).to_vec();
    for most in [0, 1] {
        let request = json!({
            "model": "m", "prompt": prompts, "temperature": 0, "max_tokens": most, "logprobs": 1,
            "seed": 1234, "echo": true,
        });
        let json = post(server.address, PATH, &request).json();
        let choices = json["choices"].as_array().unwrap();
        assert_eq!(choices.len(), prompts.len());
        for (index, (choice, prompt)) in choices.iter().zip(&prompts).enumerate() {
            assert_eq!(choice["index"], index);
            let logprobs = &choice["logprobs"];
            let given = numbers(&logprobs["token_logprobs"]);
            let (tops, tokens) = (&logprobs["top_logprobs"], &logprobs["tokens"]);
            assert_eq!(given.len(), prompt.len() + most);
            assert_eq!(tops.as_array().unwrap().len(), given.len());
            assert_eq!(tokens.as_array().unwrap().len(), given.len());
            assert_eq!((given[0], &tops[0]), (None, &Value::Null));
            let expected = scores(&mut alone, prompt);
            for at in 1..given.len() {
                let top = tops[at].as_object().unwrap();
                let most = top.values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
                let best = likeliest(&expected[at - 1]);
                assert!((most - expected[at - 1][best]).abs() < 1e-3);
                let own = given[at].unwrap();
                assert_eq!(top[tokens[at].as_str().unwrap()].as_f64(), Some(own));
                let token = prompt.get(at).map_or(best, |token| *token as usize);
                assert!((own - expected[at - 1][token]).abs() < 1e-3);
                assert_eq!(own == most, token == best, "greedy is equality");
            }
            // The text is the prompt's and the answer's, and offsets point into it.
            let text = choice["text"].as_str().unwrap();
            assert!(text.starts_with(texts[index]));
            let offsets = numbers(&logprobs["text_offset"]);
            assert_eq!(offsets[0], Some(0.0));
            assert!(offsets.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}

#[test]
fn streams_are_the_answer_in_pieces() {
    let server = serve_demo();
    let mut request = json!({
        "prompt": ["Once upon", "The king"], "max_tokens": 20, "temperature": 0.9, "seed": 5, "n": 2,
        "logprobs": 2, "echo": true, "stop": ["zzz"],
    });
    let whole = post(server.address, PATH, &request).json();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let reply = post(server.address, PATH, &request);
    assert!(reply.head.contains("content-type: text/event-stream"));
    assert!(reply.body.ends_with(b"data: [DONE]\n\n"));
    let events = reply.events();
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of = |event: &&Value| event["choices"][0]["index"] == index;
        let parts: Vec<&Value> = events[..events.len() - 1]
            .iter()
            .filter(of)
            .map(|event| &event["choices"][0])
            .collect();
        let text: String = parts.iter().map(|part| part["text"].as_str().unwrap()).collect();
        assert_eq!(choice["text"], text);
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let all: Vec<Value> = parts
                .iter()
                .flat_map(|part| part["logprobs"][name].as_array().unwrap().clone())
                .collect();
            // To the last bit, whichever sequences happened to be computed together.
            assert_eq!(choice["logprobs"][name], json!(all), "{name}");
        }
        let ends: Vec<_> = parts.iter().filter(|part| !part["finish_reason"].is_null()).collect();
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0]["finish_reason"], choice["finish_reason"]);
    }
}

#[test]
fn seeds_repeat_and_choices_differ() {
    let server = serve_demo();
    let ask = |seed: i64| -> Value {
        let request =
            json!({"prompt": "Once", "max_tokens": 16, "seed": seed, "n": 3, "top_k": 50});
        post(server.address, PATH, &request).json()["choices"].clone()
    };
    let first = ask(7);
    assert_eq!(first, ask(7));
    assert_ne!(first, ask(-7));
    assert_ne!(first[0]["text"], first[1]["text"]);
}

#[test]
fn stop_strings_are_not_part_of_the_answer() {
    let server = serve_demo();
    let ask = |stop: Value| -> Reply {
        let request = json!({
            "prompt": "Once upon a time", "max_tokens": 30, "temperature": 0, "stop": stop,
        });
        post(server.address, PATH, &request)
    };
    let whole = ask(Value::Null).json()["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(10).take(3).collect();
    for given in [json!(stop), json!(["never there", stop])] {
        let json = ask(given).json();
        assert_eq!(json["choices"][0]["text"], whole[..whole.find(&stop).unwrap()]);
        assert_eq!(json["choices"][0]["finish_reason"], "stop");
    }
}
