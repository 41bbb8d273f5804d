//! The steps of a recipe that go to one layer, as one method: an encoder, then corrections of what
//! it lost.

use crate::{Correction, Encoded, MethodError, Needs, Note, Site, Tensorwise};
use lapidary_weight::{FloatType, Grouping, Outline, Term, Weight};
use std::sync::Arc;

/// An encoder, and corrections that follow it in order.
pub struct Chain {
    encoder: Box<dyn Tensorwise>,
    corrections: Vec<Arc<dyn Correction>>,
}

impl Chain {
    /// The encoder with these corrections; the encoder itself when there are none.
    pub fn of(
        encoder: Box<dyn Tensorwise>,
        corrections: Vec<Arc<dyn Correction>>,
    ) -> Box<dyn Tensorwise> {
        if corrections.is_empty() { encoder } else { Box::new(Self { encoder, corrections }) }
    }

    /// Encodes `target` and corrects it towards the site's weight.
    fn round(&self, site: &Site<'_>, target: &[f32]) -> Result<Round, MethodError> {
        let Encoded { mut weight, mut notes } =
            self.encoder.encode(&Site { weight: target, ..*site })?;
        let (mut loss, own) = (f64::INFINITY, weight.terms().len());
        for correction in &self.corrections {
            let corrected = correction.correct(site, &weight)?;
            weight = sum(site, [weight.terms(), &corrected.terms].concat())?;
            notes.extend(corrected.notes);
            loss = corrected.loss;
        }
        Ok(Round { loss, own, encoded: Encoded { weight, notes } })
    }
}

/// What came of one round of encoding and correcting.
struct Round {
    /// The error that the last correction leaves.
    loss: f64,
    /// Terms that are the encoder's own.
    own: usize,
    encoded: Encoded,
}

fn sum(site: &Site<'_>, terms: Vec<Term>) -> Result<Weight, MethodError> {
    Weight::new(site.rows, site.cols, terms)
        .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })
}

impl Tensorwise for Chain {
    fn needs(&self) -> Needs {
        let needs = self.corrections.iter().map(|correction| correction.needs());
        needs.fold(self.encoder.needs(), Needs::or)
    }

    fn needs_only_diagonal(&self) -> bool {
        let asks = |correction: &Arc<dyn Correction>| correction.needs() != Needs::default();
        self.encoder.needs_only_diagonal() && !self.corrections.iter().any(asks)
    }

    fn shares_range(&self) -> bool {
        self.encoder.shares_range()
    }

    fn check_shape(&self, rows: usize, cols: usize) -> Result<(), String> {
        self.encoder.check_shape(rows, cols)
    }

    fn keeps_floats(&self) -> bool {
        self.encoder.keeps_floats()
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let mut outline = self.encoder.outline(rows, cols, scales);
        for correction in &self.corrections {
            outline.terms.extend(correction.terms(rows, cols, scales));
        }
        outline
    }

    fn departure(&self, cols: usize) -> Option<Note> {
        self.encoder.departure(cols)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let rounds = self.corrections.iter().map(|correction| correction.rounds()).max();
        let mut last = self.round(site, site.weight)?;
        let mut best = (last.loss, last.encoded.clone());
        for number in 2..=rounds.unwrap_or(1) {
            let corrections = last.encoded.weight.terms()[last.own..].to_vec();
            let correction = sum(site, corrections)?.decode();
            let target: Vec<f32> =
                site.weight.iter().zip(&correction).map(|(weight, c)| weight - c).collect();
            last = self.round(site, &target)?;
            if last.loss < best.0 {
                best = (last.loss, last.encoded.clone());
                best.1.notes.push(Note::fact(format!("the best of the rounds was {number}")));
            }
        }
        Ok(best.1)
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        let is_free = |correction: &Arc<dyn Correction>| correction.needs() == Needs::default();
        let encoder = self.encoder.without_statistics()?;
        let free = self.corrections.iter().all(is_free);
        free.then(|| Self::of(encoder, self.corrections.clone()))
    }

    fn sketch(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Self::of(self.encoder.sketch()?, self.corrections.clone()))
    }

    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        self.encoder.draft()
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let encoder = self.encoder.regroup(grouping)?;
        Some(Self::of(encoder, self.corrections.clone()))
    }
}
