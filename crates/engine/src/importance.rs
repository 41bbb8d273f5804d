//! Importance matrices: what a model's layers are given on calibration text, gathered for llama.cpp,
//! and read in place of calibration by methods that need no more than the sums of squares.

use crate::plan::{CHUNK_TOKENS, Plan, SitePlan};
use crate::recipe::{BUILTIN_TEXT, Calibration};
use crate::{EngineError, Progress, calibration};
use lapidary_formats::Source;
use lapidary_formats::gguf::{Importance, Inputs};
use lapidary_methods::Statistics;
use lapidary_model::{Batch, Executor, Fused, Graph, GraphWeights, InputGroup, Tap, spec};
use lapidary_store::Fs;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the uncompressed model on calibration rows and adds up the squares of what every linear layer
/// of its blocks is given. Memory is one block and the activations of the rows.
///
/// # Errors
/// When the model or the text cannot be read, the activations are not finite, or a stop is asked for.
pub fn gather(
    fs: &Arc<dyn Fs>,
    source: &Source,
    wanted: &Calibration,
    seed: u64,
    stop: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Importance, EngineError> {
    let spec = spec(source.config())?;
    let rows = calibration::rows(fs, source, wanted, spec.context, seed)?;
    rows.notes.iter().for_each(|note| progress.note(&note.what));
    let executor = Executor::new(Fused { precision: wanted.precision.into() });
    let per_chunk = (CHUNK_TOKENS / rows.seq_len.max(1)).max(1) * rows.seq_len;
    let batch = |tokens: usize| Batch { rows: tokens / rows.seq_len.max(1), seq_len: rows.seq_len };
    let mut activations = vec![];
    for tokens in rows.tokens.chunks(per_chunk) {
        activations.push(executor.embed(&spec, source, batch(tokens.len()), tokens.into())?);
    }
    let mut layers = BTreeMap::new();
    progress.begin("observing", spec.blocks.len() as u64);
    for (block, graph) in spec.blocks.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Err(EngineError::Interrupted { next: block });
        }
        let weights = GraphWeights::load(graph, source, executor.backend())?;
        let mut sums = Sums::default();
        for values in &mut activations {
            let batch = batch(values.len() / spec.hidden_size.max(1));
            let input = std::mem::take(values);
            let tap = &mut |tap: &Tap<'_, Vec<f32>>| {
                sums.add(tap.group, tap.input);
                Ok(())
            };
            *values = executor.run(graph, &weights, batch, input, Some(tap))?;
        }
        sums.finish(block, &mut layers)?;
        progress.advance(block as u64 + 1, &format!("block {}", block + 1));
    }
    progress.end();
    let file = Path::new(&wanted.text).file_name().map(|name| name.to_string_lossy().into_owned());
    let dataset = if wanted.text == BUILTIN_TEXT { None } else { file };
    Ok(Importance {
        layers,
        datasets: vec![dataset.unwrap_or_else(|| BUILTIN_TEXT.to_owned())],
        rows: u32::try_from(rows.count()).unwrap_or(u32::MAX),
        row_tokens: u32::try_from(rows.seq_len).unwrap_or(u32::MAX),
    })
}

/// Squares of the inputs of a block's layers, by the names of their weights, and their tokens.
#[derive(Default)]
struct Sums(BTreeMap<String, (Vec<f64>, u64)>);

impl Sums {
    fn add(&mut self, group: &InputGroup<'_>, input: &[f32]) {
        let columns = group.linears[0].in_features.max(1);
        let weights: Vec<&str> = group.linears.iter().map(|l| l.weight.as_str()).collect();
        let first = weights[0].to_owned();
        let (sums, tokens) = self.0.entry(first.clone()).or_insert_with(|| (vec![0.0; columns], 0));
        for row in input.chunks_exact(columns) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value) * f64::from(*value);
            }
            *tokens += 1;
        }
        let whole = (sums.clone(), *tokens);
        for weight in weights.into_iter().filter(|weight| *weight != first) {
            self.0.insert(weight.to_owned(), whole.clone());
        }
    }

    fn finish(
        self,
        block: usize,
        layers: &mut BTreeMap<String, Inputs>,
    ) -> Result<(), EngineError> {
        for (weight, (sums, tokens)) in self.0 {
            let squares: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
            if !squares.iter().all(|sum| sum.is_finite()) {
                let what = format!("the inputs of {weight} are not finite");
                return Err(EngineError::NotFinite { block, what });
            }
            layers.insert(weight, Inputs { squares, tokens: tokens as f32 });
        }
        Ok(())
    }
}

/// Reads the importance matrix that stands in for calibration, and checks that it has what every site
/// asks for and that none asks for more.
///
/// # Errors
/// When it cannot be read, or does not suffice: the layer and the method are named.
pub(crate) fn read(
    fs: &dyn Fs,
    source: &Source,
    path: &str,
    sites: &[SitePlan],
) -> Result<Importance, EngineError> {
    let importance = Importance::read(fs, Path::new(path), source.config())?;
    for site in sites.iter().filter(|site| site.wants_statistics()) {
        let (module, columns) = (&site.linear.module, site.linear.in_features);
        let refuse = |what: String| Err(EngineError::Refused(format!("{path}: {what}")));
        if site.blockwise.is_some() || !site.method.needs_only_diagonal() {
            return refuse(format!(
                "{} of {module} needs the whole Gram matrix of its inputs, of which an importance \
                 matrix has only the diagonal; leave out imatrix, or use omse, kbit, squeezellm or bcq",
                site.method_id
            ));
        }
        match importance.layers.get(&site.linear.weight) {
            None => return refuse(format!("has nothing of the inputs of {module}")),
            Some(inputs) if inputs.squares.len() != columns => {
                let have = inputs.squares.len();
                return refuse(format!("has {have} columns for {module}, which has {columns}"));
            }
            Some(_) => {}
        }
    }
    Ok(importance)
}

/// The statistics that a plan's importance matrix has of a graph, by the modules of the first linears of
/// its groups.
pub(crate) fn statistics(plan: &Plan, graph: &Graph) -> BTreeMap<String, Statistics> {
    let of_group = |group: &InputGroup<'_>| {
        let known = plan.importance.as_ref()?;
        let found = group.linears.iter().find_map(|linear| known.layers.get(&linear.weight))?;
        let Inputs { squares, tokens } = found;
        let statistics =
            Statistics { gram: squares.clone(), drift: None, inputs: None, tokens: *tokens as u64 };
        Some((group.linears[0].module.clone(), statistics))
    };
    graph.shared_inputs().iter().filter_map(of_group).collect()
}
