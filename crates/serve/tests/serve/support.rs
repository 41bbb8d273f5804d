//! Servers under test.

use lapidary_formats::Source;
use lapidary_runtime::generate::LanguageModel;
use lapidary_runtime::text::Vocabulary;
use lapidary_runtime::{
    Decoder, LogitRow, Options as Running, Piece, Precision, RuntimeError, Want,
};
use lapidary_serve::{Limits, Options, Server};
use lapidary_store::RealFs;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'nobody' %}\
    {{ raise_exception('nobody may not speak') }}{% endif %}[{{ message.role }}] \
    {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

/// A server that runs until it is dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn demo() -> Source {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    Source::open(Arc::new(RealFs), &folder).unwrap()
}

pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(Vocabulary::open(&demo(), Some(TEMPLATE.to_owned())).unwrap())
}

/// The demo's model, in floats.
pub(crate) fn decoder(sequences: usize) -> Decoder {
    let options =
        Running { threads: Some(2), sequences, precision: Precision::Float, ..Running::default() };
    Decoder::from_source(&demo(), &options).unwrap()
}

pub(crate) fn limits() -> Limits {
    Limits {
        body: 100_000,
        queue: 16,
        connections: 64,
        reading: Duration::from_secs(2),
        writing: Duration::from_secs(2),
        grace: Duration::from_secs(10),
    }
}

pub(crate) fn serve_demo() -> Served {
    serve(decoder(4), None, limits())
}

pub(crate) fn serve<M: LanguageModel + Send + 'static>(
    model: M,
    key: Option<&str>,
    limits: Limits,
) -> Served {
    let options = Options {
        address: "127.0.0.1:0".parse().unwrap(),
        name: "demo".to_owned(),
        key: key.map(str::to_owned),
        limits,
    };
    let server = Server::bind(model, vocabulary(), &options).unwrap();
    let address = server.address().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let thread = std::thread::spawn(move || server.run(&flag).unwrap());
    Served { address, stop, thread: Some(thread) }
}

/// A model that says the same word again and again, at its leisure.
pub(crate) struct Slow {
    pub(crate) delay: Duration,
    pub(crate) sequences: usize,
    pub(crate) word: u32,
}

impl Slow {
    pub(crate) fn new(delay: Duration, sequences: usize) -> Self {
        let word = vocabulary().tokenizer().encode(" the", false).unwrap()[0];
        Self { delay, sequences, word }
    }
}

impl LanguageModel for Slow {
    fn vocabulary(&self) -> usize {
        2048
    }

    fn context(&self) -> usize {
        100_000
    }

    fn sequences(&self) -> usize {
        self.sequences
    }

    fn truncate(&mut self, _sequence: usize, _length: usize) {}

    fn step(
        &mut self,
        pieces: &[Piece<'_>],
        on_row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), RuntimeError> {
        std::thread::sleep(self.delay);
        let mut logits = vec![0.0; 2048];
        logits[self.word as usize] = 100.0;
        for (index, piece) in pieces.iter().enumerate() {
            let rows = match piece.want {
                Want::None => 0..0,
                Want::Last => piece.tokens.len() - 1..piece.tokens.len(),
                Want::All => 0..piece.tokens.len(),
            };
            rows.for_each(|token| on_row(LogitRow { piece: index, token, logits: &logits }));
        }
        Ok(())
    }
}

/// Waits for something that must come about soon.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} takes too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A figure of `/metrics`.
pub(crate) fn metric(address: SocketAddr, name: &str) -> f64 {
    let reply = crate::client::get(address, "/metrics");
    let text = String::from_utf8(reply.body).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap()
}

/// Equal but for the last digits of numbers: what is kept of a prompt was computed in other pieces.
pub(crate) fn close(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-3
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| close(a, b)))
        }
        (a, b) => a == b,
    }
}
