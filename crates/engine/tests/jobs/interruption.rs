//! Jobs that die at any moment, are asked to stop, or meet another job in their place.

use crate::support::{Setup, StopAfter, dies_anywhere, entries, files, real, scratch};
use lapidary_engine::{EngineError, Failure};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const STEP: &str = "method: gptq, bits: 4, group_size: 16";

fn setup(folder: &Path) -> Setup {
    Setup::new("llama-head-dim", STEP, folder, "compressed-tensors")
}

/// The disk goes away at every call that changes it, one after the other; nothing is visible then,
/// and the next run gives the bytes of an undisturbed one.
#[test]
fn a_job_that_dies_anywhere_resumes_to_the_same_bytes() {
    dies_anywhere(setup, 1, tight);
}

/// The same with a stage before the blocks, for the tables, and one after them.
#[test]
fn tables_and_heads_resume_too() {
    let step = "method: gptq, bits: 4, group_size: 16, targets: [\"re:.*(embed|head|v_proj)\"]";
    dies_anywhere(|folder| Setup::new("llama-untied", step, folder, "native"), 1, tight);
}

/// The same with the uncompressed model's activations beside the compressed one's.
#[test]
fn corrected_drift_resumes_too() {
    let step = "method: gptq, bits: 3, group_size: 16, drift_correction: 0.5";
    let setup = |folder: &Path| Setup::new("llama-head-dim", step, folder, "compressed-tensors");
    dies_anywhere(setup, 1, tight);
}

/// The least memory that the job accepts, with its activations on the disk.
fn tight(job: &Setup) -> u64 {
    let source = lapidary_formats::Source::open(real(), &job.model).unwrap();
    let recipe = lapidary_engine::recipe::Recipe::parse(&job.recipe).unwrap();
    let plan = lapidary_engine::Plan::new(&real(), &source, &recipe, job.limits).unwrap();
    plan.memory.peak - 1
}

#[test]
fn a_job_asked_to_stop_says_where_it_goes_on() {
    let scratch = scratch();
    let output = scratch.path().join("out");
    let job = setup(scratch.path());
    let stop = AtomicBool::new(false);
    let error = job.run_with(&output, &stop, &StopAfter::new(&stop, 1)).unwrap_err();
    assert_eq!(error.failure(), Failure::Interrupted);
    assert!(error.to_string().contains("go on from block 1"), "{error}");
    assert!(!output.exists());
    let outcome = job.run(&output).unwrap();
    assert_eq!((outcome.resumed, outcome.was_complete), (1, false));
    assert_eq!(entries(scratch.path()), ["out", "rows.safetensors"]);
}

#[test]
fn a_finished_job_is_not_done_again_and_another_is_refused() {
    let scratch = scratch();
    let output = scratch.path().join("out");
    let mut job = setup(scratch.path());
    job.run(&output).unwrap();
    assert!(job.run(&output).unwrap().was_complete);
    job.recipe = job.recipe.replace("bits: 4", "bits: 3");
    let error = job.run(&output).unwrap_err();
    assert_eq!(error.failure(), Failure::Refused);
    assert!(error.to_string().contains("its recipe differ"), "{error}");
    let other = scratch.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let error = job.run(&other).unwrap_err();
    assert!(error.to_string().contains("is not a result of this program"), "{error}");
}

#[test]
fn an_unfinished_job_is_not_mixed_with_another() {
    let scratch = scratch();
    let output = scratch.path().join("out");
    let mut job = setup(scratch.path());
    let stop = AtomicBool::new(false);
    job.run_with(&output, &stop, &StopAfter::new(&stop, 1)).unwrap_err();
    let recipe = std::mem::take(&mut job.recipe);
    job.recipe = recipe.replace("bits: 4", "bits: 5");
    let error = job.run(&output).unwrap_err();
    assert!(matches!(error, EngineError::Refused(_)), "{error}");
    assert!(error.to_string().contains("unfinished job"), "{error}");
    job.recipe = recipe;
    assert_eq!(job.run(&output).unwrap().resumed, 1);
}

#[test]
fn a_damaged_commit_is_done_again() {
    let (undisturbed, scratch) = (scratch(), scratch());
    setup(undisturbed.path()).run(&undisturbed.path().join("out")).unwrap();
    let output = scratch.path().join("out");
    let job = setup(scratch.path());
    let stop = AtomicBool::new(false);
    job.run_with(&output, &stop, &StopAfter::new(&stop, 1)).unwrap_err();
    let committed = scratch.path().join(".out.lapidary/stage-00000.safetensors");
    let mut bytes = std::fs::read(&committed).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&committed, bytes).unwrap();
    assert_eq!(job.run(&output).unwrap().resumed, 0);
    assert_eq!(files(&output), files(&undisturbed.path().join("out")));
}
