//! The folders of other tools, decoded by the packages that they are for: the same weights as here.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use lapidary_store::{Checkpoint, RealFs};
use lapidary_weight::{FloatType, Tensors};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

pub(crate) const CHECK: Check = Check {
    name: "loaders",
    summary: "every folder format, decoded by the package that it is for, against our decoding",
    models: &["smollm2"],
    run,
};

/// A format, and a step whose terms it holds.
const FOLDERS: [(&str, &str); 12] = [
    ("gptq", "method: rtn, bits: 4, group_size: 64"),
    ("gptq", "method: rtn, bits: 8, group_size: 32"),
    ("gptq-v2", "method: rtn, bits: 3, group_size: 64, symmetric: false"),
    ("awq", "method: rtn, bits: 4, group_size: 64, symmetric: false"),
    ("mlx", "method: rtn, bits: 4, group_size: 64, symmetric: false"),
    ("mlx", "method: rtn, bits: 6, group_size: 32"),
    ("bitsandbytes", "method: nf4, double_quantization: true"),
    ("bitsandbytes", "method: nf4, double_quantization: false"),
    ("bitsandbytes-fp4", "method: fp4, levels: bitsandbytes"),
    ("bitsandbytes", "method: rtn, bits: 8, group_size: row"),
    ("hqq", "method: hqq, group_size: 64"),
    ("bitnet", "method: kbit, bits: 2, data_type: int, group_size: tensor"),
];

/// Largest difference to a weight decoded by a package that rounds to 16 bits on the way, over the
/// largest weight of the layer.
const TOLERANCE: f64 = 1e-3;

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let python = context.environment("loaders", "xtask/real/loaders.txt")?;
    let model = context.model("offgrid")?;
    for (index, (format, step)) in FOLDERS.into_iter().enumerate() {
        let recipe = context.scratch(&format!("loaders-{index}.yaml"));
        std::fs::write(&recipe, format!("steps: [{{{step}}}]\nformat: {format}\n"))
            .map_err(Error::at(&recipe))?;
        let options = ["--recipe".to_owned(), recipe.display().to_string()];
        let folder = context.scratch(&format!("loaders-{index}"));
        let folder = context.compress(&model, &options, folder)?.folder;
        let out = context.scratch(&format!("loaders-{index}.safetensors"));
        let mut script = Command::new(&python);
        script.arg(context.root().join("xtask/real/loaders.py")).arg(&folder).arg(&out);
        script.env("HF_HUB_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        let found = json(&mut script)?;
        let (layers, worst) = compare(context, &folder, &out)?;
        let loader = found["loader"].as_str().unwrap_or("nothing").to_owned();
        let figures = format!("{layers} layers by {loader}, the largest difference {worst:.1e}");
        let is_whole = found["layers"] == layers && layers > 0;
        report.line(is_whole && worst <= TOLERANCE, &format!("{format}, {step}"), &figures);
    }
    Ok(())
}

/// Layers that the package decoded, and the largest difference of a weight to ours, over the largest
/// weight of its layer.
fn compare(context: &Context, folder: &Path, out: &Path) -> Result<(usize, f64), Error> {
    let ours = context.open(folder)?;
    let theirs = Checkpoint::open(Arc::new(RealFs), out).map_err(Error::library)?;
    let mut worst = 0.0_f64;
    for tensor in theirs.tensors() {
        let have = ours.read(&tensor.name).map_err(Error::library)?;
        let want = FloatType::F32.decode(&theirs.read(tensor).map_err(Error::library)?);
        if have.len() != want.len() {
            let what =
                format!("{}: {} weights there, {} here", tensor.name, want.len(), have.len());
            return Err(Error::Unexpected(what));
        }
        let largest = want.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
        let differences = have.iter().zip(&want).map(|(have, want)| (have - want).abs());
        let difference = differences.fold(0.0_f32, f32::max);
        worst = worst.max(f64::from(difference) / f64::from(largest.max(f32::MIN_POSITIVE)));
    }
    let compressed = ours.tensors().iter().filter(|tensor| tensor.is_compressed()).count();
    match theirs.tensors().len() == compressed {
        true => Ok((compressed, worst)),
        false => Err(Error::Unexpected(format!("{compressed} layers here, others there"))),
    }
}
