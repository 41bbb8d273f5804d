//! Whatever is sent, the answer is not the server's fault, and the next client is served.

use crate::client::{connect, parse, post, send};
use crate::support::{decoder, limits, serve};
use lapidary_serve::Limits;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u32..3000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const NAMES: [&str; 18] = [
    "prompt",
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "stream",
    "logprobs",
    "echo",
    "seed",
    "logit_bias",
    "tokens",
    "add_special_tokens",
    "stream_options",
    "chat_template_kwargs",
    "stop_token_ids",
];

#[test]
fn no_json_is_the_servers_fault() {
    let server = serve(decoder(4), None, limits());
    let paths = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];
    let field = (prop::sample::select(NAMES.to_vec()), values());
    let strategy = (prop::sample::select(paths.to_vec()), prop::collection::vec(field, 0..4));
    let text = any::<String>();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let address = server.address;
    let outcome = runner.run(&(strategy, text), |((path, fields), text)| {
        let mut request = json!({"max_tokens": 2, "prompt": text});
        if path.contains("chat") {
            request = json!({"max_tokens": 2, "messages": [{"role": "user", "content": text}]});
        } else if path.contains("tokenize") {
            request = json!({});
        }
        for (name, value) in fields {
            request[name] = value;
        }
        let reply = post(address, path, &request);
        prop_assert!(reply.status < 500, "{request}: {}", String::from_utf8_lossy(&reply.body));
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(post(address, paths[0], &json!({"prompt": "x", "max_tokens": 1})).status, 200);
}

#[test]
fn no_bytes_end_the_server() {
    let limits = Limits { reading: Duration::from_millis(500), ..limits() };
    let server = serve(decoder(1), None, limits);
    let address = server.address;
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        "(GET|POST|PUT|X) [ /a-z%]{0,20} HTTP/[0-9.]{1,4}\r\n[a-z:; -]{0,40}\r\n\r\n.{0,20}"
            .prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(|body| {
            let head = format!("POST /v1/completions HTTP/1.1\r\ncontent-length: {}", body.len());
            [head.into_bytes(), b"\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), body].concat()
        }),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let outcome = runner.run(&(bytes, any::<bool>()), |(bytes, leaves)| {
        let mut stream = connect(address);
        let _ = stream.write_all(&bytes);
        if leaves {
            return Ok(());
        }
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        prop_assert!(parse(&answer).is_none_or(|reply| reply.status < 500));
        Ok(())
    });
    outcome.unwrap();
    let reply = send(address, "POST", "/v1/completions", &[], "{\"prompt\": \"\\ud800\"}");
    assert_eq!(reply.status, 400);
    assert_eq!(send(address, "GET", "/health", &[], "").status, 200);
}
