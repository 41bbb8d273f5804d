//! A client of a few lines: one request, one connection.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The messages of an event stream; the last is `[DONE]`, unless an error ended it.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).unwrap();
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        let data =
            |event: &&str| event.strip_prefix("data: ").expect("an event is data").to_owned();
        let mut events: Vec<String> = events.iter().map(data).collect();
        if events.last().is_some_and(|last| last == "[DONE]") {
            events.pop();
        }
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The message of an error, which must be in OpenAI's form.
    pub(crate) fn error(&self) -> (String, Value, Value) {
        let json = self.json();
        let error = &json["error"];
        assert!(error["type"].is_string(), "{json}");
        (
            error["message"].as_str().unwrap().to_owned(),
            error["code"].clone(),
            error["param"].clone(),
        )
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    send(address, "POST", path, &[("content-type", "application/json")], &body.to_string())
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, "GET", path, &[], "")
}

pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut stream = connect(address);
    stream.write_all(head(method, path, headers, body.len()).as_bytes()).unwrap();
    // The server may have answered already, and closed.
    let _ = stream.write_all(body.as_bytes());
    finish(stream)
}

pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        head += &format!("content-length: {length}\r\n");
    }
    head + "\r\n"
}

/// Reads what the server answers until it closes.
pub(crate) fn finish(mut stream: TcpStream) -> Reply {
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes).unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(&bytes)))
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[end + 4..];
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunk(body),
        false => body.to_vec(),
    };
    Some(Reply { status, head, body })
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = vec![];
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let chunk = rest.get(end + 2..end + 2 + size);
        body.extend_from_slice(chunk.unwrap_or_else(|| &rest[end + 2..]));
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}
