//! How much narrower a model becomes, and which units stay by their scores: the part that all criteria
//! of width have in common. Every layer gets the same width, since engines load no other.

use super::{Chosen, largest, refused};
use crate::{MethodError, Note, ParamError};
use lapidary_model::Spec;
use lapidary_model::cut::{Cut, KeptUnits, UnitKind, Units};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Widths {
    /// Share of the neurons of every feed-forward that goes, from 0 to 1.
    pub neurons: f64,
    /// Share of the query heads that goes: as many of each group that shares a key head; whole heads
    /// with their keys and values where each has its own.
    pub heads: f64,
    /// Share of the key heads that goes, with all query heads that share them.
    pub key_heads: f64,
    /// What the number of neurons that stay is a multiple of, so that groups of scales and devices
    /// divide it; by default 64, and less for narrow models.
    pub multiple: Option<usize>,
}

impl Default for Widths {
    fn default() -> Self {
        Self { neurons: 0.2, heads: 0.0, key_heads: 0.0, multiple: None }
    }
}

/// Scores of units: of a block's, in their order.
pub(crate) type Scores<'a> = &'a dyn Fn(usize, &Units) -> Result<Vec<f64>, MethodError>;

impl Widths {
    /// Refuses shares that are none.
    pub(crate) fn check(&self) -> Result<(), ParamError> {
        let shares =
            [("neurons", self.neurons), ("heads", self.heads), ("key_heads", self.key_heads)];
        for (key, share) in shares {
            if !(0.0..1.0).contains(&share) {
                return Err(ParamError::new(key, format!("{share} is no share from 0 to below 1")));
            }
        }
        match self.multiple {
            Some(0) => Err(ParamError::new("multiple", "0 divides nothing")),
            _ => Ok(()),
        }
    }

    /// The cut that keeps the units with the largest scores; the first ones where there are none.
    pub(crate) fn cut(
        &self,
        spec: &Spec,
        scores: Option<Scores<'_>>,
    ) -> Result<Chosen, MethodError> {
        let mut chosen = Chosen::default();
        let mut counts: Vec<(UnitKind, usize, usize)> = vec![];
        for (block, graph) in spec.blocks.iter().enumerate() {
            let units = graph.units(spec.hidden_size);
            let mut rest = &units[..];
            while let [first, after @ ..] = rest {
                rest = after;
                let kept = match (first.kind, after) {
                    (UnitKind::QueryHeads, [keys, beyond @ ..]) => {
                        rest = beyond;
                        self.heads(block, first, keys, scores)?
                    }
                    _ => vec![self.neurons(block, first, scores)?],
                };
                for (units, kept) in [first].into_iter().chain(after.first()).zip(kept) {
                    counts.push((units.kind, units.count, kept.kept.len()));
                    if kept.kept.len() < units.count {
                        chosen.cut.units.push(kept);
                    }
                }
            }
        }
        counts.sort_unstable();
        counts.dedup();
        chosen.notes = counts.iter().filter_map(|count| self.departure(*count)).collect();
        self.check_found(&counts)?;
        Ok(chosen)
    }

    /// What was asked for must be there.
    fn check_found(&self, counts: &[(UnitKind, usize, usize)]) -> Result<(), MethodError> {
        let none_of = |kind| !counts.iter().any(|(found, ..)| *found == kind);
        if self.neurons > 0.0 && none_of(UnitKind::Neurons) {
            return Err(refused("the model", "has no feed-forward whose neurons could be cut"));
        }
        if (self.heads > 0.0 || self.key_heads > 0.0) && none_of(UnitKind::QueryHeads) {
            return Err(refused("the model", "has no heads that could be cut one by one"));
        }
        Ok(())
    }

    /// What is cut otherwise than it was asked for, where whole units or multiples do not come to that.
    fn departure(&self, (kind, before, after): (UnitKind, usize, usize)) -> Option<Note> {
        let (asked, what) = match kind {
            UnitKind::Neurons => (self.neurons, "neurons"),
            UnitKind::QueryHeads if self.key_heads == 0.0 => (self.heads, "query heads"),
            UnitKind::KeyHeads if self.heads == 0.0 => (self.key_heads, "key heads"),
            _ => return None,
        };
        let share = 1.0 - after as f64 / before as f64;
        ((share - asked).abs() > 0.005).then(|| {
            Note::fact(format!(
                "{:.1} % of {before} {what} go, not {:.1} %: {after} is the next number that can stay",
                100.0 * share,
                100.0 * asked
            ))
        })
    }

    fn neurons(
        &self,
        block: usize,
        units: &Units,
        scores: Option<Scores<'_>>,
    ) -> Result<KeptUnits, MethodError> {
        let multiple = self.multiple.unwrap_or_else(|| usual_multiple(units.count));
        let wanted = (1.0 - self.neurons) * units.count as f64 / multiple as f64;
        let stay = (wanted.round() as usize).max(1) * multiple;
        let stay = if self.neurons == 0.0 { units.count } else { stay.min(units.count) };
        keep(block, units, stay, scores)
    }

    /// Query heads and key heads that stay.
    fn heads(
        &self,
        block: usize,
        queries: &Units,
        keys: &Units,
        scores: Option<Scores<'_>>,
    ) -> Result<Vec<KeptUnits>, MethodError> {
        let group = queries.count / keys.count.max(1);
        if keys.count == 0 || group * keys.count != queries.count {
            return Err(refused(&queries.reader, "has heads that cannot be told apart"));
        }
        let of = |share: f64, count: usize| {
            (((1.0 - share) * count as f64).round() as usize).clamp(1, count)
        };
        // Where each query head has its own keys, either share is of both.
        let (groups, within) = match group {
            1 => (of(self.heads.max(self.key_heads), keys.count), 1),
            _ => (of(self.key_heads, keys.count), of(self.heads, group)),
        };
        let all = |count: usize| vec![1.0; count];
        let all_stay = (groups, within) == (keys.count, group);
        let (of_queries, of_keys) = match scores.filter(|_| !all_stay) {
            Some(scores) => (scores(block, queries)?, scores(block, keys)?),
            None => (all(queries.count), all(keys.count)),
        };
        let kept_keys = largest(&of_keys, groups);
        let in_group = |key: &usize| {
            let first = key * group;
            let best = largest(&of_queries[first..first + group], within);
            best.into_iter().map(move |head| (first + head) as u32)
        };
        let kept_queries = kept_keys.iter().flat_map(in_group).collect();
        let kept_keys = kept_keys.iter().map(|key| *key as u32).collect();
        Ok(vec![kept(block, queries, kept_queries), kept(block, keys, kept_keys)])
    }
}

/// The units of the largest scores; the first ones where there are none.
fn keep(
    block: usize,
    units: &Units,
    stay: usize,
    scores: Option<Scores<'_>>,
) -> Result<KeptUnits, MethodError> {
    let scores = match scores {
        Some(scores) if stay < units.count => scores(block, units)?,
        _ => vec![1.0; units.count],
    };
    Ok(kept(block, units, largest(&scores, stay).into_iter().map(|unit| unit as u32).collect()))
}

fn kept(block: usize, units: &Units, kept: Vec<u32>) -> KeptUnits {
    KeptUnits { block, kind: units.kind, reader: units.reader.clone(), kept }
}

/// The largest power of two up to 64 of which a width is sixteen times as much.
fn usual_multiple(width: usize) -> usize {
    (0..=6).rev().map(|power| 1 << power).find(|multiple| multiple * 16 <= width).unwrap_or(1)
}

/// A cut of channels of the residual stream: those of the largest scores, as many as heads divide.
pub(crate) fn channels(
    spec: &Spec,
    share: f64,
    scores: Option<&[f64]>,
) -> Result<(Option<Vec<u32>>, Option<Note>), MethodError> {
    if share == 0.0 {
        return Ok((None, None));
    }
    let (width, wanted) = (spec.hidden_size, (1.0 - share) * spec.hidden_size as f64);
    let heads = spec.blocks.iter().flat_map(|graph| &graph.nodes).find_map(|node| match &node.op {
        lapidary_model::Op::Attention(attention) => Some(attention.heads),
        _ => None,
    });
    let heads = heads.unwrap_or(1);
    // The most regular width near what is wanted: engines and scales like multiples.
    let near = (0..=6).rev().find_map(|power| {
        let multiple = least_common_multiple(1 << power, heads);
        let stay = ((wanted / multiple as f64).round() as usize * multiple).min(width);
        ((stay as f64 - wanted).abs() <= width as f64 / 32.0 && stay > 0).then_some(stay)
    });
    let stay = near.ok_or_else(|| {
        let what = format!(
            "has {width} channels, of which no multiple of its {heads} heads is near {wanted:.0}"
        );
        refused("the model", what)
    })?;
    let scores = scores.map_or_else(|| vec![1.0; width], <[f64]>::to_vec);
    let kept = largest(&scores, stay).into_iter().map(|channel| channel as u32).collect();
    let went = 1.0 - stay as f64 / width as f64;
    let note = ((went - share).abs() > 0.005).then(|| {
        Note::fact(format!(
            "{:.1} % of {width} channels go, not {:.1} %: {stay} is a multiple of the {heads} heads",
            100.0 * went,
            100.0 * share
        ))
    });
    Ok((Some(kept), note))
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x.max(1) * b
}

/// Which channels stay of a cut that has them.
pub(crate) fn with_channels(
    mut chosen: Chosen,
    channels: (Option<Vec<u32>>, Option<Note>),
) -> Chosen {
    chosen.cut = Cut { channels: channels.0, ..chosen.cut };
    chosen.notes.extend(channels.1);
    chosen
}
