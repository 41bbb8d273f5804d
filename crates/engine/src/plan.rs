//! The plan: what a recipe would do to a model, everything checked and predicted before any work.

mod chain;
mod count;
mod fit;
mod memory;
mod prepare;
mod rescale;
mod settle;
mod stored;

pub(crate) use count::read_by_a_token;
pub(crate) use memory::CHUNK_TOKENS;
pub use memory::{ActivationsIn, MemoryPlan};
pub(crate) use prepare::{prepared, untied};

use crate::EngineError;
use crate::calibration;
use crate::importance;
use crate::recipe::{Calibration, Depth, Recipe, Step};
use crate::structure;
use crate::target::{Finding, Stored as Loadable, Target};
use chain::Chained;
use fit::{Fitted, fit, inputs_of, no_longer_rounded};
use lapidary_formats::gguf::Importance;
use lapidary_formats::{
    Container, Format, Kept, Layout, LogicalTensor, ModuleKind, Pattern, Source, find,
};
use lapidary_methods::owl;
use lapidary_methods::{Blockwise, Method, Needs, Note, Tensorwise};
use lapidary_model::{LinearOp, Matrix, Place, Precision, Spec, UNKNOWN};
use lapidary_store::{Dtype, Fs, TensorSpec};
use lapidary_weight::{FloatType, InputRounding, Outline, Tensors, TermOutline};
use memory::Shapes;
use prepare::{by_shapes, left_as_it_is, made_apart, spec_of};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stored::Binding;

/// What will be done to a model.
pub struct Plan {
    /// The model.
    pub spec: Spec,
    /// Every linear layer and table that is compressed, in the order of the model.
    pub sites: Vec<SitePlan>,
    /// Linear modules left as they are.
    pub plain: Vec<String>,
    /// Tensors handed on as they are.
    pub copied: Vec<String>,
    /// Tensors that are written changed and not encoded; with the stage that settles their values,
    /// where these follow from the calibration.
    pub rewritten: Vec<(String, Option<Place>)>,
    /// Tensors of the checkpoint that are not written, with the reason.
    pub dropped: Vec<(String, String)>,
    /// Tensors of the result, in order.
    pub tensors: Vec<TensorSpec>,
    /// The format.
    pub format: &'static dyn Format,
    /// The files that its tensors become.
    pub container: Box<dyn Container>,
    /// Type of the model's floats.
    pub float_type: FloatType,
    /// The recipe's calibration; `None` when no method needs statistics.
    pub calibration: Option<Calibration>,
    /// What stands in for calibration, where the recipe names it.
    pub importance: Option<Importance>,
    /// What departs from the recipe, by site or for the whole (`""`).
    pub notes: Vec<(String, Note)>,
    /// Predicted memory.
    pub memory: MemoryPlan,
    /// Bytes of the source's weight files.
    pub source_bytes: u64,
}

/// What will be done to one linear layer or table.
#[derive(Clone)]
pub struct SitePlan {
    /// The layer; a table counts as one of as many outputs as it has rows.
    pub linear: LinearOp,
    /// Where it stands.
    pub place: Place,
    /// When it is encoded: with its place, but a table that the head multiplies by with the head
    /// where the method wants statistics of the head's input.
    pub stage: Place,
    /// Names of the steps, in order, with ` + ` between them.
    pub step: String,
    /// Ids of their methods, likewise.
    pub method_id: String,
    /// What scales its inputs before it is encoded.
    pub blockwise: Option<Arc<dyn Blockwise>>,
    /// What encodes and corrects the weight, as one method.
    pub method: Arc<dyn Tensorwise>,
    /// What it will be.
    pub outline: Outline,
    /// How its inputs are rounded when the model is run.
    pub inputs: Option<InputRounding>,
    /// The format that it is stored in: the plan's, or one of its kin.
    pub format: &'static dyn Format,
}

impl SitePlan {
    /// What must be gathered for its steps.
    pub fn needs(&self) -> Needs {
        let blockwise = self.blockwise.as_ref().map(|method| method.needs());
        self.method.needs().or(blockwise.unwrap_or_default())
    }

    /// Whether its steps want to know anything of its inputs.
    pub(crate) fn wants_statistics(&self) -> bool {
        self.needs() != Needs::default()
    }

    /// The same with the stand-in by which a search compares layers; `None` when there is none.
    pub(crate) fn sketch(&self, scales: FloatType) -> Option<Self> {
        let method = self.method.sketch()?;
        let outline = method.outline(self.linear.out_features, self.linear.in_features, scales);
        Some(Self { method: method.into(), outline, ..self.clone() })
    }
}

/// Limits a plan must keep.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Most memory, in bytes.
    pub memory: Option<u64>,
    /// Who is to load the result.
    pub target: Option<Target>,
}

impl Plan {
    /// Plans a recipe on a model.
    ///
    /// # Errors
    /// When a pattern matches nothing, the steps of a layer make no chain, the format cannot hold
    /// what they emit, a tensor is missing or of the wrong shape, or the memory does not suffice.
    pub fn new(
        fs: &Arc<dyn Fs>,
        source: &Source,
        recipe: &Recipe,
        limits: Limits,
    ) -> Result<Self, EngineError> {
        let whole = source;
        let cut = structure::provisional(source, recipe)?;
        let source = cut.as_ref().map_or(source, |(cut, _)| cut);
        // A plan names tensors and counts bytes: any seed will do.
        let prepared = prepared(source, recipe, 0)?;
        let source = prepared.as_ref().unwrap_or(source);
        let spec = spec_of(source, recipe)?;
        check_tensors(&spec, source)?;
        let unknown = || EngineError::Refused(format!("there is no format {:?}", recipe.format));
        let format = find(&recipe.format).ok_or_else(unknown)?;
        let container = format.container(source)?;
        let float_type = source.float_type();
        let mut notes: Vec<(String, Note)> = vec![];
        notes.extend(cut.iter().flat_map(|(_, n)| n).map(|n| (String::new(), n.clone())));
        let mut sites = sites(source, &spec, recipe, format, &mut notes)?;
        let rescaled = rescale::settle(&spec, &mut sites);
        notes.extend(rescaled.notes);
        notes.extend(left_as_it_is(recipe, &spec)?);
        notes.extend(by_shapes(&spec));
        notes.extend(made_apart(source, &spec));
        notes.extend(requantized(source, &sites));
        notes.extend(no_longer_rounded(source, &sites));
        let as_read = |(site, what): (&str, &str)| (site.to_owned(), Note::fact(what));
        notes.extend(source.notes().map(as_read));
        let read = |path: &String| importance::read(&**fs, source, path, &sites);
        let importance = recipe.calibration.imatrix.as_ref().map(read).transpose()?;
        // A search measures every layer, whatever its method needs.
        let calibrated = recipe.budget.is_some()
            || importance.is_none() && sites.iter().any(SitePlan::wants_statistics)
            || structure::wants_rows(recipe)?
            || recipe.steps.iter().any(|step| owl::wanted(&step.params).is_some());
        if calibrated && spec.family == UNKNOWN {
            let what = "no family knows this model, so that it cannot be run: only methods without \
                        calibration go to it (rtn, omse, hqq, bcq)";
            return Err(EngineError::Refused(what.to_owned()));
        }
        if calibrated && spec.shares_blocks() {
            let what = "the blocks of this model share their weights, which have other inputs in \
                        each: only methods without calibration go to it (rtn, omse, hqq, bcq)";
            return Err(EngineError::Refused(what.to_owned()));
        }
        check_transposed(source, &sites, &rescaled.tensors, (format, &*container))?;
        let calibration = calibrated.then(|| recipe.calibration.clone());
        let rows = match &calibration {
            Some(calibration) => calibration::shape(fs, calibration, spec.context)?,
            None => (0, 1),
        };
        let writing = container.writing_bytes(source);
        let whole = structure::wants_rows(recipe)?.then(|| spec_of(whole, recipe)).transpose()?;
        let taped = structure::taped_tokens(recipe)?;
        let whole = whole.as_ref().map(|whole| (whole, taped));
        let shapes = Shapes { source, spec: &spec, whole, sites: &sites, rows, writing };
        let memory = shapes.plan(calibration.as_ref(), limits)?;
        let plain = plain_modules(&spec, source, &sites);
        accepts_together(format, &sites, &plain)?;
        let mut plan = Self {
            plain,
            spec,
            sites,
            copied: vec![],
            rewritten: rescaled.tensors,
            dropped: source.consumed().to_vec(),
            tensors: vec![],
            format,
            container,
            float_type,
            calibration,
            importance,
            notes,
            memory,
            source_bytes: source.total_bytes(),
        };
        plan.lay_out(source);
        plan.settle(source)?;
        plan.rewritten.iter().try_for_each(|(name, _)| plan.written(name).map(|_| ()))?;
        limits.target.map_or(Ok(()), |target| plan.check_target(target))?;
        Ok(plan)
    }

    /// Refuses what an engine would, and notes what only some of its kernels take.
    fn check_target(&mut self, target: Target) -> Result<(), EngineError> {
        let findings = target.findings(&Loadable::in_plan(self));
        let refused: Vec<_> = findings.iter().filter(|finding| finding.is_refused).collect();
        if let Some(first) = refused.first() {
            let more = match refused.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            return Err(EngineError::Refused(format!("{first}{more}")));
        }
        let note = |finding: Finding| (finding.module.clone(), Note::fact(finding.advice()));
        self.notes.extend(findings.into_iter().map(note));
        Ok(())
    }

    /// Whether some method wants to know how its inputs drift from the uncompressed model's.
    pub(crate) fn needs_drift(&self) -> bool {
        self.sites.iter().any(|site| site.needs().drift)
    }

    /// How a tensor that is not encoded is written, and as which floats.
    pub(crate) fn written(&self, name: &str) -> Result<(&TensorSpec, FloatType), EngineError> {
        let spec = self.tensors.iter().find(|tensor| tensor.name == name);
        let float = |spec: &TensorSpec| match spec.dtype {
            Dtype::F32 => Some(FloatType::F32),
            Dtype::F16 => Some(FloatType::F16),
            Dtype::BF16 => Some(FloatType::Bf16),
            _ => None,
        };
        let found = spec.and_then(|spec| Some((spec, float(spec)?)));
        found.ok_or_else(|| EngineError::Refused(format!("{name} is no tensor of plain floats")))
    }

    /// The tensors that a stage writes changed besides those it encodes.
    pub(crate) fn rewritten_in(&self, stage: Place) -> impl Iterator<Item = &str> {
        let of_stage = move |(_, when): &&(String, Option<Place>)| *when == Some(stage);
        self.rewritten.iter().filter(of_stage).map(|(name, _)| name.as_str())
    }

    /// How the inputs of compressed layers are rounded, by module.
    pub(crate) fn inputs(&self) -> Vec<(String, InputRounding)> {
        let rounded = |site: &SitePlan| Some((site.linear.module.clone(), site.inputs?));
        self.sites.iter().filter_map(rounded).collect()
    }

    /// What calibration rounds the factors of products to.
    pub(crate) fn precision(&self) -> Precision {
        self.calibration.as_ref().map_or(Precision::F32, |calibration| calibration.precision.into())
    }

    /// The site of a tensor.
    pub fn site_of(&self, tensor: &str) -> Option<&SitePlan> {
        self.sites.iter().find(|site| site.linear.weight == tensor)
    }

    /// The sites that are encoded in a stage.
    pub fn sites_in(&self, stage: Place) -> impl Iterator<Item = &SitePlan> {
        self.sites.iter().filter(move |site| site.stage == stage)
    }

    /// Bytes of the tensors that will be written.
    pub fn output_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.byte_len().unwrap_or(0)).sum()
    }

    /// Disk needed while the job runs: committed blocks, the result, and activations that are kept
    /// on the disk.
    pub fn disk_bytes(&self) -> u64 {
        let committed: u64 = self.sites.iter().map(|site| self.site_bytes(site)).sum();
        self.output_bytes() + committed + self.memory.disk_activations
    }

    /// The notes as people read them, those that are alike in one line.
    pub fn summaries(&self) -> Vec<String> {
        let mut alike: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (site, note) in &self.notes {
            alike.entry(note.what.as_str()).or_default().push(site);
        }
        let line = |(what, sites): (&str, Vec<&str>)| match sites[..] {
            [""] => what.to_owned(),
            [site] => format!("{site}: {what}"),
            _ => format!("{} layers: {what}", sites.len()),
        };
        alike.into_iter().map(line).collect()
    }

    /// Bytes of the tensors of a site.
    pub(crate) fn site_bytes(&self, site: &SitePlan) -> u64 {
        let tensors = site.format.tensors(&site.linear.module, &site.outline, self.float_type);
        tensors.iter().map(|tensor| tensor.byte_len().unwrap_or(0)).sum()
    }

    /// The type of the floats of a site's method.
    pub(crate) fn scale_type(&self, site: &SitePlan) -> FloatType {
        scale_type(&*site.method, self.format, self.float_type)
    }

    /// The share of the compressed layers' weights that is pruned; `None` where none is.
    pub fn sparsity(&self) -> Option<f64> {
        let all = |site: &SitePlan| (site.outline.rows, site.outline.cols);
        let pruned = |site: &SitePlan| {
            let (rows, cols) = all(site);
            site.method.pruned(rows, cols)
        };
        let count: usize = self.sites.iter().filter_map(pruned).sum();
        let whole: usize =
            self.sites.iter().map(|site| site.outline.rows * site.outline.cols).sum();
        self.sites.iter().any(|site| pruned(site).is_some()).then(|| count as f64 / whole as f64)
    }

    /// Whether a search compares layers by stand-ins for its methods.
    pub(crate) fn has_sketches(&self) -> bool {
        self.sites.iter().any(|site| site.method.sketch().is_some())
    }

    /// Bits stored for each weight of the compressed layers of the blocks: codes, scales, zeros,
    /// indices. `None` when there are none.
    pub fn bits_per_weight(&self) -> Option<f64> {
        self.bits(|site| matches!(site.place, Place::Block(_)))
    }

    /// The same of the compressed tables and heads.
    pub fn table_bits_per_weight(&self) -> Option<f64> {
        self.bits(|site| !matches!(site.place, Place::Block(_)))
    }

    fn bits(&self, among: impl Fn(&SitePlan) -> bool) -> Option<f64> {
        let sites = || self.sites.iter().filter(|site| among(site));
        let weights: u64 = sites().map(|site| (site.outline.rows * site.outline.cols) as u64).sum();
        let bits: u64 = sites().map(|site| 8 * self.site_bytes(site)).sum();
        (weights > 0).then(|| bits as f64 / weights as f64)
    }

    /// Fills the lists of tensors: every one of the source is compressed, copied or dropped.
    fn lay_out(&mut self, source: &Source) {
        for tensor in source.tensors() {
            match self.site_of(&tensor.name) {
                Some(site) => {
                    let module = &site.linear.module;
                    let tensors = site.format.tensors(module, &site.outline, self.float_type);
                    self.tensors.extend(tensors);
                }
                None => {
                    let dtype = match self.container.keep(source, tensor) {
                        Kept::As(dtype) => dtype,
                        Kept::Dropped(reason) => {
                            self.dropped.push((tensor.name.clone(), reason));
                            continue;
                        }
                    };
                    let is_rescaled = self.rewritten.iter().any(|(name, _)| *name == tensor.name);
                    if source.is_edited(&tensor.name) && !is_rescaled {
                        self.rewritten.push((tensor.name.clone(), None));
                    } else if !is_rescaled {
                        self.copied.push(tensor.name.clone());
                    }
                    let shape = match self.container.is_upright() {
                        true => tensor.shape.clone(),
                        false => tensor.raw_shape(),
                    };
                    self.tensors.push(TensorSpec::new(&tensor.name, dtype, shape));
                }
            }
        }
    }
}

/// The sites of a recipe, each with its method; what departs from the recipe goes to the notes.
fn sites(
    source: &Source,
    spec: &Spec,
    recipe: &Recipe,
    format: &'static dyn Format,
    notes: &mut Vec<(String, Note)>,
) -> Result<Vec<SitePlan>, EngineError> {
    let choice = choose(spec, recipe)?;
    let mut sites = vec![];
    for (matrix, steps) in choice {
        let chained = chain::link(recipe, &steps, &matrix.linear.module)?;
        let scales = scale_type(&*chained.method, format, source.float_type());
        if chained.blockwise.is_some() && matrix.place == Place::Embedding {
            return Err(EngineError::Refused(format!(
                "step {}: the rows of {} are looked up, so that its inputs cannot be scaled; \
                 add it to ignore, or with untie: true give the head that shares it its own",
                chained.step, matrix.linear.module
            )));
        }
        let inputs = inputs_of(&chained, &matrix, source, format)?;
        let (chained, kept) = match chained.method.keeps_stored() {
            false => (chained, None),
            true => match stored::bind(chained, &matrix, source, scales, format, inputs)? {
                Binding::To(chained, note) => (chained, note),
                Binding::Plain(note) => {
                    notes.extend(note.map(|note| (matrix.linear.module, note)));
                    continue;
                }
            },
        };
        let (chained, unweighted) = with_statistics_there_are(chained, &matrix)?;
        let Chained { step, method_id, blockwise, method, .. } = chained;
        let Fitted { method, outline, format, note: fitted } =
            fit(method, &matrix, scales, format, inputs)?;
        let Matrix { linear, place, tied, .. } = matrix;
        let note = |note| (linear.module.clone(), note);
        let departure = method.departure(linear.in_features);
        let all = kept.into_iter().chain(unweighted).chain(fitted).chain(departure);
        notes.extend(all.map(note));
        let of_head = tied.is_some() && method.needs() != Needs::default();
        let stage = if of_head { Place::Head } else { place };
        let method = method.into();
        sites.push(SitePlan {
            linear,
            place,
            stage,
            step,
            method_id,
            blockwise,
            method,
            outline,
            inputs,
            format,
        });
    }
    if sites.is_empty() && !holds_plain_models(format) {
        return Err(EngineError::Refused(format!(
            "no layer of the model is compressed, so that there is nothing to keep in format \
             {}; compress it, or write it as dense",
            format.id()
        )));
    }
    Ok(sites)
}

/// The type of a method's floats: what the format has for scales, or the model's own where they are
/// weights.
fn scale_type(method: &dyn Tensorwise, format: &dyn Format, model: FloatType) -> FloatType {
    if method.keeps_floats() { model } else { format.scale_type(model) }
}

/// Every tensor that the model reads must be there, with the shape that the configuration says.
fn check_tensors(spec: &Spec, source: &Source) -> Result<(), EngineError> {
    for (name, need) in spec.tensors() {
        match source.shape(&name) {
            None => return Err(lapidary_model::ModelError::MissingTensor { name }.into()),
            Some(have) if have != need => {
                return Err(lapidary_model::ModelError::Shape { name, have, need }.into());
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Weights that stand the other way round in the checkpoint can be compressed and copied, not
/// rewritten as floats: who loads the result would turn them again.
fn check_transposed(
    source: &Source,
    sites: &[SitePlan],
    rewritten: &[(String, Option<Place>)],
    (format, container): (&'static dyn Format, &dyn Container),
) -> Result<(), EngineError> {
    let is_transposed = |name: &str| source.get(name).is_some_and(LogicalTensor::is_transposed);
    let site =
        sites.iter().map(|site| site.linear.weight.as_str()).find(|name| is_transposed(name));
    if let Some(name) = site.filter(|_| format.id() != "native" && !container.is_upright()) {
        return Err(EngineError::Refused(format!(
            "{name}: this model's weights stand as [in, out], and whoever loads the format {} turns \
             them; add --format native",
            format.id()
        )));
    }
    let edited = source.tensors().iter().map(|tensor| tensor.name.as_str());
    let edited = edited.filter(|name| source.is_edited(name));
    let changed = rewritten.iter().map(|(name, _)| name.as_str()).chain(edited);
    let is_site = |name: &str| sites.iter().any(|site| site.linear.weight == name);
    match changed.into_iter().find(|name| is_transposed(name) && !is_site(name)) {
        Some(name) => Err(EngineError::Refused(format!(
            "{name}: this model's weights stand as [in, out], and one that a step rewrites must be \
             compressed too; take it out of ignore"
        ))),
        None => Ok(()),
    }
}

/// The matrices that steps go to, each with the steps' indices.
fn choose(spec: &Spec, recipe: &Recipe) -> Result<Vec<(Matrix, Vec<usize>)>, EngineError> {
    let matrices = spec.matrices();
    let goes_to_all =
        |step: &Step| matches!(step.build(), Ok(Method::Graphwise(_) | Method::Structural(_)));
    let of_layers = |index: &usize| !goes_to_all(&recipe.steps[*index]);
    let indices: Vec<usize> = (0..recipe.steps.len()).filter(of_layers).collect();
    for step in indices.iter().map(|index| &recipe.steps[*index]) {
        for pattern in step.targets.iter().chain(&step.ignore) {
            if !pattern.is_kind() && !matrices.iter().any(|matrix| matches(pattern, matrix)) {
                let modules = matrices.iter().flat_map(|m| m.tied.iter().chain([&m.linear.module]));
                let some: BTreeSet<&str> = modules.map(|module| kind(module)).collect();
                let some = some.into_iter().collect::<Vec<_>>().join(", ");
                let what = format!(
                    "step {}: the pattern {:?} matches no linear layer or table; the model's end in \
                     {some} (`lapidary inspect` lists them)",
                    step.name,
                    pattern.text()
                );
                return Err(EngineError::Refused(what));
            }
        }
    }
    let (mut chosen, depth) = (vec![], Depth::of(spec));
    for matrix in matrices {
        let wants = |index: &usize| recipe.steps[*index].goes_to(&matrix, depth);
        let steps: Vec<usize> = indices.iter().copied().filter(wants).collect();
        if !steps.is_empty() {
            chosen.push((matrix, steps));
        }
    }
    if chosen.is_empty() && structure::steps(recipe)?.is_empty() {
        return Err(EngineError::Refused("the recipe compresses no layer".to_owned()));
    }
    Ok(chosen)
}

/// Whether a pattern names a matrix; a table that the head multiplies by has the head's name too.
pub(crate) fn matches(pattern: &Pattern, matrix: &Matrix) -> bool {
    let kind = match matrix.place {
        _ if matrix.is_router => ModuleKind::Router,
        Place::Embedding if matrix.is_positional => ModuleKind::Positions,
        Place::Embedding => ModuleKind::Table,
        Place::Block(_) => ModuleKind::Layer,
        Place::Head => ModuleKind::Head,
    };
    let as_head = matrix.tied.as_deref().map(|head| pattern.matches(head, ModuleKind::Head));
    pattern.matches(&matrix.linear.module, kind) || as_head == Some(true)
}

/// The method, or what takes its place where it wants statistics and there are none: the rows of a
/// table are looked up and multiply nothing, unless the head multiplies by them. (Counts of tokens
/// weigh whole rows, and so choose nothing within one.)
fn with_statistics_there_are(
    chained: Chained,
    matrix: &Matrix,
) -> Result<(Chained, Option<Note>), EngineError> {
    let is_looked_up = matrix.place == Place::Embedding && matrix.tied.is_none();
    if !is_looked_up || chained.method.needs() == Needs::default() {
        return Ok((chained, None));
    }
    let Chained { step, method_id, method, .. } = &chained;
    match method.without_statistics() {
        Some(method) => {
            let what = format!(
                "the rows of a table are looked up, so that {method_id} has no statistics of \
                 inputs for it; encoded as without them"
            );
            Ok((Chained { method, ..chained }, Some(Note::fallback(what))))
        }
        None => Err(EngineError::Refused(format!(
            "step {step}: {method_id} needs statistics of inputs, and the rows of {} are looked \
             up; give the table a method without statistics (rtn, omse)",
            matrix.linear.module
        ))),
    }
}

/// The last part of a module's name.
fn kind(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Refuses layers that a format can hold, but not in one folder.
fn accepts_together(
    format: &'static dyn Format,
    sites: &[SitePlan],
    plain: &[String],
) -> Result<(), EngineError> {
    let compressed: Vec<(String, Outline)> =
        sites.iter().map(|site| (site.linear.module.clone(), site.outline.clone())).collect();
    let reason = format.accepts_together(&Layout { compressed: &compressed, plain, inputs: &[] });
    reason.map_err(|reason| {
        EngineError::Refused(format!(
            "format {} cannot hold these layers in one folder: {reason}; or add --format native",
            format.id()
        ))
    })
}

/// Whether a model without compressed layers can be of a format.
fn holds_plain_models(format: &'static dyn Format) -> bool {
    let term = TermOutline::Dense { values: FloatType::F16 };
    let layer = Outline { rows: 1, cols: 1, terms: vec![term] };
    let empty = Layout { compressed: &[], plain: &[], inputs: &[] };
    format.accepts(&layer).is_ok() && format.config(&empty).is_none()
}

/// A warning for layers that are compressed already.
fn requantized(source: &Source, sites: &[SitePlan]) -> Option<(String, Note)> {
    let is_plain = |o: &Outline| matches!(o.terms[..], [TermOutline::Dense { .. }]);
    let compressed = |site: &&SitePlan| {
        let outline = source.get(&site.linear.weight).and_then(|tensor| source.outline(tensor));
        !site.method.keeps_stored() && outline.is_some_and(|outline| !is_plain(&outline))
    };
    let count = sites.iter().filter(compressed).count();
    (count > 0).then(|| {
        let what = format!(
            "{count} layers are compressed already and are compressed again, which loses more than \
             compressing the original once"
        );
        (String::new(), Note::fact(what))
    })
}

/// Linear modules of the checkpoint that stay as they are, whether the graphs run them or not.
fn plain_modules(spec: &Spec, source: &Source, sites: &[SitePlan]) -> Vec<String> {
    let compressed: BTreeSet<&str> = sites.iter().map(|site| site.linear.weight.as_str()).collect();
    let tables: BTreeSet<String> = spec.embed.tensors().into_iter().map(|(name, _)| name).collect();
    let mut plain: Vec<String> = spec
        .linears()
        .filter(|linear| !compressed.contains(linear.weight.as_str()))
        .map(|linear| linear.module.clone())
        .collect();
    for tensor in source.tensors() {
        let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
        let known = compressed.contains(tensor.name.as_str()) || plain.iter().any(|p| p == module);
        if tensor.shape.len() == 2 && !known && !tables.contains(&tensor.name) {
            plain.push(module.to_owned());
        }
    }
    plain
}
