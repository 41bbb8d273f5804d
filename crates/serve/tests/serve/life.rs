//! Clients that go away, and a server that is to stop.

use crate::client::{connect, finish, head, post};
use crate::support::{Slow, limits, metric, serve, until};
use lapidary_serve::Limits;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PATH: &str = "/v1/completions";
const RUNNING: &str = "lapidary_sequences_running";

/// Sends a request and leaves the answer on the connection.
fn ask(address: SocketAddr, request: &Value) -> TcpStream {
    let mut stream = connect(address);
    let body = request.to_string();
    stream.write_all(head("POST", PATH, &[], body.len()).as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

fn long(stream: bool) -> Value {
    json!({"prompt": "x", "max_tokens": 90_000, "stream": stream})
}

#[test]
fn who_goes_away_is_cancelled() {
    let server = serve(Slow::new(Duration::from_millis(2), 8), None, limits());
    let mut streaming = ask(server.address, &long(true));
    let waiting = ask(server.address, &long(false));
    let several = ask(server.address, &json!({"prompt": ["x", "y"], "n": 2, "max_tokens": 90_000}));
    until("the beginning", || metric(server.address, RUNNING) == 6.0);
    let mut some = [0; 2000];
    streaming.read_exact(&mut some).unwrap();
    drop(streaming);
    until("the first end", || metric(server.address, RUNNING) == 5.0);
    drop(waiting);
    until("the second end", || metric(server.address, RUNNING) == 4.0);
    drop(several);
    until("the last end", || metric(server.address, RUNNING) == 0.0);
    let request = json!({"prompt": "x", "max_tokens": 2});
    assert_eq!(post(server.address, PATH, &request).status, 200);
}

#[test]
fn who_does_not_read_is_cancelled() {
    let limits = Limits { writing: Duration::from_millis(300), ..limits() };
    let server = serve(Slow::new(Duration::ZERO, 4), None, limits);
    let unread: Vec<TcpStream> = (0..3).map(|_| ask(server.address, &long(true))).collect();
    until("the beginning", || metric(server.address, "lapidary_steps_total") > 10.0);
    until("the end", || metric(server.address, RUNNING) == 0.0);
    drop(unread);
}

#[test]
fn a_server_that_is_to_stop_lets_answers_end() {
    let server = serve(Slow::new(Duration::from_millis(5), 2), None, limits());
    let running = ask(server.address, &json!({"prompt": "x", "max_tokens": 60, "stream": true}));
    until("the beginning", || metric(server.address, RUNNING) == 1.0);
    server.stop.store(true, Ordering::Relaxed);
    let reply = finish(running);
    assert!(reply.body.ends_with(b"data: [DONE]\n\n"));
    let events = reply.events();
    let words: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(words, " the".repeat(60));
    until("the closed door", || TcpStream::connect(server.address).is_err());
}

#[test]
fn answers_that_do_not_end_are_cut() {
    let limits = Limits { grace: Duration::from_millis(300), ..limits() };
    let mut server = serve(Slow::new(Duration::from_millis(5), 2), None, limits);
    let streaming = ask(server.address, &long(true));
    let waiting = ask(server.address, &long(false));
    until("the beginning", || metric(server.address, RUNNING) == 2.0);
    let begun = Instant::now();
    server.stop.store(true, Ordering::Relaxed);
    let cut = finish(streaming);
    let last = cut.events().pop().unwrap();
    assert_eq!(last["error"]["message"], "the server is shutting down");
    assert!(!cut.body.ends_with(b"[DONE]\n\n"));
    let reply = finish(waiting);
    assert_eq!((reply.status, reply.error().0.as_str()), (500, "the server is shutting down"));
    server.thread.take().unwrap().join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn connections_are_kept_for_the_next_request() {
    let server = serve(Slow::new(Duration::ZERO, 1), None, limits());
    let mut stream = connect(server.address);
    for _ in 0..3 {
        let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
        let head = head("POST", PATH, &[], body.len()).replace("connection: close\r\n", "");
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        assert_eq!(crate::client::parse(&bytes[..count]).unwrap().status, 200);
    }
}
