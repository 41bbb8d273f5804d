//! What calibration runs on: rows of tokens from a text, a JSONL of texts, ready-made rows, or the
//! mixed text in the binary. Methods never see where rows come from.

use crate::EngineError;
use crate::recipe::{BUILTIN_TEXT, Calibration};
use lapidary_formats::Source;
use lapidary_kernels::random::mix;
use lapidary_methods::Note;
use lapidary_store::fs::read_lines;
use lapidary_store::{Checkpoint, Dtype, Fs, TensorInfo, Tokenizer, hash};
use std::path::Path;
use std::sync::Arc;

/// Public-domain prose and text of our own, of many kinds; `assets/README.md` has the origins.
const BUILTIN: &str = include_str!("../../../assets/calibration/mixed.txt");

/// Bytes of a text file that are read at the most; calibration needs far less.
const MOST_TEXT: u64 = 1 << 26;

/// Rows of tokens, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The tokens, row after row.
    pub tokens: Vec<u32>,
    /// Tokens of a row.
    pub seq_len: usize,
    /// What departs from what was asked.
    pub notes: Vec<Note>,
}

impl Rows {
    /// How many.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.seq_len.max(1)
    }

    /// SHA-256 of the tokens, which identifies them whatever file they came from.
    pub fn sha256(&self) -> String {
        let bytes: Vec<u8> = self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        hash::sha256(&bytes)
    }
}

/// The tokenizer of a checkpoint.
///
/// # Errors
/// When it has none of the kind that can be read.
pub fn tokenizer(source: &Source) -> Result<Tokenizer, EngineError> {
    if !source.files().iter().any(|file| file.name == "tokenizer.json") {
        return Err(EngineError::BadInput(
            "the checkpoint has no tokenizer.json, which calibration and evaluation need; save the \
             model's fast tokenizer beside it (transformers: AutoTokenizer.from_pretrained(…)\
             .save_pretrained(FOLDER))"
                .to_owned(),
        ));
    }
    Ok(Tokenizer::from_json(&source.read_file("tokenizer.json")?, "tokenizer.json")?)
}

/// Gathers the rows that a recipe asks for; rows are never longer than `context`.
///
/// # Errors
/// When a file cannot be read or holds nothing usable.
pub fn rows(
    fs: &Arc<dyn Fs>,
    source: &Source,
    calibration: &Calibration,
    context: usize,
    seed: u64,
) -> Result<Rows, EngineError> {
    let mut notes = vec![];
    let mut seq_len = calibration.seq_len;
    if seq_len > context {
        notes.push(Note::fact(format!(
            "rows have {context} tokens, the model's context, instead of {seq_len}"
        )));
        seq_len = context;
    }
    let path = Path::new(&calibration.text);
    if is_ready(path) {
        return ready_rows(fs, path, calibration.samples, notes);
    }
    let tokenizer = tokenizer(source)?;
    let frame = Frame::of(&tokenizer)?;
    let inner = seq_len.saturating_sub(frame.before.len() + frame.after.len());
    if inner == 0 {
        let what =
            format!("calibration.seq_len {seq_len} leaves no room beside the special tokens");
        return Err(EngineError::Refused(what));
    }
    let tokens = if calibration.text == BUILTIN_TEXT {
        tokens_of(BUILTIN, &tokenizer)?
    } else {
        let (text, is_cut) = read_lines(&**fs, path, "the calibration text", MOST_TEXT)?;
        if is_cut {
            let bytes = text.len();
            notes.push(Note::fact(format!(
                "of the calibration text the first {bytes} bytes were read, up to a line's end"
            )));
        }
        tokens_of_file(&text, path, &tokenizer)?
    };
    let mut samples = calibration.samples;
    if tokens.len() / inner < samples {
        let available = tokens.len() / inner;
        if available == 0 {
            let what = format!(
                "{}: {} tokens do not make one row of {seq_len}; use a longer text or a smaller \
                 --seq-len",
                calibration.text,
                tokens.len()
            );
            return Err(EngineError::BadInput(what));
        }
        notes.push(Note::fallback(format!(
            "the calibration text has {available} rows of {seq_len} tokens, fewer than the {samples} \
             asked for"
        )));
        samples = available;
    }
    let mut rows = vec![];
    for start in starts(tokens.len(), inner, samples, seed) {
        rows.extend_from_slice(&frame.before);
        rows.extend_from_slice(&tokens[start..start + inner]);
        rows.extend_from_slice(&frame.after);
    }
    Ok(Rows { tokens: rows, seq_len, notes })
}

/// Starts of `samples` rows spread over the text: one in each of as many equal parts, so that all
/// kinds of text in it are met; a seed other than 0 moves each within its part.
fn starts(tokens: usize, length: usize, samples: usize, seed: u64) -> Vec<usize> {
    let part = tokens / samples;
    let slack = part - length.min(part);
    let jitter = |row: usize| match seed {
        0 => 0,
        _ => (mix(seed ^ mix(row as u64 + 1)) % (slack as u64 + 1)) as usize,
    };
    (0..samples).map(|row| row * part + jitter(row)).collect()
}

/// Special tokens that the tokenizer puts around every text, and so around every row.
struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Frame {
    fn of(tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        // Around a letter, so that tokens before and after it can be told apart.
        let bare = tokenizer.encode("a", false)?;
        let framed = tokenizer.encode("a", true)?;
        let at = framed.windows(bare.len().max(1)).position(|window| window == bare);
        Ok(match at {
            Some(at) => {
                Self { before: framed[..at].to_vec(), after: framed[at + bare.len()..].to_vec() }
            }
            None => Self { before: vec![], after: vec![] },
        })
    }
}

/// Tokens of a text, piece by piece: a tokenizer takes a hundred bytes for each of a text until it is
/// done with it. Pieces end where a line does and the next begins with no space, where hardly any
/// tokenizer has a token across.
fn tokens_of(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, EngineError> {
    let mut tokens = vec![];
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, next) = rest.split_at(piece_end(rest));
        tokens.extend(tokenizer.encode(piece, false)?);
        rest = next;
    }
    Ok(tokens)
}

/// Bytes of a piece of text, at least.
const PIECE_BYTES: usize = 1 << 15;

/// Where the first piece of a text ends.
fn piece_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends_line = |at: &usize| bytes[at - 1] == b'\n' && !bytes[*at].is_ascii_whitespace();
    (PIECE_BYTES..bytes.len()).find(ends_line).unwrap_or(bytes.len())
}

/// Tokens of the content of a text file, or of the texts of a JSONL file one after another.
fn tokens_of_file(text: &str, path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, EngineError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !["jsonl", "ndjson"].contains(&extension) {
        return tokens_of(text, tokenizer);
    }
    let mut tokens = vec![];
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: &str| {
            EngineError::BadInput(format!("{}: line {}: {what}", path.display(), number + 1))
        };
        let value: serde_json::Value = serde_json::from_str(line)
            .map_err(|error| wrong(&format!("column {}: this is not JSON", error.column())))?;
        let text = value.get("text").and_then(serde_json::Value::as_str);
        let text = text.ok_or_else(|| wrong("each line is an object with a string under text"))?;
        tokens.extend(tokenizer.encode(text, false)?);
    }
    Ok(tokens)
}

/// Rows and tokens of a row that a recipe will get; for rows made elsewhere the file says.
///
/// # Errors
/// When that file cannot be read or holds nothing usable.
pub(crate) fn shape(
    fs: &Arc<dyn Fs>,
    calibration: &Calibration,
    context: usize,
) -> Result<(usize, usize), EngineError> {
    let path = Path::new(&calibration.text);
    if !is_ready(path) {
        return Ok((calibration.samples, calibration.seq_len.min(context)));
    }
    let (_, _, [rows, seq_len]) = open_ready(fs, path)?;
    Ok((rows.min(calibration.samples), seq_len))
}

/// Whether a file holds rows of tokens, and not text.
pub(crate) fn is_ready(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// The file of ready rows, its tensor, and the tensor's shape.
fn open_ready(
    fs: &Arc<dyn Fs>,
    path: &Path,
) -> Result<(Checkpoint, TensorInfo, [usize; 2]), EngineError> {
    let file = Checkpoint::open(Arc::clone(fs), path)?;
    let wrong = |what: &str| EngineError::BadInput(format!("{}: input_ids {what}", path.display()));
    let info = file.get("input_ids").ok_or_else(|| wrong("is missing"))?.clone();
    let &[rows, seq_len] = &info.shape[..] else { return Err(wrong("is not [rows, tokens]")) };
    Ok((file, info, [rows, seq_len]))
}

/// Rows that were made elsewhere: a safetensors file with `input_ids`, `[rows, tokens]` of I64 or I32.
fn ready_rows(
    fs: &Arc<dyn Fs>,
    path: &Path,
    samples: usize,
    mut notes: Vec<Note>,
) -> Result<Rows, EngineError> {
    let wrong = |what: &str| EngineError::BadInput(format!("{}: input_ids {what}", path.display()));
    let (file, info, [rows, seq_len]) = open_ready(fs, path)?;
    let bytes = file.read(&info)?;
    let tokens: Option<Vec<u32>> = match info.dtype {
        Dtype::I64 => {
            bytes.as_chunks().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).ok()).collect()
        }
        Dtype::I32 => {
            bytes.as_chunks().0.iter().map(|b| u32::try_from(i32::from_le_bytes(*b)).ok()).collect()
        }
        _ => return Err(wrong("is neither I64 nor I32")),
    };
    let mut tokens = tokens.ok_or_else(|| wrong("holds a negative token"))?;
    if rows < samples {
        notes.push(Note::fallback(format!(
            "the file has {rows} rows, fewer than the {samples} asked for"
        )));
    }
    tokens.truncate(samples.min(rows) * seq_len);
    if tokens.is_empty() {
        return Err(wrong("has no tokens"));
    }
    Ok(Rows { tokens, seq_len, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_a_line_and_make_up_the_text() {
        let text = "word word\n\n  word é\nword ".repeat(20_000);
        let (mut rest, mut pieces) = (text.as_str(), vec![]);
        while !rest.is_empty() {
            let (piece, next) = rest.split_at(piece_end(rest));
            pieces.push(piece);
            rest = next;
        }
        assert!(pieces.len() > 4 && pieces.concat() == text);
        assert!(pieces[1..].iter().all(|piece| piece.starts_with("word ")));
        assert_eq!(piece_end("one line without an end"), 23);
    }

    #[test]
    fn rows_are_spread_over_the_text_and_never_leave_it() {
        assert_eq!(starts(100, 10, 5, 0), [0, 20, 40, 60, 80]);
        for seed in 1..50 {
            let starts = starts(103, 10, 7, seed);
            assert!(starts.windows(2).all(|pair| pair[0] + 10 <= pair[1]), "{starts:?}");
            assert!(starts[6] + 10 <= 103);
        }
        assert_ne!(starts(1000, 10, 7, 1), starts(1000, 10, 7, 2));
        assert_eq!(starts(10, 10, 1, 3), [0]);
    }
}
