//! Cosines and sines of rotary positions, made once for each kind and length.

use crate::spec::RopeOp;
use std::sync::{Arc, Mutex, PoisonError};

/// `cos` and `sin`, each `[positions, rotary / 2]`.
#[derive(Debug)]
pub struct RotaryTables {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// The tables made so far.
#[derive(Debug, Default)]
pub(super) struct RotaryCache {
    tables: Mutex<Vec<(RopeOp, usize, Arc<RotaryTables>)>>,
}

impl RotaryCache {
    pub(super) fn tables(&self, rope: &RopeOp, positions: usize) -> Arc<RotaryTables> {
        // The number of heads does not enter the tables.
        let key = RopeOp { heads: 0, ..rope.clone() };
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tables.iter().find(|(rope, length, _)| *rope == key && *length == positions);
        if let Some((_, _, tables)) = found {
            return Arc::clone(tables);
        }
        let (cos, sin) = rope.angles(positions);
        let made = Arc::new(RotaryTables { cos, sin });
        tables.push((key, positions, Arc::clone(&made)));
        made
    }
}
