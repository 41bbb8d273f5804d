//! Decoding allocates nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use lapidary_runtime::{CacheType, Decoder, Options, Piece, Precision, Want};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::path::Path;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_token_allocates_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let precisions = [Precision::Float, Precision::Int16, Precision::Int8];
    for (model, precision) in ["assets/demo", "testdata/models/mixtral"]
        .iter()
        .flat_map(|model| precisions.map(|precision| (root.join(model), precision)))
    {
        for cache in [CacheType::F32, CacheType::F16, CacheType::Int8, CacheType::Int4] {
            // One thread, since another would set up its own room whenever it first gets a unit.
            let options =
                Options { threads: Some(1), sequences: 2, cache, precision, ..Options::default() };
            let mut decoder = Decoder::load(&model, &options).unwrap();
            let prompt: Vec<u32> = (0..40).collect();
            let step = |decoder: &mut Decoder, tokens: &[u32]| {
                let pieces = [
                    Piece { sequence: 1, tokens, want: Want::Last },
                    Piece { sequence: 0, tokens: &tokens[..1], want: Want::Last },
                ];
                let mut logits = decoder.step(&pieces).unwrap();
                assert!(logits.next().unwrap().logits.iter().all(|logit| logit.is_finite()));
                assert!(logits.next().is_some());
            };
            step(&mut decoder, &prompt);
            step(&mut decoder, &[5]);
            let region = Region::new(ALLOCATOR);
            for token in 0..20 {
                step(&mut decoder, &[token]);
            }
            let change = region.change();
            assert_eq!(change.allocations + change.reallocations, 0, "{precision:?} {cache:?}");
        }
    }
}
