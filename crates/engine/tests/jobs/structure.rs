//! Models cut smaller, from the recipe to what is stored and read back.

use crate::chains::chain;
use crate::support::{Setup, StopAfter, copy, dies_anywhere, files, model, real, scratch};
use lapidary_engine::recipe::Recipe;
use lapidary_engine::{Failure, Manifest, Plan};
use lapidary_formats::{LogicalTensor, Source};
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Op, Precision, Spec, spec};
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{Edit, Tensors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const LAYERS: &str = "method: layers, drop: 1";
const WIDTHS: &str = "method: minitron, neurons: 0.25, heads: 0.5, multiple: 8";
const GPTQ: &str = "method: gptq, bits: 4, group_size: 8";

fn setup(folder: &Path, name: &str, steps: &[&str], format: &str) -> Setup {
    Setup::new(name, &chain(steps), folder, format)
}

fn run(folder: &Path, name: &str, steps: &[&str], format: &str) -> Manifest {
    setup(folder, name, steps, format).run(&folder.join("out")).unwrap().manifest
}

fn open(folder: &Path) -> (Source, Spec) {
    let source = Source::open(real(), folder).unwrap();
    let spec = spec(source.config()).unwrap();
    (source, spec)
}

/// Blocks, neurons, query heads and key heads.
fn sizes(spec: &Spec) -> [usize; 4] {
    let attention = spec.blocks[0].nodes.iter().find_map(|node| match &node.op {
        Op::Attention(attention) => Some((attention.heads, attention.kv_heads)),
        _ => None,
    });
    let (heads, keys) = attention.unwrap();
    let down = spec.blocks[0].linears().last().unwrap();
    [spec.blocks.len(), down.in_features, heads, keys]
}

/// Card 0: a share of nothing is the source, bit for bit, whatever chooses.
#[test]
fn nothing_cut_is_the_source() {
    let both = ["method: layers, drop: 0", "method: minitron, neurons: 0"];
    for (name, steps) in [
        ("llama-tied", &both[..]),
        ("gpt2", &both),
        ("gemma2", &both),
        ("llama-untied", &["method: heads, share: 0, rows: 2"]),
        ("llama-untied", &["method: llm-pruner, neurons: 0, heads: 0, rows: 2"]),
        ("llama-untied", &["method: scop, neurons: 0, batch: 2, steps: 2"]),
        ("llama-untied", &["method: slice, channels: 0"]),
        ("mixtral", &["method: experts, share: 0"]),
    ] {
        let scratch = scratch();
        run(scratch.path(), name, steps, "dense");
        let (before, after) = (open(&model(name)).0, open(&scratch.path().join("out")).0);
        assert_eq!(before.tensors().len(), after.tensors().len());
        for tensor in before.tensors() {
            let (before, after) = (before.read(&tensor.name), after.read(&tensor.name));
            assert_eq!(before.unwrap(), after.unwrap(), "{steps:?}: {}", tensor.name);
        }
        assert_eq!(before.config(), after.config(), "{steps:?}");
    }
}

/// Depth, width and 4 bits in one recipe: the sizes are what was asked for, the plan knew them, and
/// quantizing the cut model is the same in two jobs as in one.
#[test]
fn a_cut_model_is_compressed_as_any_other() {
    let (whole, parts) = (scratch(), scratch());
    let steps = [LAYERS, WIDTHS, GPTQ];
    let job = setup(whole.path(), "llama-tied", &steps, "compressed-tensors");
    let source = Source::open(real(), &job.model).unwrap();
    let before = sizes(&spec(source.config()).unwrap());
    let recipe = Recipe::parse(&job.recipe).unwrap();
    let plan = Plan::new(&real(), &source, &recipe, job.limits).unwrap();
    let manifest = job.run(&whole.path().join("out")).unwrap().manifest;
    assert_eq!(manifest.structure.len(), 2, "{:?}", manifest.structure);
    let (result, after) = open(&whole.path().join("out"));
    let after = sizes(&after);
    assert_eq!((before[0] - 1, before[2] / 2), (after[0], after[2]), "{before:?} {after:?}");
    assert_eq!(after[1], before[1] * 3 / 4 / 8 * 8);
    let files = std::fs::metadata(whole.path().join("out/model.safetensors")).unwrap().len();
    let header = files - plan.output_bytes();
    assert!(header < 8192 && plan.output_bytes() < files, "{} {files}", plan.output_bytes());
    // In two jobs.
    run(parts.path(), "llama-tied", &steps[..2], "dense");
    let mut second = setup(parts.path(), "llama-tied", &steps[2..], "compressed-tensors");
    second.model = parts.path().join("out");
    second.run(&parts.path().join("again")).unwrap();
    let again = open(&parts.path().join("again")).0;
    for tensor in result.tensors() {
        assert_eq!(
            result.read(&tensor.name).unwrap(),
            again.read(&tensor.name).unwrap(),
            "{}",
            tensor.name
        );
    }
}

/// What is left out is accounted for, and told.
#[test]
fn every_tensor_is_accounted_for() {
    let scratch = scratch();
    let manifest = run(scratch.path(), "llama-untied", &["method: layers, blocks: 1"], "dense");
    let (source, _) = open(&model("llama-untied"));
    assert_eq!(manifest.structure, ["layers: layers 1 of 2 are left out"]);
    let dropped = manifest.tensors.dropped.iter().map(|(name, _)| name.as_str());
    let dropped: Vec<&str> = dropped.filter(|name| !name.starts_with("file ")).collect();
    assert_eq!(manifest.tensors.copied.len() + dropped.len(), source.tensors().len());
    assert!(dropped.iter().all(|name| name.starts_with("model.layers.1.")));
    let told = std::fs::read_to_string(scratch.path().join("out/structure.json")).unwrap();
    assert!(told.contains("\"blocks\":[0]"), "{told}");
}

/// A layer that does nothing is left out first.
#[test]
fn a_layer_that_does_nothing_goes_first() {
    for criterion in ["block-influence", "angular"] {
        let scratch = scratch();
        let copied = copy("llama-untied", scratch.path());
        idle(&copied, "model.layers.1.");
        let step = format!("method: layers, drop: 1, criterion: {criterion}, protect: false");
        let mut job = setup(scratch.path(), "llama-untied", &[&step], "dense");
        job.model = copied;
        let manifest = job.run(&scratch.path().join("out")).unwrap().manifest;
        assert_eq!(manifest.structure, ["layers: layers 1 of 2 are left out"], "{criterion}");
    }
}

/// Makes what a layer adds to the residual stream zero.
fn idle(folder: &Path, layer: &str) {
    let writes = |name: &str| name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
    change(folder, &|name, values| {
        if name.starts_with(layer) && writes(name) {
            values.fill(0.0);
        }
    });
}

/// Changes the numbers of a model's tensors.
fn change(folder: &Path, edit: &dyn Fn(&str, &mut [f32])) {
    let source = Source::open(real(), folder).unwrap();
    let spec =
        |tensor: &LogicalTensor| TensorSpec::new(&tensor.name, Dtype::F32, tensor.shape.clone());
    let specs: Vec<TensorSpec> = source.tensors().iter().map(spec).collect();
    let path = folder.join("changed.safetensors");
    let mut writer = Writer::create(&real(), &path, &specs, &BTreeMap::new()).unwrap();
    let order: Vec<String> = writer.order().map(str::to_owned).collect();
    for name in order {
        let mut values = source.read(&name).unwrap();
        edit(&name, &mut values);
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        writer.append(&name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    drop(source);
    std::fs::rename(path, folder.join("model.safetensors")).unwrap();
}

/// Stopped after the cut or in the middle, or killed at any call, the bytes are the same.
#[test]
fn a_cut_resumes_and_does_not_depend_on_threads() {
    let steps = [LAYERS, WIDTHS, GPTQ];
    let whole = scratch();
    let job = |folder: &Path| setup(folder, "llama-tied", &steps, "compressed-tensors");
    job(whole.path()).run(&whole.path().join("out")).unwrap();
    {
        let scratch = scratch();
        let stop = AtomicBool::new(false);
        let stopped = job(scratch.path());
        let output = scratch.path().join("out");
        let error = stopped.run_with(&output, &stop, &StopAfter::new(&stop, 1));
        assert_eq!(error.unwrap_err().failure(), Failure::Interrupted);
        stopped.run(&output).unwrap();
        assert_eq!(files(&output), files(&whole.path().join("out")));
    }
    let tight = |job: &Setup| {
        let source = Source::open(real(), &job.model).unwrap();
        let recipe = Recipe::parse(&job.recipe).unwrap();
        Plan::new(&real(), &source, &recipe, job.limits).unwrap().memory.peak - 1
    };
    dies_anywhere(job, 3, tight);
}

/// A search comes after the cut: it compares the layers that are left.
#[test]
fn a_search_goes_over_what_is_left() {
    let scratch = scratch();
    let mut job = setup(
        scratch.path(),
        "llama-tied",
        &[LAYERS, "method: rtn, bits: [2, 4, 8], group_size: 8"],
        "native",
    );
    job.recipe.push_str("budget: {bpw: 6}\n");
    let manifest = job.run(&scratch.path().join("out")).unwrap().manifest;
    assert!(manifest.bits_per_weight.unwrap() <= 6.0);
    let (_, spec) = open(&scratch.path().join("out"));
    assert_eq!(spec.blocks.len(), 2);
    let found = std::fs::read_to_string(scratch.path().join("out/recipe.yaml")).unwrap();
    assert!(found.contains("layers"), "{found}");
    // What was found is a recipe, and gives the same.
    let mut again = setup(scratch.path(), "llama-tied", &[LAYERS], "native");
    let rows = scratch.path().join("rows.safetensors").display().to_string();
    again.recipe = found.replace("\"file\"", &format!("{rows:?}"));
    again.run(&scratch.path().join("again")).unwrap();
    let (one, other) = (open(&scratch.path().join("out")).0, open(&scratch.path().join("again")).0);
    for tensor in one.tensors() {
        assert_eq!(one.read(&tensor.name).unwrap(), other.read(&tensor.name).unwrap());
    }
}

/// Card 9, 1: in another basis, with nothing sliced off, the model gives the same logits; and sliced it
/// gives those of that model with the last channels zero, norms dividing as before.
#[test]
fn a_slice_is_the_turned_model_without_its_last_channels() {
    for name in ["llama-untied", "qwen2-tied", "qwen3", "mistral"] {
        let scratch = scratch();
        let whole = Source::open(real(), &model(name)).unwrap();
        let slice = |channels: f64, to: &str| -> Source {
            let step = format!("method: slice, channels: {channels}");
            let output = scratch.path().join(to);
            setup(scratch.path(), name, &[&step], "dense").run(&output).unwrap();
            Source::open(real(), &output).unwrap()
        };
        let (turned, sliced) = (slice(0.001, "turned"), slice(0.25, "sliced"));
        let logits = |source: &Source| crate::rewriting::run(source, &mut |_| {});
        let difference = crate::rewriting::difference(&logits(&turned), &logits(&whole));
        assert!(difference <= 1e-4, "{name}: {difference}");
        let before = spec(turned.config()).unwrap().hidden_size;
        let after = spec(sliced.config()).unwrap().hidden_size;
        assert!(after < before, "{name}");
        let mut edits = lapidary_weight::Edits::new();
        let ones: Vec<f32> = (0..before).map(|at| f32::from(u8::from(at < after))).collect();
        let ones: Arc<[f32]> = Arc::from(ones);
        for tensor in turned.tensors() {
            let ends = |ends: &[&str]| ends.iter().any(|end| tensor.name.ends_with(end));
            if ends(&["embed_tokens.weight"]) {
                edits.insert(tensor.name.clone(), vec![Edit::ScaleColumns(Arc::clone(&ones))]);
            } else if ends(&["o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias"])
            {
                edits.insert(tensor.name.clone(), vec![Edit::ScaleRows(Arc::clone(&ones))]);
            }
        }
        let masked = turned.edited(edits);
        let difference = crate::rewriting::difference(&logits(&sliced), &logits(&masked));
        assert!(difference <= 1e-4, "{name}: {difference}");
    }
}

/// Fewer experts: the same number in each layer, those that are given most weight.
#[test]
fn experts_are_left_out_by_what_tokens_give_them() {
    for name in ["mixtral", "qwen3-moe", "qwen3-moe-mixed", "mixtral-together"] {
        let scratch = scratch();
        let before = open(&model(name)).1;
        let manifest = run(scratch.path(), name, &["method: experts, share: 0.25"], "dense");
        let after = open(&scratch.path().join("out")).1;
        let count =
            |spec: &Spec| spec.blocks.iter().map(|graph| graph.experts()).collect::<Vec<_>>();
        for (before, after) in count(&before).into_iter().zip(count(&after)) {
            assert!(before == 0 && after == 0 || after < before, "{name}: {before} {after}");
        }
        assert!(manifest.structure[0].contains("experts stay"), "{:?}", manifest.structure);
    }
}

/// An expert that no token goes to is the one that is left out, and no token notices; those after it
/// take its place.
#[test]
fn an_expert_that_no_token_needs_leaves_the_model_as_it_was() {
    for name in ["mixtral", "mixtral-together"] {
        let scratch = scratch();
        let copied = copy(name, scratch.path());
        let experts = open(&copied).1.blocks[0].experts();
        // Scores along one direction only: of every token's two best one is expert 0 and the other
        // expert 1 or the last.
        change(&copied, &|name, values| {
            if name.ends_with("gate.weight") {
                let width = values.len() / experts;
                let direction = values[..width].to_vec();
                for (expert, row) in values.chunks_exact_mut(width).enumerate() {
                    let share = match expert {
                        1 => 1.0,
                        last if last + 1 == experts => -1.0,
                        _ => 0.0,
                    };
                    row.iter_mut().zip(&direction).for_each(|(w, d)| *w = share * d);
                }
            }
        });
        let mut job = setup(scratch.path(), name, &["method: experts, share: 0.25"], "dense");
        job.model.clone_from(&copied);
        job.run(&scratch.path().join("out")).unwrap();
        let (whole, cut) = (open(&copied).0, open(&scratch.path().join("out")));
        assert_eq!(cut.1.blocks[0].experts(), experts - 1, "{name}");
        let logits = |source: &Source| crate::rewriting::run(source, &mut |_| {});
        let difference = crate::rewriting::difference(&logits(&cut.0), &logits(&whole));
        assert!(difference <= 1e-6, "{name}: {difference}");
    }
}

#[test]
fn what_cannot_be_cut_is_refused_with_the_reason() {
    let refusals = [
        (&[GPTQ, LAYERS][..], "llama-tied", "put it before them"),
        (&["method: layers, targets: [q_proj]"], "llama-tied", "leave out targets"),
        (&["method: layers, drop: 2"], "llama-tied", "first and last stay"),
        (&["method: layers, drop: 0.3"], "albert", "share their weights"),
        (&["method: minitron, heads: 0.5"], "gpt2", "no config.json of family gpt2"),
        (&["method: minitron, heads: 0.5"], "olmo2", "a norm over all of them"),
        (&["method: slice"], "gpt2", "layer norms"),
        (&["method: experts"], "llama-tied", "has no experts"),
        (&["method: layers, blocks: \"1-7\""], "llama-tied", "layers 0 to 2"),
    ];
    for (steps, name, why) in refusals {
        let scratch = scratch();
        let error = setup(scratch.path(), name, steps, "dense").run(&scratch.path().join("out"));
        let error = error.unwrap_err();
        assert_eq!(error.failure(), Failure::Refused, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// Heads and neurons by gradients, in models of each kind: the sizes are what was asked for.
#[test]
fn gradients_choose_what_stays() {
    let steps = [
        ("llama-tied", "method: heads, share: 0.5, rows: 3"),
        ("llama-untied", "method: scop, neurons: 0.25, multiple: 4, rows: 4, tokens: 8, steps: 5"),
        ("llama-untied", "method: llm-pruner, neurons: 0.25, multiple: 4, rows: 3, tokens: 8"),
        ("gpt2", "method: llm-pruner, neurons: 0.25, multiple: 4, rows: 3, importance: mixed"),
        ("mixtral", "method: llm-pruner, neurons: 0.25, multiple: 4, rows: 2, importance: vector"),
        (
            "bert-model",
            "method: llm-pruner, neurons: 0.25, multiple: 4, rows: 2, importance: second",
        ),
    ];
    for (name, step) in steps {
        let scratch = scratch();
        let before = sizes(&open(&model(name)).1);
        run(scratch.path(), name, &[step], "dense");
        let after = sizes(&open(&scratch.path().join("out")).1);
        match step.contains("heads") {
            true => assert_eq!((before[1], before[2] / 2), (after[1], after[2]), "{name}"),
            false => assert!(after[1] < before[1] && after[2] == before[2], "{name} {after:?}"),
        }
        let told = std::fs::read_to_string(scratch.path().join("out/structure.json")).unwrap();
        assert!(told.contains("\"kept\":["), "{told}");
    }
}

/// Card 5, 2, and card 4: a head whose output is multiplied by zero goes first, and so do neurons.
#[test]
fn what_the_loss_does_not_depend_on_goes_first() {
    let scratch = scratch();
    let copied = copy("llama-untied", scratch.path());
    let (source, before) = open(&copied);
    let columns = |name: &str| source.shape(name).unwrap()[1];
    let (o, down) =
        ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight");
    let head_dim = columns(o) / sizes(&before)[2];
    let (heads, neurons) = (columns(o), columns(down));
    drop(source);
    // Every second head, and every fourth neuron.
    change(&copied, &|name, values| {
        for (index, value) in values.iter_mut().enumerate() {
            let idle_head = name == o && (index % heads / head_dim).is_multiple_of(2);
            let idle_neuron = name == down && (index % neurons).is_multiple_of(4);
            if idle_head || idle_neuron {
                *value = 0.0;
            }
        }
    });
    let idle_heads = |head: &u32| head.is_multiple_of(2);
    for step in [
        "method: heads, share: 0.5, rows: 4",
        "method: llm-pruner, neurons: 0.25, heads: 0.5, multiple: 1, rows: 4",
    ] {
        let mut job = setup(scratch.path(), "llama-untied", &[step], "dense");
        job.model.clone_from(&copied);
        let output = scratch.path().join(if step.contains("llm") { "taylor" } else { "heads" });
        job.run(&output).unwrap();
        let told = std::fs::read(output.join("structure.json")).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        for units in told[0]["cut"]["units"].as_array().unwrap() {
            let kept: Vec<u32> = units["kept"]
                .as_array()
                .unwrap()
                .iter()
                .map(|k| k.as_u64().unwrap() as u32)
                .collect();
            if units["block"] != 0 {
                continue;
            }
            match units["kind"].as_str().unwrap() {
                "neurons" => assert!(kept.iter().all(|neuron| neuron % 4 != 0), "{step}: {kept:?}"),
                "query-heads" => {
                    assert!(!kept.iter().any(idle_heads), "{step}: {kept:?}")
                }
                _ => {}
            }
        }
    }
}

/// The losses that the greedy choice goes by are those of the model without the layers, written out.
#[test]
fn losses_without_layers_are_those_of_the_smaller_models() {
    let scratch = scratch();
    let step = "method: layers, drop: 1, criterion: perplexity, protect: false, rows: 12";
    let mut job = setup(scratch.path(), "smollm3", &[step], "dense");
    job.recipe = job.recipe.replace("samples: 12", "samples: 12, precision: f32");
    job.run(&scratch.path().join("out")).unwrap();
    let told = std::fs::read(scratch.path().join("out/structure.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let losses = told[0]["scores"]["loss without one more, round 1"].as_array().unwrap().clone();
    let (_, spec) = open(&model("smollm3"));
    assert_eq!(losses.len(), spec.blocks.len());
    for (gone, loss) in losses.iter().enumerate() {
        let step = format!("method: layers, blocks: {gone}");
        let output = scratch.path().join(format!("without-{gone}"));
        setup(scratch.path(), "smollm3", &[&step], "dense").run(&output).unwrap();
        let (source, spec) = open(&output);
        let wanted = mean_loss(&source, &spec, &scratch.path().join("rows.safetensors"));
        let loss = loss.as_f64().unwrap();
        assert!((loss - wanted).abs() < 1e-4, "without {gone}: {loss} {wanted}");
    }
}

/// The mean loss of 12 rows of 16 tokens.
fn mean_loss(source: &Source, spec: &Spec, rows: &Path) -> f64 {
    let ids: Vec<u32> = {
        let file = lapidary_store::Checkpoint::open(real(), rows).unwrap();
        let bytes = file.read(file.get("input_ids").unwrap()).unwrap();
        bytes.as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect()
    };
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 12, seq_len: 16 };
    let embedded = executor.embed(spec, source, batch, ids.as_slice().into()).unwrap();
    let logits = spec.blocks.iter().chain(&spec.head).fold(embedded, |x, graph| {
        let weights = GraphWeights::load(graph, source, executor.backend()).unwrap();
        executor.run(graph, &weights, batch, x, None).unwrap()
    });
    let (mut sum, mut count) = (0.0, 0);
    for (at, logits) in logits.chunks_exact(spec.vocab_size).enumerate() {
        if at % 16 < 15 {
            let exponentials: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum += exponentials.ln() - f64::from(logits[ids[at + 1] as usize]);
            count += 1;
        }
    }
    sum / f64::from(count)
}
