//! `general.file_type`: which of the mixtures that llama.cpp's quantizer makes a file is.
//!
//! A mixture has a type for most layers, others for those that lose most, and takes blocks of 32 columns
//! where those of 256 do not divide a row. So a file is compared, layer by layer, with what the quantizer
//! would have chosen for each mixture, and is called after the one that agrees in most weights.

use lapidary_store::GgmlType::{self, *};
use lapidary_store::TensorSpec;

/// The mixtures, as llama.cpp numbers them: their type, and which of several of that type. Of those that
/// agree as well the first counts.
const MIXTURES: [(u32, GgmlType, Kind); 23] = [
    (0, F32, Kind::Plain),
    (1, F16, Kind::Plain),
    (32, BF16, Kind::Plain),
    (2, Q4_0, Kind::Plain),
    (3, Q4_1, Kind::Plain),
    (8, Q5_0, Kind::Plain),
    (9, Q5_1, Kind::Plain),
    (7, Q8_0, Kind::Plain),
    (10, Q2_K, Kind::Medium),
    (21, Q2_K, Kind::Small),
    (11, Q3_K, Kind::Small),
    (12, Q3_K, Kind::Medium),
    (13, Q3_K, Kind::Large),
    (15, Q4_K, Kind::Medium),
    (14, Q4_K, Kind::Small),
    (17, Q5_K, Kind::Medium),
    (16, Q5_K, Kind::Small),
    (18, Q6_K, Kind::Plain),
    (25, IQ4_NL, Kind::Medium),
    (30, IQ4_XS, Kind::Medium),
    (36, TQ1_0, Kind::Plain),
    (37, TQ2_0, Kind::Plain),
    (38, MXFP4, Kind::Plain),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Small,
    Medium,
    Large,
}

/// The number of the mixture; `group` heads share a head of keys and values. Tensors have the names and
/// shapes of the file.
pub(super) fn file_type(tensors: &[TensorSpec], group: usize) -> u32 {
    let layers: Vec<Layer<'_>> = tensors.iter().filter_map(Layer::of).collect();
    let model = Model {
        blocks: layers.iter().map(|layer| layer.block + 1).max().unwrap_or(0),
        experts: layers.iter().map(|layer| layer.experts).max().unwrap_or(0),
        group,
    };
    let agreement = |(_, base, kind): &(u32, GgmlType, Kind)| -> usize {
        let agrees = |layer: &&Layer<'_>| layer.chosen(*base, *kind, &model) == layer.found;
        layers.iter().filter(agrees).map(|layer| layer.weights).sum()
    };
    // The last of the largest is what `max_by_key` takes.
    MIXTURES.iter().rev().max_by_key(|mixture| agreement(mixture)).map_or(0, |(number, ..)| *number)
}

struct Model {
    blocks: usize,
    experts: usize,
    group: usize,
}

/// A layer of a block.
struct Layer<'a> {
    block: usize,
    /// Its name in the block.
    name: &'a str,
    cols: usize,
    weights: usize,
    experts: usize,
    found: GgmlType,
}

impl<'a> Layer<'a> {
    /// Routers are never quantized, and so tell nothing.
    fn of(tensor: &'a TensorSpec) -> Option<Self> {
        let (block, name) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
        let name = name.strip_suffix(".weight")?;
        let (experts, cols) = match tensor.shape[..] {
            [_, cols] => (0, cols),
            [experts, _, cols] => (experts, cols),
            _ => return None,
        };
        (name != "ffn_gate_inp").then_some(Self {
            block: block.parse().ok()?,
            name,
            cols,
            weights: tensor.shape.iter().product(),
            experts,
            found: tensor.dtype.to_ggml()?,
        })
    }

    /// What the quantizer would choose.
    fn chosen(&self, base: GgmlType, kind: Kind, model: &Model) -> GgmlType {
        let (block, blocks) = (self.block, model.blocks);
        let eighth = blocks / 8;
        let more_bits = block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2;
        let (is_shared, of_eight) = (model.group >= 4, model.experts == 8);
        let wanted = match (self.name, base, kind) {
            ("attn_v" | "attn_k", _, kind) if of_eight && kind != Kind::Plain => Q8_0,
            ("attn_v" | "attn_qkv", Q2_K, Kind::Medium) if is_shared => Q4_K,
            ("attn_v" | "attn_qkv", Q2_K, Kind::Medium) => Q3_K,
            ("attn_v" | "attn_qkv", Q2_K, _) if is_shared => Q4_K,
            ("attn_v" | "attn_qkv", Q3_K, Kind::Medium) if block < 2 => Q5_K,
            ("attn_v" | "attn_qkv", Q3_K, Kind::Medium) => Q4_K,
            ("attn_v" | "attn_qkv", Q3_K, Kind::Large) => Q5_K,
            ("attn_v" | "attn_qkv", IQ4_NL | IQ4_XS, _) if is_shared => Q5_K,
            ("attn_v" | "attn_qkv" | "ffn_down" | "ffn_down_exps", Q4_K | Q5_K, Kind::Medium)
                if more_bits =>
            {
                Q6_K
            }
            ("attn_v" | "attn_qkv", Q4_K, Kind::Small) if block < 4 => Q5_K,
            ("ffn_down" | "ffn_down_exps", Q2_K, Kind::Medium) => Q3_K,
            ("ffn_down" | "ffn_down_exps", Q2_K, _) if block < blocks / 8 => Q4_K,
            ("ffn_down" | "ffn_down_exps", Q3_K, Kind::Medium) if block < blocks / 16 => Q5_K,
            ("ffn_down" | "ffn_down_exps", Q3_K, Kind::Medium) => Q4_K,
            ("ffn_down" | "ffn_down_exps", Q3_K, Kind::Large) => Q5_K,
            ("ffn_down" | "ffn_down_exps", IQ4_NL | IQ4_XS, _) if block < blocks / 8 => Q5_K,
            ("ffn_down" | "ffn_down_exps", Q4_K, Kind::Small) if block < blocks / 8 => Q5_K,
            ("attn_output", Q2_K | Q3_K | Q4_K | IQ4_NL | IQ4_XS, Kind::Small | Kind::Medium)
                if of_eight =>
            {
                Q5_K
            }
            ("attn_output", Q2_K, Kind::Medium) => Q3_K,
            ("attn_output", Q3_K, Kind::Medium) => Q4_K,
            ("attn_output", Q3_K, Kind::Large) => Q5_K,
            (_, MXFP4, _) if model.experts > 0 && self.experts == 0 => Q8_0,
            _ => base,
        };
        self.that_divides(wanted)
    }

    /// What takes the place of blocks that do not divide a row.
    fn that_divides(&self, wanted: GgmlType) -> GgmlType {
        let instead = match wanted {
            IQ4_XS => IQ4_NL,
            Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
            Q4_K => Q5_0,
            Q5_K => Q5_1,
            Q6_K => Q8_0,
            F32 | F16 | BF16 => return wanted,
            plain => plain,
        };
        let columns = if instead == wanted { 32 } else { 256 };
        match (self.cols.is_multiple_of(columns), self.cols.is_multiple_of(32)) {
            (true, _) => wanted,
            (_, true) => instead,
            _ => F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_store::Dtype;

    /// Layers of a model of the shapes of SmolLM2-135M, or another width, with the types that the
    /// quantizer chose (read from files it made).
    fn model(
        width: usize,
        down: usize,
        chosen: impl Fn(usize, &str) -> GgmlType,
    ) -> Vec<TensorSpec> {
        let layers = |block: usize| {
            let names = [
                ("attn_q", width, width),
                ("attn_k", width / 3, width),
                ("attn_v", width / 3, width),
                ("attn_output", width, width),
                ("ffn_gate", down, width),
                ("ffn_up", down, width),
                ("ffn_down", width, down),
            ];
            names.map(|(name, rows, cols)| (format!("blk.{block}.{name}.weight"), name, rows, cols))
        };
        let spec = |(block, (full, name, rows, cols)): (usize, (String, &str, usize, usize))| {
            TensorSpec::new(full, Dtype::from_ggml(chosen(block, name)), [rows, cols])
        };
        (0..30).flat_map(|block| layers(block).map(|layer| (block, layer))).map(spec).collect()
    }

    const MORE: [usize; 15] = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29, 29];

    #[test]
    fn a_mixture_is_known_where_most_of_it_fell_back() {
        let q4_k_m = |block: usize, name: &str| match name {
            "attn_v" if MORE.contains(&block) => Q8_0,
            "ffn_down" if MORE.contains(&block) => Q6_K,
            "ffn_down" => Q4_K,
            _ => Q5_0,
        };
        assert_eq!(file_type(&model(576, 1536, q4_k_m), 3), 15);
        let q4_k_s = |block: usize, name: &str| match name {
            "attn_v" if block < 4 => Q5_1,
            "ffn_down" if block < 3 => Q5_K,
            "ffn_down" => Q4_K,
            _ => Q5_0,
        };
        assert_eq!(file_type(&model(576, 1536, q4_k_s), 3), 14);
        let q3_k_m = |block: usize, name: &str| match name {
            "attn_v" if block < 2 => Q5_1,
            "attn_v" | "attn_output" => Q5_0,
            "ffn_down" if block < 1 => Q5_K,
            "ffn_down" => Q4_K,
            _ => Q4_0,
        };
        assert_eq!(file_type(&model(576, 1536, q3_k_m), 3), 12);
        assert_eq!(
            file_type(&model(576, 1536, |_, name| if name == "ffn_down" { Q6_K } else { Q8_0 }), 3),
            18
        );
    }

    #[test]
    fn one_type_throughout_is_that_type() {
        let all = |dtype: GgmlType| file_type(&model(768, 1536, |_, _| dtype), 3);
        let wanted = [(F32, 0), (F16, 1), (BF16, 32), (Q4_0, 2), (Q4_1, 3), (Q5_0, 8), (Q5_1, 9)];
        for (dtype, number) in wanted.into_iter().chain([(Q8_0, 7), (Q6_K, 18), (Q3_K, 11)]) {
            assert_eq!(all(dtype), number, "{dtype:?}");
        }
        for (dtype, number) in [(Q4_K, 14), (Q5_K, 16), (Q2_K, 21), (IQ4_NL, 25), (IQ4_XS, 30)] {
            assert_eq!(all(dtype), number, "{dtype:?}");
        }
        for (dtype, number) in [(TQ1_0, 36), (TQ2_0, 37), (MXFP4, 38)] {
            assert_eq!(all(dtype), number, "{dtype:?}");
        }
        assert_eq!(file_type(&[], 1), 0);
    }
}
