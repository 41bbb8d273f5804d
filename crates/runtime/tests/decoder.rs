//! The decoder on the tiny models of `testdata`, held to the float executor of `model`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should panic"
)]

use lapidary_formats::Source;
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Op, Precision as Products, Spec, spec};
use lapidary_runtime::{CacheType, Decoder, Options, Piece, Precision, RuntimeError, Want};
use lapidary_store::RealFs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn open(folder: &Path) -> (Source, Spec) {
    let source = Source::open(Arc::new(RealFs), folder).unwrap();
    let spec = spec(source.config()).unwrap();
    (source, spec)
}

/// The models that predict a next token.
fn causal() -> Vec<(PathBuf, Source, Spec)> {
    let all = models().into_iter().map(|folder| {
        let (source, spec) = open(&folder);
        (folder, source, spec)
    });
    let causal: Vec<_> = all.filter(|(_, _, spec)| spec.causal).collect();
    assert!(causal.len() >= 40, "the tiny models are missing");
    causal
}

/// Tokens that differ from sequence to sequence.
fn tokens(spec: &Spec, count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 7 + i * 13 + seed * 31 + 5) % spec.vocab_size) as u32).collect()
}

/// Logits after each token, by the float executor.
fn executor(source: &Source, spec: &Spec, tokens: &[u32]) -> Vec<Vec<f32>> {
    let executor = Executor::new(Fused { precision: Products::F32 });
    let batch = Batch { rows: 1, seq_len: tokens.len() };
    let mut x = executor.embed(spec, source, batch, tokens.into()).unwrap();
    for graph in spec.blocks.iter().chain(&spec.head) {
        let weights = GraphWeights::load(graph, source, executor.backend()).unwrap();
        x = executor.run(graph, &weights, batch, x, None).unwrap();
    }
    x.chunks_exact(spec.vocab_size).map(<[f32]>::to_vec).collect()
}

fn exact(sequences: usize, prefill_block: usize) -> Options {
    Options {
        threads: Some(2),
        sequences,
        prefill_block,
        cache: CacheType::F32,
        precision: Precision::Float,
        ..Options::default()
    }
}

/// Appends tokens to a sequence; the logits after each.
fn all(decoder: &mut Decoder, sequence: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut logits = decoder.step(&[Piece { sequence, tokens, want: Want::All }]).unwrap();
    assert_eq!(logits.len(), tokens.len());
    let mut rows = vec![];
    while let Some(row) = logits.next() {
        assert_eq!((row.piece, row.token), (0, rows.len()));
        rows.push(row.logits.to_vec());
    }
    rows
}

/// Within a tolerance that is relative to the largest value, where that is over 1.
#[track_caller]
fn near(have: &[Vec<f32>], want: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(have.len(), want.len());
    let pairs = have.iter().flatten().zip(want.iter().flatten());
    let largest =
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |a: f32, b| if b <= a { a } else { b });
    let size = want.iter().flatten().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(largest <= tolerance * size.max(1.0), "{what}: {largest} of {size}");
}

/// Length of the difference, relative to what it should be.
fn relative(have: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let pairs = have.iter().flatten().zip(want.iter().flatten());
    let error: f64 = pairs.map(|(have, want)| square(have - want)).sum();
    (error / want.iter().flatten().map(|want| square(*want)).sum::<f64>()).sqrt()
}

#[test]
fn logits_are_those_of_the_executor_in_blocks_and_one_by_one() {
    for (folder, source, spec) in causal() {
        let count = spec.context.min(40);
        let tokens = tokens(&spec, count, 0);
        let want = executor(&source, &spec, &tokens);
        for block in [7, 64] {
            // As many positions as the executor sees: what LongRoPE divides by depends on it.
            let options = Options { context: Some(count), ..exact(1, block) };
            let mut decoder = Decoder::from_source(&source, &options).unwrap();
            let have = all(&mut decoder, 0, &tokens);
            near(&have, &want, 1e-4, &format!("{} by {block}", folder.display()));
            assert_eq!(decoder.length(0), count);
            // Again from the middle, one by one.
            decoder.truncate(0, count / 2);
            for index in count / 2..count {
                let have = all(&mut decoder, 0, &tokens[index..=index]);
                near(&have, &want[index..=index], 1e-4, &format!("{} alone", folder.display()));
            }
        }
    }
}

/// LongRoPE gives all positions other angles where some lie beyond the first context.
#[test]
fn the_usual_context_ends_where_angles_would_change() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/phi3-longrope");
    let (source, spec) = open(&root);
    let mut decoder = Decoder::from_source(&source, &exact(1, 16)).unwrap();
    assert_eq!((decoder.context(), spec.context), (16, 64));
    let tokens = tokens(&spec, 16, 0);
    near(&all(&mut decoder, 0, &tokens), &executor(&source, &spec, &tokens), 1e-4, "within");
    let options = Options { context: Some(17), ..exact(1, 16) };
    let longer = all(&mut Decoder::from_source(&source, &options).unwrap(), 0, &tokens);
    assert!(relative(&longer, &executor(&source, &spec, &tokens)) > 1e-2, "as if it were short");
}

/// Whether a sequence is the same beside others: LongRoPE's angles are those of the longest of all.
fn alike((_, _, spec): &(PathBuf, Source, Spec)) -> bool {
    let mut ops = spec.blocks.iter().flat_map(|block| &block.nodes).map(|node| &node.op);
    !ops.any(|op| matches!(op, Op::Rope(rope) if rope.short_context().is_some()))
}

#[test]
fn sequences_do_not_see_each_other() {
    for (folder, source, spec) in causal().into_iter().filter(alike).step_by(4) {
        let (first, second) = (tokens(&spec, 20, 1), tokens(&spec, 13, 2));
        let want = [executor(&source, &spec, &first), executor(&source, &spec, &second)];
        let mut decoder = Decoder::from_source(&source, &exact(3, 16)).unwrap();
        // Pieces of different lengths together, cut by the block; then single tokens of both.
        let pieces = [
            Piece { sequence: 2, tokens: &first[..17], want: Want::Last },
            Piece { sequence: 0, tokens: &second[..10], want: Want::None },
        ];
        let mut logits = decoder.step(&pieces).unwrap();
        assert_eq!(logits.len(), 1);
        let row = logits.next().unwrap();
        assert_eq!((row.piece, row.token), (0, 16));
        near(&[row.logits.to_vec()], &want[0][16..17], 1e-4, &folder.display().to_string());
        for offset in 0..3 {
            let pieces = [
                Piece { sequence: 0, tokens: &second[10 + offset..11 + offset], want: Want::Last },
                Piece { sequence: 2, tokens: &first[17 + offset..18 + offset], want: Want::Last },
            ];
            let mut logits = decoder.step(&pieces).unwrap();
            for (piece, want) in [(0, &want[1][10 + offset]), (1, &want[0][17 + offset])] {
                let row = logits.next().unwrap();
                assert_eq!((row.piece, row.token), (piece, 0));
                near(&[row.logits.to_vec()], std::slice::from_ref(want), 1e-4, "together");
            }
            assert!(logits.next().is_none());
        }
        assert_eq!([0, 1, 2].map(|sequence| decoder.length(sequence)), [13, 0, 20]);
    }
}

#[test]
fn threads_do_not_change_the_bits() {
    let (_, source, spec) = causal().swap_remove(3);
    let tokens = tokens(&spec, 30, 4);
    for precision in [Precision::Float, Precision::Int16, Precision::Int8] {
        let run = |threads| {
            let options = Options { threads: Some(threads), precision, ..exact(1, 16) };
            all(&mut Decoder::from_source(&source, &options).unwrap(), 0, &tokens)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "{precision:?}");
    }
}

/// Only where a prompt is cut may show, because attention takes few queries otherwise than many.
#[test]
fn who_shares_a_batch_does_not_change_the_bits() {
    for (folder, source, spec) in causal().into_iter().filter(alike).step_by(3) {
        for precision in [Precision::Float, Precision::Int16] {
            let options = Options { precision, cache: CacheType::F16, ..exact(3, 64) };
            let [mut alone, mut together] =
                [(); 2].map(|()| Decoder::from_source(&source, &options).unwrap());
            let of = [5, 9, 14].map(|count| tokens(&spec, count, count));
            // All but three tokens; then those one by one.
            for left in [3, 2, 1, 0] {
                let pieces = [0, 1, 2].map(|sequence| {
                    let end = of[sequence].len() - left;
                    let first = if left == 3 { 0 } else { end - 1 };
                    Piece { sequence, tokens: &of[sequence][first..end], want: Want::All }
                });
                let mut logits = together.step(&pieces).unwrap();
                for piece in &pieces {
                    for row in all(&mut alone, piece.sequence, piece.tokens) {
                        let is_same = logits.next().unwrap().logits == row;
                        assert!(is_same, "{precision:?} {} {left}", folder.display());
                    }
                }
            }
        }
    }
}

#[test]
fn narrow_caches_move_logits_a_little() {
    let (_, source, spec) = causal().swap_remove(0);
    let tokens = tokens(&spec, 40, 6);
    let want = executor(&source, &spec, &tokens);
    for (cache, most) in [(CacheType::F16, 0.003), (CacheType::Int8, 0.03), (CacheType::Int4, 0.3)]
    {
        let options = Options { cache, ..exact(1, 64) };
        let have = all(&mut Decoder::from_source(&source, &options).unwrap(), 0, &tokens);
        let error = relative(&have, &want);
        assert!(error > 0.0 && error < most, "{cache:?}: {error}");
    }
}

#[test]
fn rounded_activations_cost_less_than_a_percent() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    let (source, spec) = open(&folder);
    let tokens = tokens(&spec, 64, 8);
    let want = executor(&source, &spec, &tokens);
    for (precision, cache, most) in [
        (Precision::Int8, CacheType::F32, 0.007),
        (Precision::Int8, CacheType::F16, 0.007),
        (Precision::Int16, CacheType::F32, 0.0005),
        (Precision::Int16, CacheType::F16, 0.001),
    ] {
        let options = Options { cache, precision, ..exact(1, 64) };
        let mut decoder = Decoder::from_source(&source, &options).unwrap();
        let together = all(&mut decoder, 0, &tokens);
        decoder.truncate(0, 0);
        let alone: Vec<Vec<f32>> =
            tokens.iter().map(|token| all(&mut decoder, 0, &[*token]).remove(0)).collect();
        for have in [together, alone] {
            let error = relative(&have, &want);
            assert!(error < most, "{precision:?} {cache:?}: {error}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (_, source, spec) = causal().swap_remove(0);
    let options = Options { context: Some(8), ..exact(2, 4) };
    let mut decoder = Decoder::from_source(&source, &options).unwrap();
    let tokens = tokens(&spec, 9, 0);
    let piece = |sequence, tokens| Piece { sequence, tokens, want: Want::Last };
    let outside = [spec.vocab_size as u32];
    let refuse = |decoder: &mut Decoder, pieces: &[Piece<'_>]| match decoder.step(pieces) {
        Ok(_) => panic!("a step that must be refused"),
        Err(error) => error,
    };
    assert!(matches!(
        refuse(&mut decoder, &[piece(0, &tokens[..2]), piece(1, &tokens)]),
        RuntimeError::Context { sequence: 1, tokens: 9, context: 8 }
    ));
    let twice = [piece(0, &tokens[..1]), piece(0, &tokens[..1])];
    assert!(matches!(refuse(&mut decoder, &twice), RuntimeError::Sequence { .. }));
    let missing = [piece(2, &tokens[..1])];
    assert!(matches!(refuse(&mut decoder, &missing), RuntimeError::Sequence { .. }));
    assert!(matches!(refuse(&mut decoder, &[piece(0, &outside)]), RuntimeError::Model(_)));
    assert_eq!((decoder.length(0), decoder.length(1)), (0, 0));
    assert_eq!(decoder.step(&[piece(0, &[])]).unwrap().len(), 0);
    assert_eq!(decoder.step(&[piece(0, &tokens[..8])]).unwrap().len(), 1);
}

#[test]
fn encoders_are_refused() {
    for folder in models() {
        let (source, spec) = open(&folder);
        if !spec.causal {
            let refused = Decoder::from_source(&source, &Options::default()).err().unwrap();
            assert!(matches!(refused, RuntimeError::NotCausal { .. }), "{refused}");
        }
    }
}
