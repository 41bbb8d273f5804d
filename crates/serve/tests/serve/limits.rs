//! Every limit has an answer of its own, in OpenAI's form, and none of them ends the server.

use crate::client::{connect, finish, get, head, post, send};
use crate::support::{Slow, limits, serve, serve_demo};
use lapidary_serve::Limits;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const PATH: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn parameters_that_cannot_be_are_named() {
    let server = serve_demo();
    let cases = [
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"logprobs": -1}), "logprobs"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": [5]}), "stop"),
        (json!({"stop": vec!["x"; 65]}), "stop"),
        (json!({"seed": "x"}), "seed"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"echo": 1}), "echo"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 1000}}), "logit_bias"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"frequency_penalty": 3}), "frequency_penalty"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": [1.5]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": vec!["x"; 17]}), "prompt"),
        (json!({"prompt": ["x", "y"], "n": 9}), "prompt"),
        (json!({"tempurature": 1}), "tempurature"),
    ];
    for (more, parameter) in cases {
        let mut request = json!({"prompt": "x"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = post(server.address, PATH, &request);
        let (message, code, named) = reply.error();
        assert_eq!(reply.status, 400, "{request}");
        assert_eq!((named, code), (json!(parameter), json!("invalid_value")), "{message}");
        assert!(message.starts_with(parameter), "{message}");
    }
    let user = json!([{"role": "user", "content": "x"}]);
    let chats = [
        (json!({}), json!("messages")),
        (json!({"messages": []}), json!("messages")),
        (json!({"messages": [5]}), json!("messages")),
        (json!({"messages": [{"content": "x"}]}), json!("messages[0]")),
        (json!({"messages": [{"role": "user", "content": 5}]}), json!("messages[0]")),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            json!("messages[0]"),
        ),
        (json!({"messages": user, "tools": [{"type": "function"}]}), json!("tools")),
        (json!({"messages": user, "top_logprobs": 3}), json!("top_logprobs")),
        (json!({"messages": user, "prompt": "x"}), json!("prompt")),
    ];
    for (request, parameter) in chats {
        let reply = post(server.address, CHAT, &request);
        assert_eq!(reply.status, 400, "{request}");
        assert_eq!(reply.error().2, parameter, "{request}");
    }
    // What changes nothing is taken.
    let request = json!({
        "prompt": "x", "user": "me", "suffix": null, "best_of": 1, "response_format": {"type": "text"},
        "logit_bias": {}, "max_tokens": 1, "model": "anything",
    });
    assert_eq!(post(server.address, PATH, &request).status, 200);
}

#[test]
fn too_many_tokens_are_refused() {
    let server = serve_demo();
    for (tokens, more) in [(512, 1), (513, 0), (500, 13), (1, 512)] {
        let request = json!({"prompt": vec![5; tokens], "max_tokens": more});
        let reply = post(server.address, PATH, &request);
        let (message, code, _) = reply.error();
        assert_eq!((reply.status, code), (400, json!("context_length_exceeded")), "{message}");
        assert!(message.contains("512"));
    }
    let fits = json!({"prompt": vec![5; 500], "max_tokens": 12, "ignore_eos": true});
    assert_eq!(post(server.address, PATH, &fits).json()["usage"]["total_tokens"], 512);
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(1000)}]});
    assert_eq!(post(server.address, CHAT, &long).error().1, "context_length_exceeded");
    let foreign = post(server.address, PATH, &json!({"prompt": [2048]}));
    assert_eq!(foreign.status, 400);
    assert!(foreign.error().0.contains("vocabulary"));
}

#[test]
fn requests_that_are_none_are_refused() {
    let server = serve_demo();
    let json_type = [("content-type", "application/json")];
    let raw = |body: &str| send(server.address, "POST", PATH, &json_type, body);
    for body in ["", "{", "[]", "5", "\"x\"", "null", "{\"a\":1,\"a\":2}", &"[".repeat(5000)] {
        let reply = raw(body);
        assert_eq!(reply.status, 400, "{body:.20}");
        reply.error();
    }
    let typed = |kind: &str| {
        let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
        send(server.address, "POST", PATH, &[("content-type", kind)], &body).status
    };
    assert_eq!(typed("application/json; charset=utf-8"), 200);
    assert_eq!(typed("text/plain"), 415);
    assert_eq!(typed("application/x-www-form-urlencoded"), 415);
    assert_eq!(get(server.address, "/v1/nothing").status, 404);
    assert_eq!(get(server.address, PATH).status, 405);
    assert_eq!(post(server.address, "/health", &json!({})).status, 405);
    let head = send(server.address, "HEAD", "/health", &[], "");
    assert!(head.status == 200 && head.body.is_empty());
    assert_eq!(send(server.address, "HEAD", PATH, &[], "").status, 405);
    let neither = post(server.address, "/tokenize", &json!({"content": "x"}));
    assert!(neither.status == 400 && neither.error().0.contains("prompt: is missing"));
    let foreign = post(server.address, "/detokenize", &json!({"tokens": [1, 999_999]}));
    assert!(foreign.status == 400 && foreign.error().0.contains("999999"));
    assert!(get(server.address, "/v1/nothing").error().0.contains("/v1/completions"));
}

#[test]
fn long_bodies_are_refused_before_they_are_read() {
    let server = serve_demo();
    let request = json!({"prompt": "x".repeat(200_000)});
    let reply = post(server.address, PATH, &request);
    assert_eq!((reply.status, reply.error().1), (413, json!("request_too_large")));
    // One that does not say how long it is.
    let mut stream = connect(server.address);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 50_000, " ".repeat(50_000));
    for _ in 0..4 {
        let _ = stream.write_all(chunk.as_bytes());
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    assert_eq!(finish(stream).status, 413);
    let huge = [("content-type", "application/json"), ("x", &"y".repeat(100_000))];
    assert_eq!(send(server.address, "POST", PATH, &huge, "{}").status, 431);
}

#[test]
fn the_queue_has_an_end() {
    let limits = Limits { queue: 3, ..limits() };
    let server = serve(Slow::new(Duration::from_millis(20), 1), None, limits);
    let address = server.address;
    let ask = move || post(address, PATH, &json!({"prompt": "x", "max_tokens": 40}));
    let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(ask)).collect();
    let replies: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let count = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((count(200), count(429)), (3, 5));
    let full = replies.iter().find(|reply| reply.status == 429).unwrap();
    assert!(full.head.contains("retry-after: 1"));
    assert_eq!(full.json()["error"]["type"], "rate_limit_error");
    assert_eq!(full.error().1, "queue_full");
    // There is room again.
    assert_eq!(ask().status, 200);
}

#[test]
fn the_key_is_asked_for() {
    let server = serve(Slow::new(Duration::ZERO, 1), Some("s3cret"), limits());
    let with = |value: Option<&str>| {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(value.map(|value| ("authorization", value)));
        let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
        send(server.address, "POST", PATH, &headers, &body)
    };
    for wrong in [None, Some("Bearer s3cre"), Some("Bearer "), Some("s3cret"), Some("Basic s3cret")]
    {
        let reply = with(wrong);
        assert_eq!((reply.status, reply.error().1), (401, json!("invalid_api_key")));
        assert!(reply.head.contains("www-authenticate: bearer"));
    }
    assert_eq!(with(Some("Bearer s3cret")).status, 200);
    assert_eq!(with(Some("bearer s3cret")).status, 200);
    assert_eq!(get(server.address, "/metrics").status, 401);
    assert_eq!(get(server.address, "/health").status, 200);
}

#[test]
fn who_sends_too_slowly_is_let_go() {
    let limits = Limits { reading: Duration::from_millis(300), connections: 2, ..limits() };
    let server = serve(Slow::new(Duration::ZERO, 1), None, limits);
    let begun = Instant::now();
    // Half a head on one connection, half a body on the other: together all there are.
    let mut first = connect(server.address);
    first.write_all(b"POST /v1/compl").unwrap();
    let mut second = connect(server.address);
    second.write_all(head("POST", PATH, &[], 1000).as_bytes()).unwrap();
    second.write_all(b"{").unwrap();
    let reply = finish(second);
    assert_eq!((reply.status, reply.error().1), (408, json!("timeout")));
    let mut rest = vec![];
    let _ = first.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let request = json!({"prompt": "x", "max_tokens": 2});
    let after: Value = post(server.address, PATH, &request).json();
    assert_eq!(after["choices"][0]["text"], " the the");
}
