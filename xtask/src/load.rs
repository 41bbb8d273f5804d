//! `cargo xtask load`: a server under several hundred clients, some of whom behave badly.
//!
//! Two in three ask for text, chats and scores, at once or as a stream, and must always get a whole
//! answer. One in six goes away in the middle of an answer, one in six sends garbage. In the end the
//! server has nothing left to do, as many files open as before, and no more memory than after its
//! first seconds.

use crate::error::Error;
use crate::random::Random;
use crate::server::Server;
use crate::setup;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, scope, sleep};
use std::time::{Duration, Instant};

/// What may come on top of a twentieth of the memory: pages of keys and values that were not
/// touched before.
const MEMORY_ROOM: u64 = 16 << 20;

const TEMPLATE: &str =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

/// The load.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Clients at a time
    #[arg(long, default_value_t = 300)]
    clients: usize,
    /// How long they come
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The model; by default the demo's
    #[arg(long)]
    model: Option<PathBuf>,
    /// Key of the random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// This `lapidary` instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    /// Seconds to the first byte of an answer's body, and to its end.
    first: Vec<f64>,
    whole: Vec<f64>,
    between: Vec<f64>,
    errors: Vec<String>,
    left: usize,
    garbage: usize,
    /// Garbage that was answered as a fault of the server's.
    faults: usize,
    tokens: u64,
}

/// Runs the load; false when a promise was not kept.
pub(crate) fn run(options: &Options) -> Result<bool, Error> {
    let root = setup::root()?;
    let cache = setup::cache()?;
    let binary = setup::binary(&root, options.binary.as_deref())?;
    let model = options.model.clone().unwrap_or_else(|| root.join("assets/demo"));
    let template = cache.join("load-template.jinja");
    std::fs::write(&template, TEMPLATE).map_err(Error::at(&template))?;
    let template = template.display().to_string();
    let server = Server::start(&binary, &model, &["--chat-template", &template])?;
    // It has answered once, so that all that a server holds is there.
    idle(server.address);
    let files = server.files();
    println!("{} clients, {} s, {}", options.clients, options.seconds, model.display());
    let seen = Mutex::new(Seen::default());
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let mut memory = vec![];
    scope(|scope| {
        for index in 0..options.clients {
            let (seen, stop, address) = (&seen, &stop, server.address);
            let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
            let client = move || client(address, index, Random::new(seed), stop, seen);
            let started = Builder::new().stack_size(256 << 10).spawn_scoped(scope, client);
            if let Err(error) = started {
                note(seen, |seen| seen.errors.push(format!("a client could not start: {error}")));
            }
        }
        while begun.elapsed() < Duration::from_secs(options.seconds) {
            sleep(Duration::from_millis(500));
            memory.push(server.memory("VmRSS:"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let seconds = begun.elapsed().as_secs_f64();
    let seen = seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let idle = idle(server.address);
    let files = (files, fewest_files(&server, files));
    let peak = server.memory("VmHWM:");
    let ended = server.end()?;
    Ok(report(&seen, seconds, &memory, &Aftermath { idle, files, peak, ended }))
}

/// The server's open files, when they are as few as `before` or some seconds after its last client.
fn fewest_files(server: &Server, before: usize) -> usize {
    let begun = Instant::now();
    while server.files() > before && begun.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(100));
    }
    server.files()
}

/// The server after the load.
struct Aftermath {
    /// Whether no sequence is left.
    idle: bool,
    files: (usize, usize),
    peak: u64,
    ended: (Duration, bool),
}

fn note(seen: &Mutex<Seen>, change: impl FnOnce(&mut Seen)) {
    change(&mut seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
}

/// One client after the other, in one place.
fn client(
    address: SocketAddr,
    index: usize,
    mut random: Random,
    stop: &AtomicBool,
    seen: &Mutex<Seen>,
) {
    while !stop.load(Ordering::Relaxed) {
        let mut below = |limit: usize| (random.unit() * limit as f64) as usize;
        match index % 6 {
            0 => {
                let _ = leave(address, below(4000));
                note(seen, |seen| seen.left += 1);
                sleep(Duration::from_millis(below(200) as u64));
            }
            1 => {
                let fault = garbage(address, &mut below).unwrap_or(false);
                note(seen, |seen| {
                    seen.garbage += 1;
                    seen.faults += usize::from(fault);
                });
                sleep(Duration::from_millis(below(200) as u64));
            }
            _ => match behave(address, &mut below) {
                Ok(Whole { first, whole, tokens }) => note(seen, |seen| {
                    seen.first.push(first);
                    seen.whole.push(whole);
                    seen.tokens += tokens;
                    if tokens > 1 {
                        seen.between.push((whole - first) / (tokens - 1) as f64);
                    }
                }),
                Err(error) => note(seen, |seen| seen.errors.push(error)),
            },
        }
    }
}

/// An answer that is whole.
struct Whole {
    first: f64,
    whole: f64,
    tokens: u64,
}

const WORDS: [&str; 8] = ["stone", "wheel", "water", "light", "cut", "clear", "facet", "hand"];

/// Asks for something and reads all of the answer, which must be whole and right.
fn behave(address: SocketAddr, below: &mut dyn FnMut(usize) -> usize) -> Result<Whole, String> {
    let words: Vec<&str> = (0..1 + below(40)).map(|_| WORDS[below(WORDS.len())]).collect();
    let (text, most, stream) = (words.join(" "), 1 + below(24), below(2) == 0);
    let (path, mut request) = match below(3) {
        0 => {
            let messages = json!([{"role": "user", "content": text}]);
            ("/v1/chat/completions", json!({"messages": messages}))
        }
        1 => ("/v1/completions", json!({"prompt": text, "echo": true, "logprobs": 1})),
        _ => ("/v1/completions", json!({"prompt": [text, "One"], "temperature": 0})),
    };
    request["max_tokens"] = json!(most);
    request["ignore_eos"] = json!(true);
    request["stream"] = json!(stream);
    request["stream_options"] = json!({"include_usage": true});
    let begun = Instant::now();
    let problem = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut connection =
        send(address, path, &request.to_string()).map_err(|error| problem("sending", error))?;
    let (mut bytes, mut first, mut buffer) = (vec![], None, [0; 4096]);
    loop {
        match connection.read(&mut buffer).map_err(|error| problem("reading", error))? {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
    }
    let whole = begun.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&bytes);
    let shown = || text.chars().take(300).collect::<String>();
    if !text.starts_with("HTTP/1.1 200") {
        return Err(format!("answered with {}", shown()));
    }
    let usage = match stream {
        true if !text.contains("data: [DONE]") => return Err(format!("no end in {}", shown())),
        true => text.lines().filter_map(|line| line.strip_prefix("data: ")).find_map(|data| {
            let message: Value = serde_json::from_str(data).ok()?;
            message["usage"]["completion_tokens"].as_u64()
        }),
        false => text.split_once("\r\n\r\n").and_then(|(_, body)| {
            let answer: Value = serde_json::from_str(body).ok()?;
            answer["usage"]["completion_tokens"].as_u64()
        }),
    };
    let prompts = request["prompt"].as_array().map_or(1, Vec::len) as u64;
    match usage {
        Some(tokens) if tokens == most as u64 * prompts => {
            Ok(Whole { first: first.unwrap_or(whole), whole, tokens: tokens / prompts })
        }
        usage => Err(format!("{usage:?} tokens instead of {most} each in {}", shown())),
    }
}

/// Asks for much, and goes away after some bytes of it.
fn leave(address: SocketAddr, bytes: usize) -> std::io::Result<()> {
    let request = json!({"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "stream": true});
    let mut connection = send(address, "/v1/completions", &request.to_string())?;
    let mut buffer = vec![0; bytes];
    connection.read_exact(&mut buffer)
}

/// Sends what is no request; true if the server calls that its own fault.
fn garbage(address: SocketAddr, below: &mut dyn FnMut(usize) -> usize) -> std::io::Result<bool> {
    let noise: Vec<u8> = (0..below(2000)).map(|_| below(256) as u8).collect();
    let noise_text = String::from_utf8_lossy(&noise).into_owned();
    let mut connection = match below(6) {
        0 => {
            let mut connection = connect(address)?;
            connection.write_all(&noise)?;
            connection
        }
        1 => send(address, "/v1/completions", &noise_text)?,
        2 => send(address, "/v1/completions", &json!({"prompt": noise_text, "n": -1}).to_string())?,
        3 => send(address, "/v1/chat/completions", &json!({"messages": [noise_text]}).to_string())?,
        4 => send(address, "/v1/completions", &" ".repeat(5 << 20))?,
        _ => {
            // A body that never comes.
            let mut connection = connect(address)?;
            connection.write_all(head("/v1/completions", 1000).as_bytes())?;
            return Ok(false);
        }
    };
    connection.shutdown(Shutdown::Write)?;
    let mut answer = vec![];
    connection.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 5"))
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(120)))?;
    Ok(connection)
}

fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn send(address: SocketAddr, path: &str, body: &str) -> std::io::Result<TcpStream> {
    let mut connection = connect(address)?;
    connection.write_all((head(path, body.len()) + body).as_bytes())?;
    Ok(connection)
}

/// Whether the server comes to have nothing to do.
fn idle(address: SocketAddr) -> bool {
    let quiet = || -> std::io::Result<bool> {
        let mut connection = connect(address)?;
        connection
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        let nothing = |name: &str| text.lines().any(|line| line == format!("{name} 0"));
        Ok(nothing("lapidary_sequences_running") && nothing("lapidary_sequences_waiting"))
    };
    (0..100).any(|_| {
        sleep(Duration::from_millis(100));
        quiet().unwrap_or(false)
    })
}

/// Prints what was seen; true when every promise was kept.
fn report(seen: &Seen, seconds: f64, memory: &[u64], after: &Aftermath) -> bool {
    println!("{:<30} {:>9} {:>9} {:>9} {:>9}", "milliseconds", "p50", "p90", "p99", "most");
    for (what, times) in [
        ("to the first byte", &seen.first),
        ("to the end", &seen.whole),
        ("between tokens of an answer", &seen.between),
    ] {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * times.len() as f64) as usize;
            times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |time| 1e3 * time)
        };
        println!("{what:<30} {:>9.1} {:>9.1} {:>9.1} {:>9.1}", at(0.5), at(0.9), at(0.99), at(1.0));
    }
    let rate = seen.whole.len() as f64 / seconds;
    println!("{} answers, {rate:.1} a second, {} tokens", seen.whole.len(), seen.tokens);
    println!("{} clients went away, {} sent garbage", seen.left, seen.garbage);
    let middle = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or(0)
    };
    let quarter = memory.len() / 4;
    let (early, late) =
        (middle(&memory[quarter..2 * quarter]), middle(&memory[memory.len() - quarter..]));
    let flat = late <= early + early / 20 + MEMORY_ROOM;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for error in seen.errors.iter().take(5) {
        println!("  {error}");
    }
    let checks = [
        (
            seen.errors.is_empty() && !seen.whole.is_empty(),
            format!("errors of those who behave: {}", seen.errors.len()),
        ),
        (seen.faults == 0, format!("garbage answered as the server's fault: {}", seen.faults)),
        (
            flat,
            format!(
                "memory: {:.1} MiB in the second quarter, {:.1} in the last, peak {:.1}",
                mib(early),
                mib(late),
                mib(after.peak)
            ),
        ),
        (after.idle, "nothing is left to do".to_owned()),
        (
            after.files.1 <= after.files.0,
            format!("open files: {} before, {} after", after.files.0, after.files.1),
        ),
        (after.ended.1, format!("ended in {:.2} s", after.ended.0.as_secs_f64())),
    ];
    for (holds, what) in &checks {
        println!("{:<6}  {what}", if *holds { "ok" } else { "FAILED" });
    }
    checks.iter().all(|(holds, _)| *holds)
}
