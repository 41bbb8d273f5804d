//! A loaded model with room for several sequences.

use crate::attention::Attention;
use crate::load::{Names, Weights};
use crate::plan::Plan;
use crate::work::{Batch, Work};
use crate::{CacheType, Precision, RuntimeError};
use lapidary_formats::Source;
use lapidary_kernels::bandwidth::read_bandwidth;
use lapidary_kernels::pool::Pool;
use lapidary_model::{Graph, ModelError, Op, Spec, spec};
use lapidary_store::RealFs;
use std::path::Path;
use std::sync::Arc;

/// Rows whose logits are computed together.
const HEAD_ROWS: usize = 32;
/// The context where none is asked for, or the model's where that is shorter.
const DEFAULT_CONTEXT: usize = 8192;

/// How a model is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads; `None` for as many as there are processors.
    pub threads: Option<usize>,
    /// Most tokens of a sequence; `None` for the model's own context, up to 8192, or to where all its
    /// positions would get other angles (LongRoPE).
    pub context: Option<usize>,
    /// Sequences that there is room for.
    pub sequences: usize,
    /// How keys and values are kept.
    pub cache: CacheType,
    /// What products may round.
    pub precision: Precision,
    /// Most tokens that are computed together.
    pub prefill_block: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: None,
            context: None,
            sequences: 1,
            cache: CacheType::F16,
            precision: Precision::Int8,
            prefill_block: 256,
        }
    }
}

/// Tokens that a step appends to a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The sequence.
    pub sequence: usize,
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// Which logits are wanted.
    pub want: Want,
}

/// The tokens of a piece after which the next token's logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// None.
    None,
    /// The last.
    Last,
    /// All.
    All,
}

/// A loaded model with room for several sequences. Whoever generates owns it.
pub struct Decoder {
    spec: Spec,
    context: usize,
    weights: Weights,
    body: Plan,
    head: Plan,
    attentions: Vec<Attention>,
    body_work: Work,
    head_work: Work,
    pool: Pool,
    batch: Batch,
    /// Tokens in each sequence.
    lengths: Vec<usize>,
    /// What the head reads for each wanted token, and whose it is: piece and token.
    wanted: Vec<f32>,
    owners: Vec<(usize, usize)>,
}

impl Decoder {
    /// Loads a folder, a GGUF or a safetensors file.
    ///
    /// # Errors
    /// When it cannot be read, or is not a model that the runtime knows.
    pub fn load(path: &Path, options: &Options) -> Result<Self, RuntimeError> {
        Self::from_source(&Source::open(Arc::new(RealFs), path)?, options)
    }

    /// Loads an opened checkpoint.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_source(source: &Source, options: &Options) -> Result<Self, RuntimeError> {
        let spec = spec(source.config())?;
        let head = match &spec.head {
            Some(head) if spec.causal => head,
            _ => return Err(RuntimeError::NotCausal { family: spec.family }),
        };
        let asked = options.context.unwrap_or_else(|| usual_context(&spec)).max(1);
        let context = asked.min(spec.context);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(processors).max(1);
        let mut pool =
            Pool::new(threads).map_err(|error| RuntimeError::Threads { threads, error })?;
        let mut names = Names::default();
        let graphs = std::iter::once(&spec.embed).chain(&spec.blocks);
        let mut body = Plan::new(graphs, None, &mut names)?;
        let mut head =
            Plan::new(std::iter::once::<&Graph>(head), Some(spec.hidden_size), &mut names)?;
        let precision = options.precision;
        let weights = Weights::load(names, source, precision, context, &mut pool)?;
        weights.divide(&mut body, threads);
        weights.divide(&mut head, threads);
        let sequences = options.sequences.max(1);
        let attention = |op| Attention::new(op, options.cache, sequences, context);
        let attentions = body.attentions.iter().map(attention).collect::<Result<Vec<_>, _>>()?;
        let block = options.prefill_block.clamp(1, context).max(sequences);
        let body_work = Work::new(&body, &weights, &attentions, (block, context), precision);
        let head_rows = HEAD_ROWS.min(block);
        let head_work = Work::new(&head, &weights, &[], (head_rows, context), precision);
        Ok(Self {
            context,
            weights,
            body,
            head,
            attentions,
            body_work,
            head_work,
            pool,
            batch: Batch::default(),
            lengths: vec![0; sequences],
            wanted: Vec::with_capacity(sequences * spec.hidden_size),
            owners: Vec::with_capacity(sequences),
            spec,
        })
    }

    /// The model.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Tokens in the vocabulary: logits of a row.
    pub fn vocabulary(&self) -> usize {
        self.spec.vocab_size
    }

    /// Most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Sequences that there is room for.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Bytes of weights that a step with one token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token([&self.body, &self.head])
    }

    /// Bytes of all weights, as they are held.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Multiplications that a token of a prompt needs in linear layers, as if all were dense. The head
    /// is left out, which only the last one goes through.
    pub fn products_per_token(&self) -> usize {
        self.weights.multiplied(&self.body)
    }

    /// Bytes a second that the threads read of memory of the size that a step reads, measured.
    pub fn read_bandwidth(&mut self) -> f64 {
        let bytes = self.bytes_per_token();
        read_bandwidth(&mut self.pool, bytes, 10)
    }

    /// Tokens of a sequence.
    ///
    /// # Panics
    /// Here and in [`truncate`](Self::truncate): if there is no such sequence.
    pub fn length(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Forgets the tokens of a sequence from `length` on; 0 makes it empty.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        let tokens = &mut self.lengths[sequence];
        *tokens = length.min(*tokens);
    }

    /// Appends tokens to sequences, of which each may stand in one piece, and computes what follows.
    ///
    /// # Errors
    /// When a sequence is not there, or named twice, or has no room for its tokens, or a token is not
    /// in the vocabulary; then nothing is appended.
    pub fn step(&mut self, pieces: &[Piece<'_>]) -> Result<Logits<'_>, RuntimeError> {
        self.check(pieces)?;
        self.wanted.clear();
        self.owners.clear();
        self.batch.clear();
        for (index, piece) in pieces.iter().enumerate() {
            let mut tokens = piece.tokens;
            while !tokens.is_empty() {
                let room = self.body_work.capacity - self.batch.tokens.len();
                let (now, later) = tokens.split_at(room.min(tokens.len()));
                let first = piece.tokens.len() - tokens.len();
                self.append(index, piece, first, now);
                tokens = later;
                if self.batch.tokens.len() == self.body_work.capacity {
                    self.flush();
                }
            }
        }
        self.flush();
        Ok(Logits { decoder: self, next: 0, computed: 0..0 })
    }

    fn check(&self, pieces: &[Piece<'_>]) -> Result<(), RuntimeError> {
        for (index, piece) in pieces.iter().enumerate() {
            let (sequence, sequences) = (piece.sequence, self.sequences());
            let twice = pieces[..index].iter().any(|other| other.sequence == sequence);
            if sequence >= sequences || twice {
                return Err(RuntimeError::Sequence { sequence, sequences });
            }
            let tokens = self.lengths[sequence].saturating_add(piece.tokens.len());
            if tokens > self.context {
                return Err(RuntimeError::Context { sequence, tokens, context: self.context });
            }
            let vocab_size = self.vocabulary();
            if let Some(token) = piece.tokens.iter().find(|token| **token as usize >= vocab_size) {
                return Err(ModelError::Token { token: *token, vocab_size }.into());
            }
        }
        Ok(())
    }

    /// Adds tokens of a piece, of which `first` are done, to the batch.
    fn append(&mut self, index: usize, piece: &Piece<'_>, first: usize, tokens: &[u32]) {
        let row = self.batch.tokens.len();
        let length = &mut self.lengths[piece.sequence];
        self.batch.add(piece.sequence, *length, tokens);
        *length += tokens.len();
        for (offset, _) in tokens.iter().enumerate() {
            let wanted = match piece.want {
                Want::None => false,
                Want::Last => first + offset + 1 == piece.tokens.len(),
                Want::All => true,
            };
            if wanted {
                self.batch.wanted.push(row + offset);
                self.owners.push((index, first + offset));
            }
        }
    }

    /// Computes the batch, and keeps what the head will read of it.
    fn flush(&mut self) {
        let tokens = self.batch.tokens.len();
        if tokens == 0 {
            return;
        }
        let Self { body, body_work, weights, attentions, batch, pool, .. } = self;
        body_work.run(body, weights, attentions, batch, tokens, pool);
        for row in &batch.wanted {
            self.wanted.extend_from_slice(body_work.rows.row(body.output, *row));
        }
        self.batch.clear();
    }

    /// Computes the logits of wanted rows from `first` on; how many.
    fn run_head(&mut self, first: usize) -> usize {
        let width = self.spec.hidden_size;
        let rows = (self.owners.len() - first).min(self.head_work.capacity);
        let Self { head, head_work, weights, batch, pool, .. } = self;
        let values = &self.wanted[first * width..][..rows * width];
        head_work.rows.get_mut(0, rows).copy_from_slice(values);
        head_work.run(head, weights, &mut [], batch, rows, pool);
        rows
    }
}

/// The context where none is asked for.
fn usual_context(spec: &Spec) -> usize {
    let ops = spec.blocks.iter().flat_map(|block| &block.nodes);
    let short = ops.filter_map(|node| match &node.op {
        Op::Rope(rope) => rope.short_context(),
        _ => None,
    });
    short.min().map_or(DEFAULT_CONTEXT, |short| short.min(DEFAULT_CONTEXT))
}

/// The logits of a step, row by row; none are computed that are not asked for.
pub struct Logits<'a> {
    decoder: &'a mut Decoder,
    next: usize,
    /// Rows whose logits are in the head's buffers.
    computed: std::ops::Range<usize>,
}

/// Logits of the token after one.
#[derive(Debug, Clone, Copy)]
pub struct LogitRow<'a> {
    /// Index of the piece in the step.
    pub piece: usize,
    /// Index of the token in the piece.
    pub token: usize,
    /// One for each token of the vocabulary.
    pub logits: &'a [f32],
}

impl Logits<'_> {
    /// Rows that are left.
    pub fn len(&self) -> usize {
        self.decoder.owners.len() - self.next
    }

    /// Whether none are left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next row, in the order of the pieces and their tokens.
    #[expect(clippy::should_implement_trait, reason = "the row borrows this")]
    pub fn next(&mut self) -> Option<LogitRow<'_>> {
        if self.is_empty() {
            return None;
        }
        let row = self.next;
        if !self.computed.contains(&row) {
            self.computed = row..row + self.decoder.run_head(row);
        }
        self.next += 1;
        let (piece, token) = self.decoder.owners[row];
        let output = self.decoder.head.output;
        let logits = self.decoder.head_work.rows.row(output, row - self.computed.start);
        Some(LogitRow { piece, token, logits })
    }
}
