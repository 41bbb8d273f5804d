//! The folders of other tools: round trips of what they hold, golden layers of the packages that
//! define them, and the refusal of what they do not hold.

use crate::support::{FLOATS, Random, bits, columns, encode, format, fs, reopen, testdata};
use lapidary_formats::{Format, Layout, Source};
use lapidary_store::Checkpoint;
use lapidary_weight::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Levels, Lookup, Origin, Outline, Runs,
    Term, TermOutline, TwoLevel, Weight, ZeroType, Zeros,
};
use proptest::prelude::*;
use serde_json::json;
use std::num::NonZeroUsize;

pub(crate) const FOLDERS: [&str; 8] =
    ["gptq", "gptq-v2", "awq", "mlx", "bitsandbytes", "bitsandbytes-fp4", "bitnet", "hqq"];

/// The levels of bitsandbytes, as it stores them.
fn levels(folder: &str) -> Vec<f32> {
    let file = testdata("golden/folders/bitsandbytes/model.safetensors");
    let file = Checkpoint::open(fs(), &file).unwrap();
    let name = format!("layers.{folder}_plain_128.weight.quant_map");
    FloatType::F32.decode(&file.read(file.require(&name).unwrap()).unwrap())
}

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// An affine term whose zeros are one of four kinds.
    fn grid(
        &mut self,
        shape: (usize, usize),
        width: usize,
        kinds: &[usize],
        float: FloatType,
        bits: u8,
    ) -> Weight {
        let (rows, cols) = shape;
        let grouping = if width == cols { Grouping::Row } else { columns(width) };
        let groups = grouping.count(rows, cols);
        let plain = |random: &mut Self| GroupFloats::plain(random.floats(groups, float), float);
        let term = Affine {
            bits,
            grouping,
            codes: self.codes(rows * cols, bits),
            scales: plain(self),
            zeros: match self.pick(kinds) {
                0 => Zeros::Middle,
                1 => Zeros::Codes(self.codes(groups, bits)),
                2 => Zeros::Floats(plain(self)),
                _ => Zeros::Minima(plain(self)),
            },
        };
        Weight::new(rows, cols, vec![Term::Affine(term)]).unwrap()
    }

    /// A lookup of 4 bits, its scales plain or in two levels.
    fn lookup(&mut self, (rows, cols): (usize, usize), width: usize, books: Vec<f32>) -> Weight {
        let grouping = if width == cols { Grouping::Row } else { columns(width) };
        let (groups, float) = (grouping.count(rows, cols), FloatType::F32);
        let scales = match self.below(2) {
            0 => GroupFloats::plain(self.floats(groups, float), float),
            _ => {
                let runs = Runs::Flat(NonZeroUsize::new(256).unwrap());
                let kind = TwoLevel { bits: 8, runs, origin: Origin::Mean, coarse: float };
                GroupFloats::two_level(Levels {
                    kind,
                    per_row: grouping.per_row(cols),
                    codes: self.codes(groups, 8),
                    coarse: self.floats(groups.div_ceil(256), float),
                    offsets: self.floats(1, float),
                })
                .unwrap()
            }
        };
        let lookup = Lookup {
            bits: 4,
            codes: self.codes(rows * cols, 4),
            books,
            book_per_row: false,
            scales: Some((grouping, scales)),
            book_type: float.into(),
        };
        Weight::new(rows, cols, vec![Term::Lookup(lookup)]).unwrap()
    }

    /// A weight that a format holds, of ragged sizes where it takes them.
    pub(crate) fn held_by(&mut self, format: &str) -> Weight {
        let runs = 1 + self.below(4);
        match format {
            "gptq" | "gptq-v2" => {
                let (width, bits) = (self.pick(&[16, 32, 64, 128]), self.pick(&[2, 3, 4, 8]));
                let cols = 32 * runs * (width / 32).max(1);
                let width = if self.below(4) == 0 { cols } else { width };
                let zeros: &[usize] = if format == "gptq" { &[0] } else { &[0, 1] };
                let float = self.pick(&FLOATS[1..]);
                let rows = 32 * (1 + self.below(3));
                self.grid((rows, cols), width, zeros, float, bits)
            }
            "awq" => {
                // One group size a folder.
                let shape = (8 * (1 + self.below(7)), 24 * runs);
                self.grid(shape, 24, &[0, 1], FloatType::F16, 4)
            }
            "mlx" => {
                let (width, bits) = (self.pick(&[32, 64, 128]), self.pick(&[2, 3, 4, 5, 6, 8]));
                let float = self.pick(&FLOATS);
                let shape = (1 + self.below(20), width * runs);
                self.grid(shape, width, &[0, 1, 2, 3], float, bits)
            }
            "bitsandbytes" | "bitsandbytes-fp4" => {
                let width = self.pick(&[32, 64, 128]);
                let shape = (1 + self.below(9), width * runs);
                let books = levels(if format == "bitsandbytes" { "nf4" } else { "fp4" });
                self.lookup(shape, width, books)
            }
            "bitnet" => {
                let shape = (4 * (1 + self.below(9)), 1 + self.below(70));
                let float = self.pick(&FLOATS);
                let codes = (0..shape.0 * shape.1).map(|_| self.below(3) as u8).collect();
                let term = Affine {
                    bits: 2,
                    grouping: Grouping::Tensor,
                    codes,
                    scales: GroupFloats::plain(self.floats(1, float), float),
                    zeros: Zeros::Codes(vec![1]),
                };
                Weight::new(shape.0, shape.1, vec![Term::Affine(term)]).unwrap()
            }
            _ => {
                let (bits, width) = (self.pick(&[1, 2, 3, 4, 5, 6, 8]), 1 + self.below(40));
                let rows = match bits {
                    3 => 1 + self.below(30),
                    _ => 8 * (1 + self.below(4)),
                };
                let float = self.pick(&FLOATS);
                self.grid((rows, width * runs), width, &[0, 1, 2], float, bits)
            }
        }
    }
}

/// The weight that a format makes of its own bytes, by the outline alone.
fn decoded(format: &dyn Format, weight: &Weight, dtype: FloatType) -> (Weight, Vec<Vec<u8>>) {
    let outline = weight.outline();
    assert_eq!(format.accepts(&outline), Ok(()), "{}", outline.describe());
    let names = format.tensors("m", &outline, dtype);
    let bytes = format.encode(weight, dtype).unwrap();
    assert_eq!(names.len(), bytes.len());
    for (spec, bytes) in names.iter().zip(&bytes) {
        assert_eq!(spec.byte_len().unwrap(), bytes.len() as u64, "{}", spec.name);
    }
    let read = |name: &str| {
        let index = names.iter().position(|spec| spec.name == name).unwrap();
        Ok(bytes[index].clone())
    };
    (format.decode("m", &outline, dtype, &read).unwrap(), bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// The bytes of what was read are the bytes that it was read from, the numbers those that were
    /// stored, and a folder of several layers says the same as each alone.
    #[test]
    fn what_is_encoded_is_decoded(index in 0..FOLDERS.len(), dtype in 0_usize..3, seed: u64) {
        let (id, dtype) = (FOLDERS[index], FLOATS[dtype]);
        let (ours, mut random) = (format(id), Random(seed));
        let weights: Vec<(String, Weight)> =
            (0..3).map(|layer| (format!("layers.{layer}.m"), random.held_by(id))).collect();
        let mut alone = vec![];
        for (_, weight) in &weights {
            let (back, bytes) = decoded(ours, weight, dtype);
            let (again, same) = decoded(ours, &back, dtype);
            prop_assert_eq!(&bytes, &same, "{}", id);
            prop_assert_eq!(&again, &back);
            // MLX rounds the products of scales and zeros; the others are exact.
            let (have, want) = (back.decode(), weight.decode());
            let exact = id != "mlx" || has_exact_biases(weight);
            if exact {
                prop_assert!(have == want, "{}: {:?} {:?}", id, have, want);
            }
            alone.push(back);
        }
        let compressed: Vec<(String, Outline)> =
            weights.iter().map(|(name, weight)| (name.clone(), weight.outline())).collect();
        let plain = ["lm_head".to_owned()];
        let layout = Layout { compressed: &compressed, plain: &plain, inputs: &[] };
        if ours.accepts_together(&layout).is_err() {
            prop_assert_eq!(id, "awq");
            return Ok(());
        }
        let (mut config, tensors) = encode(ours, &weights, dtype);
        let quantization = ours.config(&layout).unwrap();
        config.as_object_mut().unwrap().remove("quantization_config");
        for key in ours.config_keys() {
            config[key] = quantization.clone();
        }
        let opened = reopen(&config, &tensors).unwrap();
        prop_assert_eq!(opened.source.tensors().len(), weights.len());
        prop_assert_eq!(opened.source.notes().count(), 0);
        for ((name, _), alone) in weights.iter().zip(&alone) {
            let back = opened.source.weight(&format!("{name}.weight")).unwrap();
            prop_assert_eq!(bits(&back.decode()), bits(&alone.decode()), "{}", id);
        }
    }
}

/// Whether zeros times scales are numbers of the type of the scales.
fn has_exact_biases(weight: &Weight) -> bool {
    let [Term::Affine(affine)] = weight.terms() else { return false };
    let is_narrow = affine.scales.kind() != GroupType::Plain(FloatType::F32);
    matches!(affine.zeros, Zeros::Minima(_)) || matches!(affine.zeros, Zeros::Middle) && is_narrow
}

/// Rows of 8 bits: what engines hold is 127 times a scale.
#[test]
fn rows_of_eight_bits_come_back_to_the_last_bit_of_what_is_stored() {
    let (ours, mut random) = (format("bitsandbytes"), Random(5));
    for float in [FloatType::F32] {
        for shape in [(1, 1), (5, 33), (300, 8)] {
            let weight = random.affine(shape, 8, Grouping::Row, true, float);
            let (back, bytes) = decoded(ours, &weight, FloatType::F16);
            assert_eq!(decoded(ours, &back, FloatType::F16).1, bytes);
            for (have, want) in back.decode().iter().zip(weight.decode()) {
                assert!((have - want).abs() <= 2e-7 * want.abs(), "{have} {want}");
            }
            let (config, tensors) = encode(ours, &[("m".to_owned(), weight)], FloatType::F16);
            assert_eq!(reopen(&config, &tensors).unwrap().source.weight("m.weight").unwrap(), back);
        }
    }
}

/// Folders that the packages wrote, and what these decode them to.
#[test]
fn layers_are_decoded_as_by_the_packages_and_written_again_byte_for_byte() {
    for (folder, id, layers, notes) in [
        ("gptq", "gptq", 18, 2),
        ("gptq_v2", "gptq-v2", 18, 2),
        ("awq", "awq", 2, 0),
        ("mlx", "mlx", 6, 0),
        ("bitsandbytes", "", 14, 4),
        ("autobitlinear", "bitnet", 3, 0),
        ("bitlinear", "", 3, 0),
        ("hqq", "hqq", 9, 3),
    ] {
        let folder = testdata("golden/folders").join(folder);
        let source = Source::open(fs(), &folder).unwrap();
        let golden = Checkpoint::open(fs(), &folder.join("decoded.safetensors")).unwrap();
        let stored = Checkpoint::open(fs(), &folder.join("model.safetensors")).unwrap();
        assert_eq!(source.tensors().len(), layers, "{}", folder.display());
        assert_eq!(source.notes().count(), notes, "{}", folder.display());
        for tensor in source.tensors() {
            assert!(tensor.is_compressed());
            let module = tensor.name.strip_suffix(".weight").unwrap();
            let weight = source.weight(&tensor.name).unwrap();
            let name = format!("{module}.decoded");
            let want = FloatType::F32.decode(&golden.read(golden.require(&name).unwrap()).unwrap());
            let have = weight.decode();
            assert_eq!(have.len(), want.len(), "{module}");
            // The reciprocal of 127 times the magnitude is not its 127th part.
            let tolerance = if module.contains("int8") { 2e-7 } else { 0.0 };
            for (have, want) in have.iter().zip(&want) {
                assert!((have - want).abs() <= tolerance * want.abs(), "{module}: {have} {want}");
            }
            // What was read as something else, or is of the other version, is not written so.
            let ours = match id {
                "gptq" if module.contains("asym") => continue,
                "" => continue,
                id => format(id),
            };
            if source.notes().any(|(name, _)| name == module) {
                continue;
            }
            assert_eq!(ours.accepts(&weight.outline()), Ok(()), "{module}");
            let float = FloatType::F32;
            let specs = ours.tensors(module, &weight.outline(), float);
            for (spec, bytes) in specs.iter().zip(ours.encode(&weight, float).unwrap()) {
                let Ok(there) = stored.require(&spec.name) else {
                    panic!("{} is not written by the package", spec.name);
                };
                assert_eq!((there.dtype, &there.shape), (spec.dtype, &spec.shape), "{}", spec.name);
                // How the numbers were found, and not what they are.
                let is_free = ["optimize", "offload_meta", "round_zero"]
                    .iter()
                    .any(|part| spec.name.ends_with(part));
                if !is_free {
                    assert_eq!(bytes, stored.read(there).unwrap(), "{}", spec.name);
                }
            }
        }
    }
}

/// bitsandbytes' own layers of plain scales, byte for byte but for the text, which is padded here.
#[test]
fn layers_of_bitsandbytes_are_written_as_by_bitsandbytes() {
    let folder = testdata("golden/folders/bitsandbytes");
    let source = Source::open(fs(), &folder).unwrap();
    let stored = Checkpoint::open(fs(), &folder.join("model.safetensors")).unwrap();
    let mut compared = 0;
    for tensor in source.tensors() {
        let module = tensor.name.strip_suffix(".weight").unwrap();
        let weight = source.weight(&tensor.name).unwrap();
        let ours = format(if module.contains("fp4") { "bitsandbytes-fp4" } else { "bitsandbytes" });
        if module.contains("nested") || module.contains("_96") {
            continue;
        }
        let specs = ours.tensors(module, &weight.outline(), FloatType::F32);
        for (spec, bytes) in specs.iter().zip(ours.encode(&weight, FloatType::F32).unwrap()) {
            let there = stored.require(&spec.name).unwrap();
            let there = stored.read(there).unwrap();
            if spec.name.contains("quant_state") {
                let json =
                    |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
                assert_eq!(json(&bytes), json(&there), "{}", spec.name);
            } else {
                assert_eq!(bytes, there, "{}", spec.name);
            }
            compared += 1;
        }
    }
    assert!(compared > 16, "{compared}");
}

fn outline(rows: usize, cols: usize, term: TermOutline) -> Outline {
    Outline { rows, cols, terms: vec![term] }
}

fn affine(bits: u8, grouping: Grouping, zeros: ZeroType) -> TermOutline {
    TermOutline::Affine { bits, grouping, zeros, scales: FloatType::F16.into() }
}

#[test]
fn what_they_cannot_hold_is_refused_with_the_cure() {
    let (middle, codes) = (ZeroType::Middle, ZeroType::Codes);
    for (id, outline, part) in [
        ("gptq", outline(32, 64, affine(5, columns(32), middle)), "2, 3, 4 or 8 bits, not 5"),
        ("gptq", outline(32, 64, affine(4, columns(32), codes)), "gptq-v2"),
        ("gptq", outline(32, 64, affine(4, columns(8), middle)), "from 16 to 1024, not 8"),
        ("gptq", outline(33, 64, affine(4, columns(32), middle)), "packs of 32"),
        ("gptq", outline(32, 96, affine(4, columns(64), middle)), "do not divide"),
        ("gptq-v2", outline(32, 64, affine(4, Grouping::Tensor, middle)), "rows or groups"),
        ("awq", outline(32, 64, affine(3, columns(32), middle)), "use bits: 4"),
        ("awq", outline(30, 64, affine(4, columns(32), middle)), "packs of 8"),
        ("mlx", outline(32, 64, affine(7, columns(32), middle)), "not 7"),
        ("mlx", outline(32, 64, affine(4, columns(16), middle)), "32, 64 or 128"),
        ("bitsandbytes", outline(32, 64, affine(4, columns(32), middle)), "method: nf4"),
        ("bitnet", outline(32, 64, affine(2, Grouping::Row, middle)), "group_size: tensor"),
        ("bitnet", outline(30, 64, affine(2, Grouping::Tensor, middle)), "packs of 4"),
        ("hqq", outline(1, 64, affine(4, Grouping::Row, middle)), "packs of 2"),
        ("hqq", outline(4, 64, affine(7, Grouping::Row, middle)), "not 7"),
    ] {
        let why = format(id).accepts(&outline).unwrap_err();
        assert!(why.contains(part), "{id}: {why}");
        assert!(format(id).tensors("m", &outline, FloatType::F16).is_empty());
    }
    let dense = outline(32, 64, TermOutline::Dense { values: FloatType::F16 });
    for id in FOLDERS {
        assert!(format(id).accepts(&dense).unwrap_err().contains("dense f16"), "{id}");
    }
}

/// Levels that an outline does not tell are looked at when there are any.
#[test]
fn levels_that_are_not_the_formats_are_refused() {
    let mut random = Random(3);
    let book = random.floats(16, FloatType::F32);
    let weight = random.lookup((4, 64), 64, book);
    let error = format("bitsandbytes").encode(&weight, FloatType::F16).unwrap_err().to_string();
    assert!(error.contains("not those of nf4"), "{error}");
    let weight = random.affine((4, 64), 2, Grouping::Tensor, true, FloatType::F16);
    let error = format("bitnet").encode(&weight, FloatType::F16).unwrap_err().to_string();
    assert!(error.contains("other than −1, 0 and 1"), "{error}");
}

#[test]
fn layers_that_differ_stand_in_the_configuration_or_are_refused() {
    let mut random = Random(4);
    let mut grid = |bits, width| random.grid((32, 128), width, &[0], FloatType::F16, bits);
    let weights = vec![
        ("a".to_owned(), grid(4, 64)),
        ("b".to_owned(), grid(4, 64)),
        ("c".to_owned(), grid(8, 32)),
    ];
    let (config, _) = encode(format("gptq"), &weights, FloatType::F16);
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["bits"], 4);
    assert_eq!(quantization["dynamic"], json!({"+:^c$": {"bits": 8, "group_size": 32}}));
    let (config, _) = encode(format("mlx"), &weights, FloatType::F16);
    let layer = &config["quantization_config"]["c"];
    assert_eq!(layer, &json!({"group_size": 32, "bits": 8, "mode": "affine"}));
    assert_eq!(config["quantization_config"]["lm_head"], false);
    let layers: Vec<(String, Outline)> =
        [64, 32].map(|width| (width.to_string(), grid(4, width).outline())).into();
    let layout = Layout { compressed: &layers, plain: &[], inputs: &[] };
    let why = format("awq").accepts_together(&layout).unwrap_err();
    assert!(why.contains("not 64 and 32") && why.contains("--group-size 128"), "{why}");
    for (cols, group, cure) in [(576, 64, "--group-size 64"), (1000, 8, "--format native")] {
        let widths = [(cols, group), (1536, 128)].map(|(cols, group)| {
            let term = affine(4, columns(group), ZeroType::Middle);
            (cols.to_string(), outline(32, cols, term))
        });
        let layout = Layout { compressed: &widths, plain: &[], inputs: &[] };
        let why = format("awq").accepts_together(&layout).unwrap_err();
        assert!(why.contains(&format!("not {group} and 128")) && why.contains(cure), "{why}");
    }
    let layers = [random.affine((4, 64), 8, Grouping::Row, true, FloatType::F32), {
        let book = levels("nf4");
        random.lookup((4, 64), 64, book)
    }];
    let layers = layers.map(|weight| ("m".to_owned(), weight.outline()));
    let layout = Layout { compressed: &layers, plain: &[], inputs: &[] };
    assert!(format("bitsandbytes").accepts_together(&layout).unwrap_err().contains("4 bits"));
}
