//! Seeded weights, and folders of safetensors.

use lapidary_formats::{Format, FormatError, Layout, Source};
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, Fs, RealFs, TensorSpec};
use lapidary_weight::{
    Affine, Columns, Dense, FloatType, GroupFloats, Grouping, Levels, Lookup, LowRank, Origin,
    Outline, Places, Planes, Runs, SmallFloat, Sparse, Term, TwoLevel, Weight, Zeros,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Numbers in (-1, 1) that the type holds exactly.
    pub(crate) fn floats(&mut self, count: usize, dtype: FloatType) -> Vec<f32> {
        let mut next = || (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        (0..count).map(|_| dtype.round(next())).collect()
    }

    pub(crate) fn codes(&mut self, count: usize, bits: u8) -> Vec<u8> {
        (0..count).map(|_| self.below(1 << bits) as u8).collect()
    }

    pub(crate) fn affine(
        &mut self,
        (rows, cols): (usize, usize),
        bits: u8,
        grouping: Grouping,
        symmetric: bool,
        scale_type: FloatType,
    ) -> Weight {
        let groups = grouping.count(rows, cols);
        let term = Affine {
            bits,
            grouping,
            codes: self.codes(rows * cols, bits),
            scales: GroupFloats::plain(self.floats(groups, scale_type), scale_type),
            zeros: match symmetric {
                true => Zeros::Middle,
                false => Zeros::Codes(self.codes(groups, bits)),
            },
        };
        Weight::new(rows, cols, vec![Term::Affine(term)]).unwrap()
    }

    /// One number a group in two levels, of any kind.
    pub(crate) fn two_level(
        &mut self,
        (rows, cols): (usize, usize),
        grouping: Grouping,
    ) -> GroupFloats {
        let length = NonZeroUsize::new(1 + self.below(9)).unwrap();
        let kind = TwoLevel {
            bits: 1 + self.below(8) as u8,
            runs: if self.below(2) == 0 { Runs::Flat(length) } else { Runs::Rows(length) },
            origin: [Origin::Zero, Origin::Middle, Origin::Least, Origin::Mean][self.below(4)],
            coarse: FLOATS[self.below(3)],
        };
        let (array_rows, per_row) = match grouping {
            Grouping::Tensor => (1, 1),
            _ => (grouping.count(rows, cols) / grouping.per_row(cols), grouping.per_row(cols)),
        };
        let runs = kind.runs.count(array_rows, per_row);
        let offsets = match kind.origin {
            Origin::Zero | Origin::Middle => 0,
            Origin::Least => runs,
            Origin::Mean => 1,
        };
        GroupFloats::two_level(Levels {
            kind,
            per_row,
            codes: self.codes(array_rows * per_row, kind.bits),
            coarse: self.floats(runs, kind.coarse),
            offsets: self.floats(offsets, kind.coarse),
        })
        .unwrap()
    }

    /// Codes that stand for numbers.
    pub(crate) fn small_codes(&mut self, float: SmallFloat, count: usize) -> Vec<u8> {
        let numbers: Vec<u8> = (0..=u8::MAX)
            .filter(|code| float.is_number(*code) && code >> (float.bits() % 8) == 0)
            .collect();
        (0..count).map(|_| numbers[self.below(numbers.len())]).collect()
    }

    /// One small float a group, of any kind.
    pub(crate) fn small_scales(
        &mut self,
        (rows, cols): (usize, usize),
        grouping: Grouping,
    ) -> GroupFloats {
        let count = grouping.count(rows, cols);
        let divisor = self.floats(1, FloatType::F32)[0].abs() + 0.5;
        match self.below(3) {
            // Powers of two that do not overflow when they are multiplied.
            0 => {
                let codes = (0..count).map(|_| 100 + self.below(40) as u8).collect();
                GroupFloats::small(SmallFloat::E8M0, codes, None).unwrap()
            }
            kind => {
                let codes = self.small_codes(SmallFloat::E4M3, count);
                GroupFloats::small(SmallFloat::E4M3, codes, (kind == 1).then_some(divisor)).unwrap()
            }
        }
    }

    /// Affine, lookup and binary terms whose scales or zeros only the native format stores.
    fn uncommon_terms(&mut self, rows: usize, cols: usize, grouping: Grouping) -> Vec<Term> {
        let (shape, groups) = ((rows, cols), grouping.count(rows, cols));
        let bits = 1 + self.below(8) as u8;
        let scale_type = FLOATS[self.below(3)];
        let mut terms = vec![];
        let plain = GroupFloats::plain(self.floats(groups, scale_type), scale_type);
        let zeros = [
            Zeros::Middle,
            Zeros::Codes(self.codes(groups, bits)),
            Zeros::Floats(plain.clone()),
            Zeros::Floats(self.two_level(shape, grouping)),
            Zeros::Minima(plain),
            Zeros::Minima(self.two_level(shape, grouping)),
        ];
        for zeros in zeros {
            let codes = self.codes(rows * cols, bits);
            let scales = self.two_level(shape, grouping);
            terms.push(Term::Affine(Affine { bits, grouping, codes, scales, zeros }));
        }
        terms.push(Term::Lookup(Lookup {
            bits,
            codes: self.codes(rows * cols, bits),
            books: self.floats(1 << bits, FloatType::F32),
            book_per_row: false,
            scales: Some((grouping, self.two_level(shape, grouping))),
            book_type: FloatType::F32.into(),
        }));
        terms.extend([SmallFloat::E4M3, SmallFloat::E2M1].map(|float| {
            let scales = self.small_scales(shape, grouping);
            let codes = self.small_codes(float, rows * cols);
            Term::Lookup(Lookup::of_small_floats(float, codes, grouping, scales))
        }));
        for offsets in [true, false] {
            let planes = 1 + self.below(8) as u8;
            terms.push(Term::Planes(Planes {
                planes,
                grouping,
                signs: self.codes(rows * cols, planes),
                alphas: self.floats(usize::from(planes) * groups, scale_type),
                offsets: offsets.then(|| self.floats(groups, scale_type)),
                scale_type,
            }));
        }
        terms
    }

    /// One term of every kind, in every variant that is stored differently.
    pub(crate) fn terms(&mut self, rows: usize, cols: usize) -> Vec<Term> {
        let mut terms = vec![];
        for dtype in FLOATS {
            terms.push(Term::Dense(Dense { values: self.floats(rows * cols, dtype), dtype }));
            let rank = 1 + self.below(4);
            let (left, right) = (self.floats(rows * rank, dtype), self.floats(rank * cols, dtype));
            terms.push(Term::LowRank(LowRank { rank, left, right, dtype }));
            terms.push(Term::Sparse(self.sparse(rows, cols, dtype)));
            let columns = vec![self.below(cols) as u32];
            terms.push(Term::Columns(Columns { columns, values: self.floats(rows, dtype), dtype }));
        }
        for grouping in
            [Grouping::Tensor, Grouping::Row, columns(5), columns(32), columns(300), blocks(3, 7)]
        {
            for symmetric in [true, false] {
                let bits = 1 + self.below(8) as u8;
                let scale_type = FLOATS[self.below(3)];
                let weight = self.affine((rows, cols), bits, grouping, symmetric, scale_type);
                terms.extend(weight.terms().iter().cloned());
            }
            for book_per_row in [true, false] {
                let (bits, scale_type) = (1 + self.below(8) as u8, FLOATS[self.below(3)]);
                let books = if book_per_row { rows } else { 1 };
                let scales = self.floats(grouping.count(rows, cols), scale_type);
                terms.push(Term::Lookup(Lookup {
                    bits,
                    codes: self.codes(rows * cols, bits),
                    books: self.floats(books << bits, scale_type),
                    book_per_row,
                    scales: (bits > 2).then(|| (grouping, GroupFloats::plain(scales, scale_type))),
                    book_type: scale_type.into(),
                }));
            }
            terms.extend(self.uncommon_terms(rows, cols, grouping));
        }
        terms
    }

    fn sparse(&mut self, rows: usize, cols: usize, dtype: FloatType) -> Sparse {
        let (mut row_starts, mut columns) = (vec![0], vec![]);
        for _ in 0..rows {
            let mut places: Vec<u32> = (0..cols as u32).filter(|_| self.below(7) == 0).collect();
            columns.append(&mut places);
            row_starts.push(columns.len() as u32);
        }
        Sparse {
            row_starts,
            values: self.floats(columns.len(), dtype),
            columns,
            dtype,
            places: Places::Listed,
        }
    }
}

pub(crate) fn columns(width: usize) -> Grouping {
    Grouping::Columns(NonZeroUsize::new(width).unwrap())
}

pub(crate) fn blocks(rows: usize, columns: usize) -> Grouping {
    let [rows, columns] = [rows, columns].map(|side| NonZeroUsize::new(side).unwrap());
    Grouping::Blocks { rows, columns }
}

pub(crate) fn fs() -> Arc<dyn Fs> {
    Arc::new(RealFs)
}

pub(crate) fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

/// A tensor with its bytes.
pub(crate) type Tensor = (TensorSpec, Vec<u8>);

pub(crate) fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    (TensorSpec::new(name, dtype, shape), bytes)
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_folder(folder: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let path = folder.join("model.safetensors");
    let mut writer = Writer::create(&fs(), &path, &specs, &BTreeMap::new()).unwrap();
    let order: Vec<String> = writer.order().map(str::to_owned).collect();
    for name in order {
        let (_, bytes) = tensors.iter().find(|(spec, _)| spec.name == name).unwrap();
        writer.append(&name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

pub(crate) fn format(id: &str) -> &'static dyn Format {
    lapidary_formats::find(id).unwrap()
}

/// The folder that a format makes of these layers: its configuration and its tensors.
pub(crate) fn encode(
    format: &dyn Format,
    weights: &[(String, Weight)],
    dtype: FloatType,
) -> (Value, Vec<Tensor>) {
    let mut tensors = vec![];
    let mut compressed: Vec<(String, Outline)> = vec![];
    for (module, weight) in weights {
        let outline = weight.outline();
        format.accepts(&outline).unwrap();
        let specs = format.tensors(module, &outline, dtype);
        let bytes = format.encode(weight, dtype).unwrap();
        assert_eq!(specs.len(), bytes.len());
        for (spec, bytes) in specs.into_iter().zip(bytes) {
            assert_eq!(spec.byte_len().unwrap(), bytes.len() as u64, "{}", spec.name);
            tensors.push((spec, bytes));
        }
        compressed.push((module.clone(), outline));
    }
    let plain = ["lm_head".to_owned()];
    let layout = Layout { compressed: &compressed, plain: &plain, inputs: &[] };
    let mut config = json!({"model_type": "test"});
    if let Some(quantization) = format.config(&layout) {
        config["quantization_config"] = quantization;
    }
    (config, tensors)
}

/// A folder on the disk and what is seen of it.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) _folder: tempfile::TempDir,
}

/// Writes a folder and opens it.
pub(crate) fn reopen(config: &Value, tensors: &[Tensor]) -> Result<Opened, FormatError> {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, tensors);
    Ok(Opened { source: Source::open(fs(), folder.path())?, _folder: folder })
}

/// Bits of each value: equality of numbers, not of approximations.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
