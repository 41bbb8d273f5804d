//! The loop: block by block, commit by commit, to a published folder.

mod activations;
mod block;
mod expert;
mod measure;
mod observe;
mod owl;
mod publish;
mod rescale;
mod shapes;
mod structure;
mod work;

use crate::calibration::{self, Rows};
use crate::cost::{Costs, Part};
use crate::plan::{Limits, Plan, SitePlan, prepared};
use crate::recipe::Recipe;
use crate::search::{Shapes, Survey};
use crate::structure::provisional;
use crate::{EngineError, Manifest, Progress};
use block::BlockRunner;
use lapidary_formats::Source;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::memory::return_freed;
use lapidary_methods::{Needs, Note, NoteKind};
use lapidary_model::{Executor, Fused, Place};
use lapidary_store::Fs;
use lapidary_store::fs::read;
use lapidary_store::hash::sha256;
use lapidary_weight::TermOutline;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use work::Work;

/// A job: everything that decides what is written, and how it is to be run.
pub struct Job<'a> {
    /// The door to the disk.
    pub fs: Arc<dyn Fs>,
    /// The model.
    pub source: &'a Source,
    /// What to do.
    pub recipe: &'a Recipe,
    /// The folder to be written.
    pub output: &'a Path,
    /// Key of all random choices.
    pub seed: u64,
    /// Limits of the plan.
    pub limits: Limits,
    /// Refuse every fallback.
    pub strict: bool,
    /// Most bytes of a file of weights; what the format's loaders are used to where nothing is asked.
    pub shard_bytes: Option<u64>,
    /// Name that the model card gives the source.
    pub base_model: &'a str,
    /// Set from outside to stop at the next safe point.
    pub stop: &'a AtomicBool,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    /// The manifest that was published.
    pub manifest: Manifest,
    /// Blocks that an earlier run had committed.
    pub resumed: usize,
    /// The result was there already, complete, of the same job.
    pub was_complete: bool,
    /// What this run cost, by part.
    pub costs: Costs,
    /// What its part `search` is made of, where there was a search.
    pub search_costs: Option<Costs>,
}

impl Job<'_> {
    /// Stops between two steps when asked to.
    fn check_stop(&self, next: usize) -> Result<(), EngineError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(EngineError::Interrupted { next }),
            false => Ok(()),
        }
    }
}

/// Compresses a model: plans, gathers rows, goes through the blocks, publishes the folder.
///
/// Run again after any interruption, it goes on from the last committed block.
///
/// # Errors
/// When the plan refuses, an input is damaged, the disk fails, or a stop is asked for; nothing is
/// visible under the output's name then, and what was committed stays.
pub fn compress(job: &Job<'_>) -> Result<Outcome, EngineError> {
    if Shapes::are_open(job.recipe)? {
        return compress_best_shape(job);
    }
    on_sized(job, job.source, |job, whole| {
        let planned = Planned::new(job)?;
        let plan = planned.plan();
        check_place(job)?;
        check_name(job, plan)?;
        if is_settled(job) {
            planned.announce(job)?;
        }
        match begin(job, plan, planned.largest())? {
            Begun::Complete(outcome) => Ok(*outcome),
            Begun::Open(open) => {
                let (inputs, work) = *open;
                match is_settled(job) {
                    true => proceed(job, &planned, inputs, work, &[]),
                    false => settle(job, whole, plan, inputs, work, &[]),
                }
            }
        }
    })
}

/// The same where the recipe leaves open how the model is cut: chooses, and goes on as with the recipe
/// that was found.
fn compress_best_shape(job: &Job<'_>) -> Result<Outcome, EngineError> {
    let shapes = Shapes::new(&job.fs, job.source, job.recipe, job.limits, job.shard_bytes)?;
    check_place(job)?;
    check_name(job, shapes.largest())?;
    let (inputs, mut work) = match begin(job, shapes.largest(), shapes.largest())? {
        Begun::Complete(outcome) => return Ok(*outcome),
        Begun::Open(open) => *open,
    };
    for (shape, why) in &shapes.refused {
        job.progress.note(&format!("{shape} is no candidate: {why}"));
    }
    let costs = Costs::default();
    let found = inputs.costs.charge(Part::Search, || {
        shapes::choose(job, &shapes, means(shapes.largest(), &inputs, &costs), &mut work)
    })?;
    costs.halt();
    for line in &found.summary {
        job.progress.note(line);
    }
    let found_job = Job { recipe: &found.recipe, fs: Arc::clone(&job.fs), ..*job };
    let outcome = on_sized(&found_job, job.source, |job, whole| {
        // A recipe that needs no rows is carried out without, as it is when it is run by itself.
        let rows = inputs.rows.filter(|_| found.plan.calibration.is_some());
        let inputs = Inputs { rows, ..inputs };
        settle(job, whole, &found.plan, inputs, work, &found.files)
    })?;
    Ok(Outcome { search_costs: Some(costs), ..outcome })
}

/// Goes on with the source as the recipe wants it: of which size, rewritten or not, tied or not. Which
/// parts of the whole stay is settled later.
fn on_sized(
    job: &Job<'_>,
    whole: &Source,
    go_on: impl FnOnce(&Job<'_>, &Source) -> Result<Outcome, EngineError>,
) -> Result<Outcome, EngineError> {
    let sized = provisional(whole, job.recipe)?;
    let source = sized.as_ref().map_or(whole, |(sized, _)| sized);
    let prepared = prepared(source, job.recipe, job.seed)?;
    let source = prepared.as_ref().unwrap_or(source);
    go_on(&Job { source, fs: Arc::clone(&job.fs), ..*job }, whole)
}

/// Whether the plan of a job says all there is to be chosen before the loop.
fn is_settled(job: &Job<'_>) -> bool {
    !job.source.is_cut() && !owl::is_open(job.recipe)
}

/// A job before its work: finished by an earlier run, or with its work folder open.
enum Begun {
    Complete(Box<Outcome>),
    Open(Box<(Inputs, Work)>),
}

/// Reads the calibration text, hashes the source, and opens the work folder.
fn begin(job: &Job<'_>, plan: &Plan, largest: &Plan) -> Result<Begun, EngineError> {
    let costs = Costs::default();
    // What opening the source took, and then what the tokenizer took, is not needed again.
    return_freed();
    let rows = rows(job, plan)?;
    return_freed();
    let identity = costs.charge(Part::Hash, || identity(job, plan, rows.as_ref()))?;
    if let Some(manifest) = already_complete(job, &identity)? {
        // A run that ended between naming the result and tidying up has left its work behind.
        work::discard(job)?;
        let search_costs = None;
        let outcome = Outcome { manifest, resumed: 0, was_complete: true, costs, search_costs };
        return Ok(Begun::Complete(Box::new(outcome)));
    }
    check_disk(job, largest)?;
    let work = Work::open(job, &identity)?;
    Ok(Begun::Open(Box::new((Inputs { rows, identity, costs }, work))))
}

/// How a cut is gone about in a job.
fn means<'a>(plan: &Plan, inputs: &'a Inputs, costs: &'a Costs) -> structure::Means<'a> {
    structure::Means {
        rows: inputs.rows.as_ref(),
        precision: plan.precision(),
        activations_in: plan.memory.activations_in,
        costs,
    }
}

/// Settles what the rows decide before the loop (what is cut, and how much is pruned where), and goes
/// on.
fn settle(
    job: &Job<'_>,
    whole: &Source,
    plan: &Plan,
    inputs: Inputs,
    mut work: Work,
    more_files: &[(&str, Vec<u8>)],
) -> Result<Outcome, EngineError> {
    let means = means(plan, &inputs, &inputs.costs);
    let is_cut = job.source.is_cut();
    let cut = is_cut.then(|| structure::cut(job, whole, means, &mut work)).transpose()?;
    let prepared = cut.as_ref().map(|cut| prepared(cut, job.recipe, job.seed)).transpose()?;
    let source = prepared.as_ref().and_then(Option::as_ref).or(cut.as_ref()).unwrap_or(job.source);
    let is_open = owl::is_open(job.recipe);
    let settled = is_open.then(|| owl::settle(job, source, means, &mut work)).transpose()?;
    let recipe = settled.as_ref().unwrap_or(job.recipe);
    let job = Job { source, recipe, fs: Arc::clone(&job.fs), ..*job };
    let planned = Planned::new(&job)?;
    planned.announce(&job)?;
    proceed(&job, &planned, inputs, work, more_files)
}

/// What a job will do: one plan, or a survey of many.
enum Planned<'a> {
    Plan(Box<Plan>),
    Survey(Box<Survey<'a>>),
}

impl<'a> Planned<'a> {
    fn new(job: &'a Job<'_>) -> Result<Self, EngineError> {
        let (source, recipe, limits) = (job.source, job.recipe, job.limits);
        match recipe.budget {
            Some(_) => Survey::new(&job.fs, source, recipe, limits, job.shard_bytes)
                .map(|survey| Self::Survey(Box::new(survey))),
            None => {
                Plan::new(&job.fs, source, recipe, limits).map(|plan| Self::Plan(Box::new(plan)))
            }
        }
    }

    /// The plan that stands for all of them where they do not differ.
    fn plan(&self) -> &Plan {
        match self {
            Self::Plan(plan) => plan,
            Self::Survey(survey) => survey.plan(),
        }
    }

    /// The plan that writes the most.
    fn largest(&self) -> &Plan {
        match self {
            Self::Plan(plan) => plan,
            Self::Survey(survey) => survey.largest(),
        }
    }

    /// Tells of the plan's notes, where there is one plan.
    fn announce(&self, job: &Job<'_>) -> Result<(), EngineError> {
        match self {
            Self::Plan(plan) => announce_plan(job, plan),
            Self::Survey(_) => Ok(()),
        }
    }
}

/// Searches where something is open, and goes through the blocks.
fn proceed(
    job: &Job<'_>,
    planned: &Planned<'_>,
    inputs: Inputs,
    work: Work,
    more_files: &[(&str, Vec<u8>)],
) -> Result<Outcome, EngineError> {
    match planned {
        Planned::Survey(survey) => search(job, survey, inputs, work),
        Planned::Plan(plan) => carry_out(job, plan, inputs, work, more_files),
    }
}

/// What a job has gathered before it begins its work.
struct Inputs {
    rows: Option<Rows>,
    identity: Value,
    costs: Costs,
}

/// Searches for the best recipe within the budget, and carries that out.
fn search(
    job: &Job<'_>,
    survey: &Survey<'_>,
    inputs: Inputs,
    mut work: Work,
) -> Result<Outcome, EngineError> {
    for (candidate, why) in &survey.refused {
        job.progress.note(&format!("{candidate} is no candidate: {why}"));
    }
    let missing = || EngineError::Internal("a search without rows".to_owned());
    let rows = inputs.rows.as_ref().ok_or_else(missing)?;
    let costs = Costs::default();
    let found = inputs.costs.charge(Part::Search, || {
        let measured = measure::measure(job, survey, rows, &mut work, &costs)?;
        survey.choose(&measured)
    })?;
    costs.halt();
    for line in &found.summary {
        job.progress.note(line);
    }
    let job = Job { recipe: &found.recipe, fs: Arc::clone(&job.fs), ..*job };
    announce_plan(&job, &found.plan)?;
    // A recipe that needs no rows is carried out without, as it is when it is run by itself.
    let rows = inputs.rows.filter(|_| found.plan.calibration.is_some());
    let inputs = Inputs { rows, ..inputs };
    let outcome = carry_out(&job, &found.plan, inputs, work, &found.files)?;
    Ok(Outcome { search_costs: Some(costs), ..outcome })
}

/// Goes through the blocks and publishes the folder, with these files beside the usual ones.
fn carry_out(
    job: &Job<'_>,
    plan: &Plan,
    inputs: Inputs,
    mut work: Work,
    more_files: &[(&str, Vec<u8>)],
) -> Result<Outcome, EngineError> {
    let Inputs { rows, identity, costs } = inputs;
    let rows = rows.as_ref();
    let committed = &stages(plan)[..work.committed()];
    let resumed = committed.iter().filter(|stage| matches!(stage, Place::Block(_))).count();
    if resumed > 0 {
        job.progress.note(&format!("resuming: {resumed} blocks are done"));
    }
    run_blocks(job, plan, rows, &mut work, &costs)?;
    let manifest = costs
        .charge(Part::Write, || publish::publish(job, plan, rows, &identity, work, more_files))?;
    Ok(Outcome { manifest, resumed, was_complete: false, costs, search_costs: None })
}

/// A result within the source's folder would be part of the source the next time.
fn check_place(job: &Job<'_>) -> Result<(), EngineError> {
    let source = job.fs.canonicalize(job.source.path())?;
    let output = std::path::absolute(job.output).unwrap_or_else(|_| job.output.to_owned());
    // The output does not exist yet: the nearest folder above it that does, decides.
    let above = output.ancestors().skip(1).find_map(|above| job.fs.canonicalize(above).ok());
    if above.is_some_and(|above| above.starts_with(&source)) {
        return Err(EngineError::Refused(format!(
            "{} is in the model's own folder {}; choose another -o",
            job.output.display(),
            job.source.path().display()
        )));
    }
    Ok(())
}

/// A result that is one file has a folder of its own, in which card and manifest lie beside it.
fn check_name(job: &Job<'_>, plan: &Plan) -> Result<(), EngineError> {
    let id = plan.format.id();
    if plan.container.has_files() || job.output.extension().is_none_or(|end| end != id) {
        return Ok(());
    }
    let folder = job.output.with_extension("");
    Err(EngineError::Refused(format!(
        "{} names a file, and format {id} writes a folder with model.{id} and its manifest; write \
         -o {folder} and find {folder}/model.{id}",
        job.output.display(),
        folder = folder.display()
    )))
}

/// Tells of the plan's notes, alike ones together; a fallback ends a strict job.
fn announce_plan(job: &Job<'_>, plan: &Plan) -> Result<(), EngineError> {
    for summary in plan.summaries() {
        job.progress.note(&summary);
    }
    let is_fallback = |note: &Note| note.kind == NoteKind::Fallback;
    match plan.notes.iter().find(|(_, note)| is_fallback(note)) {
        Some((site, note)) => match plan.notes.iter().filter(|(_, other)| other == note).count() {
            1 => allow(job, site, note),
            count => allow(job, &format!("{count} layers"), note),
        },
        None => Ok(()),
    }
}

/// Tells of a note; a fallback ends a strict job.
fn announce(job: &Job<'_>, site: &str, note: &Note) -> Result<(), EngineError> {
    let what = if site.is_empty() { note.what.clone() } else { format!("{site}: {}", note.what) };
    job.progress.note(&what);
    allow(job, site, note)
}

/// A fallback ends a strict job.
fn allow(job: &Job<'_>, site: &str, note: &Note) -> Result<(), EngineError> {
    match note.kind {
        NoteKind::Fallback if job.strict => {
            let site = if site.is_empty() { "the job" } else { site };
            Err(EngineError::Strict { site: site.to_owned(), what: note.what.clone() })
        }
        _ => Ok(()),
    }
}

/// Calibration rows, when a method needs them.
fn rows(job: &Job<'_>, plan: &Plan) -> Result<Option<Rows>, EngineError> {
    let Some(wanted) = &plan.calibration else { return Ok(None) };
    job.progress.begin("reading calibration text", 0);
    let rows = calibration::rows(&job.fs, job.source, wanted, plan.spec.context, job.seed)?;
    job.progress.end();
    for note in &rows.notes {
        announce(job, "calibration", note)?;
    }
    Ok(Some(rows))
}

/// Everything that the written bytes depend on.
fn identity(job: &Job<'_>, plan: &Plan, rows: Option<&Rows>) -> Result<Value, EngineError> {
    let total = plan.source_bytes >> 20;
    job.progress.begin("hashing the source (MB)", total);
    let (mut done, mut told) = (0_u64, 0);
    let hashes = job.source.hash_files(&mut |bytes| {
        done += bytes;
        if done >> 20 != told {
            told = done >> 20;
            job.progress.advance(told, "");
        }
    })?;
    job.progress.end();
    let inputs: Vec<Value> = hashes
        .iter()
        .map(|file| json!({ "name": file.name, "bytes": file.bytes, "sha256": file.sha256 }))
        .collect();
    let most = 1 << 30;
    let hash = |path: &String| -> Result<String, EngineError> {
        Ok(sha256(&read(&*job.fs, Path::new(path), "the importance matrix", most)?))
    };
    let imatrix = job.recipe.calibration.imatrix.as_ref().map(hash).transpose()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "inputs": inputs,
        "recipe": job.recipe.to_json(),
        "calibration_tokens": rows.map(Rows::sha256),
        "imatrix": imatrix,
        "seed": job.seed,
        "shard_bytes": job.shard_bytes,
        "base_model": job.base_model,
        "instructions": instructions(plan, rows),
    }))
}

/// The level of vector instructions, where the written bytes depend on it: products of rounded
/// factors and eigenvectors are summed in another order on each.
fn instructions(plan: &Plan, rows: Option<&Rows>) -> Value {
    let is_low_rank = |term: &TermOutline| matches!(term, TermOutline::LowRank { .. });
    let mut terms = plan.sites.iter().flat_map(|site| &site.outline.terms);
    match rows.is_some() || terms.any(is_low_rank) {
        true => json!(format!("{:?}", Isa::detect()).to_lowercase()),
        false => Value::Null,
    }
}

/// The manifest of a finished result of the same job; another thing under the name is refused.
fn already_complete(job: &Job<'_>, identity: &Value) -> Result<Option<Manifest>, EngineError> {
    if job.fs.metadata(job.output).is_err_and(|error| error.is_not_found()) {
        return Ok(None);
    }
    let exists = |what: &str| {
        let path = job.output.display();
        EngineError::Refused(format!("{path} exists {what}; remove it or choose another -o"))
    };
    let Ok(manifest) = Manifest::read(&*job.fs, job.output) else {
        return Err(exists("and is not a result of this program"));
    };
    match manifest.identity == *identity {
        true => Ok(Some(manifest)),
        false => Err(exists(&format!(
            "and is of another job: {}",
            difference(&manifest.identity, identity)
        ))),
    }
}

/// Which fields of two identities differ.
fn difference(have: &Value, want: &Value) -> String {
    let keys = want.as_object().into_iter().flat_map(|fields| fields.keys());
    let different: Vec<&str> =
        keys.filter(|key| have.get(*key) != want.get(*key)).map(String::as_str).collect();
    format!("its {} differ", different.join(" and "))
}

/// There must be room for everything that will be written, and 5 % more.
fn check_disk(job: &Job<'_>, plan: &Plan) -> Result<(), EngineError> {
    let need = plan.disk_bytes() + plan.disk_bytes() / 20;
    let folder = work::parent(job.output);
    let free = job.fs.free_space(&folder)?;
    if free < need {
        let what = format!(
            "{} has {} MB free and the job needs {} MB; free some, or choose another -o",
            folder.display(),
            free / 1_000_000,
            need.div_ceil(1_000_000)
        );
        return Err(EngineError::Refused(what));
    }
    Ok(())
}

fn run_blocks(
    job: &Job<'_>,
    plan: &Plan,
    rows: Option<&Rows>,
    work: &mut Work,
    costs: &Costs,
) -> Result<(), EngineError> {
    let stages = stages(plan);
    let first = work.committed();
    if first == stages.len() {
        return Ok(());
    }
    let executor = Executor::new(Fused { precision: plan.precision() });
    let seq_len = rows.map_or(1, |rows| rows.seq_len);
    let runner = BlockRunner { job, plan, costs, executor: &executor, seq_len };
    job.progress.begin("compressing", stages.len() as u64);
    // Activations are needed up to the last stage with a method that wants statistics of them.
    let needs = |stage: &Place| plan.sites_in(*stage).any(|site| site.needs() != Needs::default());
    let end = stages.iter().rposition(needs).map_or(0, |last| last + 1);
    let mut activations = None;
    for (index, stage) in stages.iter().enumerate().skip(first) {
        job.check_stop(next_block(plan, *stage))?;
        job.progress.advance(index as u64, &stage_name(plan, *stage));
        if index >= end {
            activations = None;
        } else if let (None, Some(rows), true) = (&activations, rows, *stage != Place::Embedding) {
            activations = Some(runner.restore(rows, &stages[..index], work)?);
        }
        let is_last = index + 1 >= end;
        let done = runner.compress(*stage, activations.as_mut(), is_last, index, work)?;
        for (site, note) in done.notes() {
            announce(job, site, note)?;
        }
        costs.charge(Part::Write, || -> Result<(), EngineError> {
            work.commit(index, &done)?;
            match activations.as_ref().filter(|_| !is_last) {
                Some(streams) => work.keep(&streams.compressed, index + 1),
                None => Ok(()),
            }
        })?;
        job.progress.advance(index as u64 + 1, &stage_name(plan, *stage));
    }
    job.progress.end();
    Ok(())
}

/// The stages of a job, each a part of the model that is committed as one: the tables, the blocks
/// up to the last with a site (all of them, where the head wants statistics), the head.
fn stages(plan: &Plan) -> Vec<Place> {
    let all = plan.spec.blocks.len();
    let after = |stage| match stage {
        Place::Embedding => 0,
        Place::Block(block) => block + 1,
        Place::Head => all,
    };
    let wants_all =
        |site: &&SitePlan| site.stage != Place::Head || site.needs() != Needs::default();
    let blocks = plan.sites.iter().filter(wants_all).map(|site| after(site.stage)).max();
    let exists = |stage: &Place| plan.sites_in(*stage).next().is_some();
    let tables = Some(Place::Embedding).filter(exists);
    let head = Some(Place::Head).filter(exists);
    tables.into_iter().chain((0..blocks.unwrap_or(0)).map(Place::Block)).chain(head).collect()
}

fn stage_name(plan: &Plan, stage: Place) -> String {
    match stage {
        Place::Embedding => "embedding".to_owned(),
        Place::Block(block) => format!("block {} of {}", block + 1, plan.spec.blocks.len()),
        Place::Head => "head".to_owned(),
    }
}

/// The first block that is not done before a stage, for messages.
fn next_block(plan: &Plan, stage: Place) -> usize {
    match stage {
        Place::Embedding => 0,
        Place::Block(block) => block,
        Place::Head => plan.spec.blocks.len(),
    }
}
