//! The attentions of a plan: their caches, and which kernel takes which tokens.

use crate::RuntimeError;
use crate::work::Batch;
use lapidary_kernels::attention::{
    CacheType, CachedQuery, CachedShape, KeyValues, Partials, attend, attend_block,
};
use lapidary_kernels::matrix;
use lapidary_kernels::pool::Pool;
use lapidary_kernels::rows::RowBuffers;
use lapidary_model::AttentionOp;

/// One attention of the model, with the keys and values of all sequences.
pub(crate) struct Attention {
    shape: CachedShape,
    caches: Vec<KeyValues>,
}

/// The buffers of an attention.
pub(crate) struct Buffers {
    pub(crate) q: usize,
    pub(crate) k: usize,
    pub(crate) v: usize,
    pub(crate) to: usize,
}

impl Attention {
    pub(crate) fn new(
        op: &AttentionOp,
        cache: CacheType,
        sequences: usize,
        context: usize,
    ) -> Result<Self, RuntimeError> {
        if !op.causal {
            return Err(RuntimeError::Unsupported("its positions see those after them".to_owned()));
        }
        if !op.head_dim.is_multiple_of(2) {
            let what = format!("its heads are {} wide, an odd number", op.head_dim);
            return Err(RuntimeError::Unsupported(what));
        }
        let AttentionOp { heads, kv_heads, head_dim, scale, soft_cap, window, .. } = *op;
        let shape = CachedShape { heads, kv_heads, head_dim, scale, soft_cap, window };
        let one = |_| KeyValues::new(cache, kv_heads, head_dim, context);
        Ok(Self { shape, caches: (0..sequences).map(one).collect() })
    }

    pub(crate) fn partials(&self, context: usize) -> Partials {
        Partials::new(&self.shape, 1, context)
    }

    /// Takes in the keys and values of a batch, and attends to all there are.
    pub(crate) fn run(
        &mut self,
        pool: &mut Pool,
        precision: matrix::Precision,
        rows: &mut RowBuffers,
        buffers: &Buffers,
        batch: &Batch,
        partials: &mut Partials,
    ) {
        let CachedShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let tokens = batch.tokens.len();
        for span in &batch.spans {
            let part = span.row * kv_width..(span.row + span.count) * kv_width;
            let k = &rows.get(buffers.k, tokens)[part.clone()];
            let v = &rows.get(buffers.v, tokens)[part];
            self.caches[span.sequence].put(pool, span.position, k, v);
        }
        let (out, [q]) = rows.write(buffers.to, [buffers.q], tokens);
        let caches = &self.caches;
        let single = |index: usize| {
            let (row, sequence) = batch.singles[index];
            CachedQuery { row, cache: &caches[sequence], position: batch.positions[row] }
        };
        attend(pool, &self.shape, batch.singles.len(), single, q, out, partials);
        for span in batch.spans.iter().filter(|span| span.is_block()) {
            let part = span.row * width..(span.row + span.count) * width;
            let (q, out) = (&q[part.clone()], &mut out[part]);
            let cache = &caches[span.sequence];
            attend_block(pool, &self.shape, precision, cache, span.position, q, out);
        }
    }
}
