//! Whether a result can be written, and is read back as the model that it was made from.

use super::Plan;
use crate::EngineError;
use lapidary_formats::Source;
use lapidary_methods::Note;
use lapidary_model::{Op, Spec, spec};

impl Plan {
    /// Checks with the container that a result can be written, and that what is read back from it
    /// is the same model.
    pub(super) fn settle(&mut self, source: &Source) -> Result<(), EngineError> {
        let settled = self.container.settle(source, &self.tensors)?;
        let facts = settled.remarks.into_iter().map(Note::fact);
        let fallbacks = settled.departures.into_iter().map(Note::fallback);
        self.notes.extend(facts.chain(fallbacks).map(|note| (String::new(), note)));
        let Some(config) = &settled.config else { return Ok(()) };
        let mut read = Spec { family: self.spec.family, ..spec(config)? };
        forgive(&self.spec, &mut read);
        match difference(&self.spec, &read) {
            None => Ok(()),
            Some(what) => Err(EngineError::Refused(format!(
                "format {} cannot hold this model: read back, {what} would be another",
                self.format.id()
            ))),
        }
    }
}

/// Takes rotary numbers as they are where the container rounded them to single precision.
fn forgive(have: &Spec, read: &mut Spec) {
    for (have, read) in have.blocks.iter().zip(&mut read.blocks) {
        for (have, read) in have.nodes.iter().zip(&mut read.nodes) {
            if let (Op::Rope(have), Op::Rope(read)) = (&have.op, &mut read.op)
                && have.is_nearly(read)
            {
                read.clone_from(have);
            }
        }
    }
}

/// What differs between two models.
fn difference(have: &Spec, read: &Spec) -> Option<String> {
    if have == read {
        return None;
    }
    let block = have.blocks.iter().zip(&read.blocks).position(|(have, read)| have != read);
    let parts = [
        (have.vocab_size != read.vocab_size, "its vocabulary".to_owned()),
        (have.context != read.context, "its context".to_owned()),
        (have.embed != read.embed, "its embedding".to_owned()),
        (block.is_some(), format!("block {}", block.unwrap_or_default())),
        (have.head != read.head || have.tied != read.tied, "its head".to_owned()),
    ];
    let found = parts.into_iter().find(|(differs, _)| *differs);
    Some(found.map_or_else(|| "its shape".to_owned(), |(_, what)| what))
}
