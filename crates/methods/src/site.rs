//! What a method is given, and what it gives back.

use crate::{Inputs, MethodError};
use lapidary_weight::{FloatType, Term, Weight};
use serde::{Deserialize, Serialize};

/// Statistics a method asks the engine to gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The Gram matrix of the inputs.
    pub gram: bool,
    /// How the inputs have drifted from those of the uncompressed model.
    pub drift: bool,
    /// The inputs themselves: the peaks of their channels, and a sample of tokens.
    pub inputs: bool,
}

impl Needs {
    /// What either needs.
    pub fn or(self, other: Self) -> Self {
        Self {
            gram: self.gram || other.gram,
            drift: self.drift || other.drift,
            inputs: self.inputs || other.inputs,
        }
    }
}

/// What was gathered about the inputs of a site.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `Σ x xᵀ` over the calibration tokens, row-major `[cols, cols]`, symmetric; or its diagonal,
    /// `[cols]`, where no more is known.
    pub gram: Vec<f32>,
    /// `Σ (x̃ − x) xᵀ`, row-major `[cols, cols]`, where x̃ is the input that the uncompressed model
    /// has for the same token; `None` where nothing before the site is compressed.
    pub drift: Option<Vec<f32>>,
    /// The inputs themselves, where a method asks for them.
    pub inputs: Option<Inputs>,
    /// Tokens summed over.
    pub tokens: u64,
}

impl Statistics {
    /// Columns.
    pub fn side(&self) -> usize {
        self.gram.len().isqrt()
    }

    /// Those of the same inputs, each channel divided by its scale.
    pub fn scaled(&self, scales: &[f32]) -> Self {
        let row = |(row, scale): (&[f32], &f32)| -> Vec<f32> {
            row.iter().zip(scales).map(|(value, other)| value / scale / other).collect()
        };
        let scaled = |matrix: &[f32]| -> Vec<f32> {
            matrix.chunks_exact(self.side().max(1)).zip(scales).flat_map(row).collect()
        };
        let drift = self.drift.as_deref().map(scaled);
        let inputs = self.inputs.as_ref().map(|inputs| inputs.scaled(scales));
        Self { gram: scaled(&self.gram), drift, inputs, tokens: self.tokens }
    }
}

/// One weight to encode.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Name of the module, for messages.
    pub name: &'a str,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Row-major `[rows, cols]`, finite.
    pub weight: &'a [f32],
    /// What the method asked for.
    pub statistics: Option<&'a Statistics>,
    /// Type that scales are stored in.
    pub scale_type: FloatType,
    /// The largest magnitude among the weights of all layers with this one's input, where the method
    /// [wants it](crate::Tensorwise::shares_range).
    pub peak: Option<f32>,
}

impl Site<'_> {
    /// The Gram matrix of the inputs.
    pub(crate) fn gram(&self) -> Result<&[f32], MethodError> {
        let missing = || MethodError::MissingStatistics {
            site: self.name.to_owned(),
            what: "the Gram matrix of its inputs",
        };
        let gram = &self.statistics.ok_or_else(missing)?.gram;
        if gram.len() == self.cols * self.cols { Ok(gram) } else { Err(missing()) }
    }

    /// Its diagonal: the sum of squares of each input column, not negative.
    pub(crate) fn gram_diagonal(&self) -> Result<Vec<f32>, MethodError> {
        if let Some(known) = self.statistics.filter(|known| known.gram.len() == self.cols) {
            return Ok(known.gram.iter().map(|sum| sum.max(0.0)).collect());
        }
        let gram = self.gram()?;
        Ok((0..self.cols).map(|i| gram[i * self.cols + i].max(0.0)).collect())
    }

    /// Refuses a weight or statistics that are not finite: rounding would turn them into numbers
    /// that look like any other.
    pub(crate) fn check_finite(&self) -> Result<(), MethodError> {
        let wrong = |what| Err(MethodError::Numerical { site: self.name.to_owned(), what });
        let place = |values: &[f32]| {
            let index = values.iter().position(|value| !value.is_finite())?;
            Some((index / self.cols.max(1), index % self.cols.max(1)))
        };
        if let Some((row, column)) = place(self.weight) {
            return wrong(format!("its weight is not finite at row {row}, column {column}"));
        }
        let drift = |known: &'_ Statistics| known.drift.as_deref().and_then(place);
        let known = self.statistics;
        if let Some((row, column)) = known.and_then(|s| place(&s.gram).or_else(|| drift(s))) {
            return wrong(format!(
                "the Gram matrix of its inputs is not finite at row {row}, column {column}; the \
                 model's activations overflow on the calibration text"
            ));
        }
        Ok(())
    }
}

/// An encoded weight, with what happened on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The terms.
    pub weight: Weight,
    /// Everything that departed from the plain course of the method.
    pub notes: Vec<Note>,
}

/// What corrects an encoded weight, with what happened on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrected {
    /// The terms to be added.
    pub terms: Vec<Term>,
    /// The error that is left, in the measure that the method minimises.
    pub loss: f64,
    /// Everything that departed from the plain course of the method.
    pub notes: Vec<Note>,
}

/// How grave a note is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteKind {
    /// Worth knowing, as intended.
    Fact,
    /// The method did something else than asked because it had to; `--strict` refuses it.
    Fallback,
}

/// One thing that happened to a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How grave.
    pub kind: NoteKind,
    /// What, in one line.
    pub what: String,
}

impl Note {
    /// A fact.
    pub fn fact(what: impl Into<String>) -> Self {
        Self { kind: NoteKind::Fact, what: what.into() }
    }

    /// A fallback.
    pub fn fallback(what: impl Into<String>) -> Self {
        Self { kind: NoteKind::Fallback, what: what.into() }
    }
}
