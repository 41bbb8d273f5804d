//! Attention over a cache against attention over rows of keys and values, at every level of
//! instructions.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::numbers;
use lapidary_kernels::attention::{
    AttentionShape, CacheType, CachedQuery, CachedShape, KeyValues, Partials, attend_block_with,
    attend_with, attention_with,
};
use lapidary_kernels::isa::Isa;
use lapidary_kernels::matrix::Precision;
use lapidary_kernels::pool::Pool;
use proptest::prelude::*;

struct Case {
    shape: CachedShape,
    seq: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// What the attention over rows gives for each position.
    want: Vec<f32>,
}

impl Case {
    fn new(kv_heads: usize, group: usize, head_dim: usize, seq: usize, window: usize) -> Self {
        let heads = kv_heads * group;
        let window = (window > 0).then_some(window);
        let scale = (head_dim as f32).powf(-0.5);
        // Every other case is capped, so low that it shows.
        let soft_cap = (seq % 2 == 1).then_some(0.7);
        let shape = CachedShape { heads, kv_heads, head_dim, scale, soft_cap, window };
        let q = numbers(seq * heads * head_dim, 1);
        let k = numbers(seq * kv_heads * head_dim, 2);
        let v = numbers(seq * kv_heads * head_dim, 3);
        let rows = AttentionShape {
            batch: 1,
            seq,
            heads,
            kv_heads,
            head_dim,
            scale,
            soft_cap,
            causal: true,
            window,
        };
        let mut want = vec![0.0; q.len()];
        attention_with(Isa::Portable, &rows, Precision::F32, &q, &k, &v, &mut want);
        Self { shape, seq, q, k, v, want }
    }

    fn cache(&self, pool: &mut Pool, kind: CacheType) -> KeyValues {
        let mut cache =
            KeyValues::new(kind, self.shape.kv_heads, self.shape.head_dim, self.seq + 5);
        let width = self.shape.kv_heads * self.shape.head_dim;
        // What a longer sequence left behind must not matter, whatever it is.
        let stale = vec![f32::NAN; width];
        cache.put(pool, cache.capacity() - 1, &stale, &stale);
        cache.put(pool, 0, &self.k, &self.v);
        cache
    }

    /// Each position on its own.
    fn one_by_one(&self, isa: Isa, pool: &mut Pool, cache: &KeyValues) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        let mut partials = Partials::new(&self.shape, 1, self.seq);
        // Some alone, then the others together.
        for queries in [self.seq / 3..self.seq / 3 + 1, 0..self.seq / 3, self.seq / 3 + 1..self.seq]
        {
            let query = |index| {
                let row = queries.start + index;
                CachedQuery { row, cache, position: row }
            };
            let (q, count) = (&self.q, queries.len());
            attend_with(isa, pool, &self.shape, count, query, q, &mut out, &mut partials);
        }
        out
    }

    /// In blocks that begin where `cuts` says.
    fn in_blocks(
        &self,
        isa: Isa,
        pool: &mut Pool,
        cache: &KeyValues,
        precision: Precision,
        cut: usize,
    ) -> Vec<f32> {
        let width = self.shape.heads * self.shape.head_dim;
        let mut out = vec![f32::NAN; self.q.len()];
        let cut = cut.min(self.seq);
        for range in [0..cut, cut..self.seq] {
            let at = range.start * width..range.end * width;
            let (q, out) = (&self.q[at.clone()], &mut out[at]);
            attend_block_with(isa, pool, &self.shape, precision, cache, range.start, q, out);
        }
        out
    }
}

fn relative(have: &[f32], want: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    let error = square(&mut have.iter().zip(want).map(|(a, b)| a - b));
    (error / square(&mut want.iter().copied())).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_cache_of_floats_gives_what_rows_give(
        kv_heads in 1_usize..4,
        group in 1_usize..4,
        half in 1_usize..40,
        seq in 1_usize..600,
        window in prop_oneof![Just(0_usize), 1_usize..300],
        cut in 0_usize..600,
    ) {
        let case = Case::new(kv_heads, group, 2 * half, seq, window);
        let cache = case.cache(&mut Pool::new(1).unwrap(), CacheType::F32);
        for isa in Isa::available() {
            let mut pool = Pool::new(3).unwrap();
            let alone = case.one_by_one(isa, &mut Pool::new(1).unwrap(), &cache);
            prop_assert!(relative(&alone, &case.want) < 1e-5, "{:?}", isa);
            prop_assert_eq!(&alone, &case.one_by_one(isa, &mut pool, &cache));
            let blocks = case.in_blocks(isa, &mut pool, &cache, Precision::F32, cut);
            prop_assert!(relative(&blocks, &case.want) < 1e-5, "{:?}", isa);
            let rounded = case.in_blocks(isa, &mut pool, &cache, Precision::Bf16, cut);
            prop_assert!(relative(&rounded, &case.want) < 0.01, "{:?}", isa);
        }
    }
}

#[test]
fn narrow_caches_lose_what_their_type_loses() {
    let case = Case::new(2, 3, 64, 300, 0);
    let mut pool = Pool::new(2).unwrap();
    for (kind, most) in [(CacheType::F16, 1e-3), (CacheType::Int8, 0.01), (CacheType::Int4, 0.12)] {
        let cache = case.cache(&mut pool, kind);
        let alone = case.one_by_one(Isa::detect(), &mut pool, &cache);
        let blocks = case.in_blocks(Isa::detect(), &mut pool, &cache, Precision::F32, 100);
        let error = relative(&alone, &case.want);
        assert!(error > 1e-6 && error < most, "{kind:?}: {error}");
        assert!(relative(&blocks, &alone) < 1e-5, "{kind:?}");
    }
}
