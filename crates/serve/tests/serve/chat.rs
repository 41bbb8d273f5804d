//! `/v1/chat/completions`, and the paths of the tokenizer.

use crate::client::{get, post};
use crate::support::{close, serve_demo, vocabulary};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

#[test]
fn a_chat_is_its_template_continued() {
    let server = serve_demo();
    let messages = json!([
        {"role": "system", "content": "Tell."},
        {"role": "user", "content": [{"type": "text", "text": "Once"}, {"type": "text", "text": "upon"}]},
    ]);
    let text = "[system] Tell.\n[user] Once\nupon\n[assistant] ";
    let ask = json!({"messages": messages, "max_tokens": 12, "temperature": 0});
    let chat = post(server.address, PATH, &ask).json();
    let plain = json!({"prompt": text, "max_tokens": 12, "temperature": 0});
    let plain = post(server.address, "/v1/completions", &plain).json();
    let choice = &chat["choices"][0];
    assert_eq!(choice["message"]["content"], plain["choices"][0]["text"]);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], plain["choices"][0]["finish_reason"]);
    assert_eq!(chat["object"], "chat.completion");
    assert_eq!(chat["usage"], plain["usage"]);

    // The template's own refusal reaches the client.
    let ask = json!({"messages": [{"role": "nobody", "content": "x"}]});
    let reply = post(server.address, PATH, &ask);
    assert_eq!(reply.status, 400);
    assert_eq!(reply.error().0, "chat template: nobody may not speak");
}

#[test]
fn chats_stream() {
    let server = serve_demo();
    let mut ask = json!({
        "messages": [{"role": "user", "content": "Once"}], "max_completion_tokens": 10, "seed": 3,
        "n": 2, "logprobs": true, "top_logprobs": 2,
    });
    let whole = post(server.address, PATH, &ask).json();
    ask["stream"] = json!(true);
    ask["stream_options"] = json!({"include_usage": true});
    let reply = post(server.address, PATH, &ask);
    let events = reply.events();
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let parts: Vec<&Value> = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == index)
            .map(|event| &event["choices"][0])
            .collect();
        assert_eq!(parts[0]["delta"]["role"], "assistant");
        let text: String =
            parts.iter().filter_map(|part| part["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
        let scores: Vec<Value> = parts
            .iter()
            .filter_map(|part| part["logprobs"]["content"].as_array().cloned())
            .flatten()
            .collect();
        assert!(close(&choice["logprobs"]["content"], &json!(scores)));
        assert_eq!(scores[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(parts.last().unwrap()["finish_reason"], choice["finish_reason"]);
    }
}

#[test]
fn the_vocabulary_is_served() {
    let server = serve_demo();
    let text = "Once upon a time, naïve 日本";
    let ids = vocabulary().tokenizer().encode(text, false).unwrap();
    let ask = json!({"prompt": text, "add_special_tokens": false});
    let tokens = post(server.address, "/tokenize", &ask).json();
    assert_eq!(tokens["tokens"], json!(ids));
    assert_eq!(tokens["count"], ids.len());
    let text_again = post(server.address, "/detokenize", &json!({"tokens": ids})).json();
    assert_eq!(text_again, json!({"prompt": text}));
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    let chat = post(server.address, "/tokenize", &chat).json();
    let expected = vocabulary().tokenizer().encode("[user] x\n[assistant] ", false).unwrap();
    assert_eq!(chat["tokens"], json!(expected));

    let info = get(server.address, "/tokenizer_info").json();
    assert_eq!(info["eos_token"], "<|endoftext|>");
    assert!(info["chat_template"].as_str().unwrap().contains("messages"));
    let models = get(server.address, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(models["data"][0]["max_model_len"], 512);
    assert_eq!(get(server.address, "/health").json()["status"], "ok");
    let metrics = String::from_utf8(get(server.address, "/metrics").body).unwrap();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(line.starts_with("lapidary_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(metrics.contains("path=\"/tokenize\",status=\"200\"} 2"));
}
