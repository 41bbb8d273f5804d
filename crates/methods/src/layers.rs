//! Layers left out whole.
//!
//! `block-influence` is `ShortGPT`'s (Men et al., 2024, arXiv 2403.03853): `1 − cos` of the residual
//! stream before and after a block, averaged over tokens; the blocks that turn it least go. `angular` is
//! Gromov et al.'s (2024, arXiv 2403.17887): of all runs of as many blocks as are to go, the one over
//! which the last token of a row turns least. `perplexity` removes one block after another, each time the
//! one without which the rows' loss is least (SLEB, Song et al., 2024, arXiv 2402.09025). `last` is
//! Gromov's baseline: the deepest blocks but the very last.

use crate::structural::{Chosen, Seen, Structural, Walk, largest, refused};
use crate::{Method, MethodError, ParamError};
use lapidary_model::Spec;
use lapidary_model::cut::Cut;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub(crate) const SUMMARY: &str =
    "leaves out whole layers: those that change the residual stream least";
pub(crate) const PAPER: &str =
    "Men et al., 2024, arXiv 2403.03853; Gromov et al., 2024, arXiv 2403.17887";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How many layers go: a number of them, or below 1 a share of all.
    pub drop: f64,
    /// These layers go, in place of a choice: numbers from 0 and ranges, for instance "7, 21-23".
    pub blocks: Option<Listed>,
    /// What layers are compared by.
    pub criterion: Criterion,
    /// Whether the first and the last layer stay in any case.
    pub protect: bool,
    /// Rows on which the loss is taken, for `perplexity`.
    pub rows: usize,
}

/// Layers by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Listed {
    /// One.
    One(usize),
    /// Several, and ranges.
    Several(String),
}

/// What layers are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// How little a layer turns the residual stream of a token.
    BlockInfluence,
    /// How little a run of layers turns that of a row's last token.
    Angular,
    /// How little the loss grows without a layer, one after another.
    Perplexity,
    /// The deepest but the very last; looks at no rows.
    Last,
}

impl Default for Params {
    fn default() -> Self {
        let criterion = Criterion::BlockInfluence;
        Self { drop: 0.1, blocks: None, criterion, protect: true, rows: 8 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(params.drop >= 0.0 && params.drop.is_finite())
        || params.drop >= 1.0 && params.drop.fract() != 0.0
    {
        let what = format!("{} is neither a number of layers nor a share below 1", params.drop);
        return Err(ParamError::new("drop", what));
    }
    if params.rows == 0 {
        return Err(ParamError::new("rows", "a loss needs at least one row"));
    }
    let listed = match &params.blocks {
        Some(Listed::One(block)) => Some(BTreeSet::from([*block])),
        Some(Listed::Several(text)) => Some(blocks(text)?),
        None => None,
    };
    Ok(Method::Structural(Box::new(Layers { params, listed })))
}

/// The blocks of a list such as `7, 21-23`.
fn blocks(text: &str) -> Result<BTreeSet<usize>, ParamError> {
    let wrong = || ParamError::new("blocks", format!("{text:?} is no list such as \"7, 21-23\""));
    let mut blocks = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if last < first || last > 1 << 12 {
            return Err(wrong());
        }
        blocks.extend(first..=last);
    }
    Ok(blocks)
}

/// What was compared, and the scores in their order.
type Scores = Vec<(String, Vec<f64>)>;

struct Layers {
    params: Params,
    listed: Option<BTreeSet<usize>>,
}

impl Layers {
    /// How many of these layers go.
    fn count(&self, all: usize) -> Result<usize, MethodError> {
        let drop = self.params.drop;
        let count = if drop < 1.0 { (drop * all as f64).round() as usize } else { drop as usize };
        let free = if self.params.protect { all.saturating_sub(2) } else { all.saturating_sub(1) };
        match count <= free {
            true => Ok(count),
            false => Err(refused(
                "the model",
                format!(
                    "has {all} layers, of which {count} cannot go (first and last stay unless \
                     protect is false)"
                ),
            )),
        }
    }

    /// The layers that may go.
    fn candidates(&self, all: usize) -> std::ops::Range<usize> {
        if self.params.protect { 1..all.saturating_sub(1) } else { 0..all }
    }

    /// The cut without these layers.
    fn without(&self, all: usize, gone: &BTreeSet<usize>, scores: Scores) -> Chosen {
        let stay = (0..all).filter(|block| !gone.contains(block)).collect();
        let blocks = (!gone.is_empty()).then_some(stay);
        Chosen { cut: Cut { blocks, ..Cut::default() }, scores, ..Chosen::default() }
    }

    /// `1 − cos` of each block, averaged over tokens.
    fn influence(&self, walk: &dyn Walk) -> Result<Vec<f64>, MethodError> {
        let blocks = walk.spec().blocks.len();
        let (mut sums, mut counts) = (vec![0.0; blocks], vec![0.0_f64; blocks]);
        walk.blocks(&mut |seen| {
            if let Seen::Passed { block, batch, before, after } = seen {
                let width = before.len() / batch.tokens().max(1);
                let rows = before.chunks_exact(width).zip(after.chunks_exact(width));
                sums[block] += rows.map(|(x, y)| 1.0 - cosine(x, y)).sum::<f64>();
                counts[block] += batch.tokens() as f64;
            }
            Ok(())
        })?;
        Ok(sums.iter().zip(&counts).map(|(sum, count)| sum / count.max(1.0)).collect())
    }

    /// The run of `count` blocks over which last tokens turn least, and the distance of every run.
    fn angular(&self, walk: &dyn Walk, count: usize) -> Result<(usize, Vec<f64>), MethodError> {
        let blocks = walk.spec().blocks.len();
        // The residual stream of each row's last token, before each block and after the last.
        let mut states: Vec<Vec<f32>> = vec![vec![]; blocks + 1];
        let last = |values: &[f32], seq_len: usize, width: usize| -> Vec<f32> {
            values
                .chunks_exact(seq_len * width)
                .flat_map(|row| row[row.len() - width..].to_vec())
                .collect()
        };
        let mut width = 1;
        walk.blocks(&mut |seen| {
            if let Seen::Passed { block, batch, before, after } = seen {
                width = before.len() / batch.tokens().max(1);
                if block == 0 {
                    states[0].extend(last(before, batch.seq_len, width));
                }
                states[block + 1].extend(last(after, batch.seq_len, width));
            }
            Ok(())
        })?;
        let distance = |first: usize| {
            let pairs =
                states[first].chunks_exact(width).zip(states[first + count].chunks_exact(width));
            let angles: Vec<f64> = pairs.map(|(x, y)| cosine(x, y).acos()).collect();
            angles.iter().sum::<f64>() / angles.len().max(1) as f64 / std::f64::consts::PI
        };
        let candidates = self.candidates(blocks);
        let starts = candidates.start..=candidates.end - count;
        let distances: Vec<f64> = starts.clone().map(distance).collect();
        let nearest: Vec<f64> = distances.iter().map(|distance| -distance).collect();
        Ok((starts.start() + largest(&nearest, 1)[0], distances))
    }

    /// Blocks one after another, each the one without which the loss is least.
    fn greedy(
        &self,
        walk: &dyn Walk,
        count: usize,
    ) -> Result<(BTreeSet<usize>, Scores), MethodError> {
        let all = walk.spec().blocks.len();
        let (mut gone, mut scores) = (BTreeSet::new(), vec![]);
        for round in 0..count {
            let left: Vec<usize> =
                self.candidates(all).filter(|block| !gone.contains(block)).collect();
            let losses = walk.losses(&gone, &left, self.params.rows)?;
            let best: Vec<f64> = losses.iter().map(|loss| -loss).collect();
            gone.insert(left[largest(&best, 1)[0]]);
            scores.push((format!("loss without one more, round {}", round + 1), losses));
        }
        Ok((gone, scores))
    }
}

impl Structural for Layers {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        let all = spec.blocks.len();
        if let Some(listed) = &self.listed {
            if listed.iter().any(|block| *block >= all) || listed.len() >= all {
                let what = format!("has layers 0 to {}, of which at least one must stay", all - 1);
                return Err(refused("the model", what));
            }
            return Ok(self.without(all, listed, vec![]));
        }
        let count = self.count(all)?;
        let end = self.candidates(all).end.min(all.saturating_sub(1).max(1));
        Ok(self.without(all, &(end - count.min(end)..end).collect(), vec![]))
    }

    fn needs_rows(&self) -> bool {
        self.listed.is_none() && self.params.criterion != Criterion::Last && self.params.drop > 0.0
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let all = walk.spec().blocks.len();
        let count = self.count(all)?;
        let (gone, scores) = match self.params.criterion {
            Criterion::Last => return self.provisional(walk.spec()),
            Criterion::BlockInfluence => {
                let influence = self.influence(walk)?;
                let candidates = self.candidates(all);
                let least: Vec<f64> = influence[candidates.clone()].iter().map(|bi| -bi).collect();
                let gone = largest(&least, count).into_iter().map(|at| candidates.start + at);
                (gone.collect(), vec![("block influence".to_owned(), influence)])
            }
            Criterion::Angular => {
                let (first, distances) = self.angular(walk, count)?;
                let label = format!("angular distance over {count} layers");
                ((first..first + count).collect(), vec![(label, distances)])
            }
            Criterion::Perplexity => self.greedy(walk, count)?,
        };
        Ok(self.without(all, &gone, scores))
    }
}

/// The cosine of two vectors, within -1 and 1; 1 where either is zero, which no block turns.
fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let length = (dot(x, x) * dot(y, y)).sqrt();
    if length == 0.0 { 1.0 } else { (dot(x, y) / length).clamp(-1.0, 1.0) }
}
