//! The runner: recipe, plan, calibration, statistics, the loop over blocks, journal, publication.
//!
//! Methods see one weight at a time; everything else happens here. Memory is one block, its
//! statistics and the activations, whatever the size of the model. A job that is killed at any
//! instant goes on from the last committed block and writes the same bytes.

mod calibration;
mod card;
mod cost;
mod error;
pub mod importance;
mod manifest;
pub mod plan;
mod progress;
pub mod recipe;
mod run;
pub mod search;
mod structure;
pub mod target;

pub use calibration::{Rows, rows, tokenizer};
pub use cost::{Cost, Costs};
pub use error::{EngineError, Failure};
pub use manifest::{FILE_NAME as MANIFEST, Manifest, SiteRecord, hash_folder};
pub use plan::{Plan, SitePlan};
pub use progress::{Progress, Silent};
pub use run::{Job, Outcome, compress};
pub use search::Survey;
pub use structure::CutRecord;
