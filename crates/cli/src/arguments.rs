//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use lapidary_engine::recipe::Overrides;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Cuts language models to size.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress and no notes
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Threads; all processors by default. Results do not depend on it
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// What a recipe would do: layers, sizes, memory, disk; computes nothing
    Plan(PlanArguments),
    /// Compress a model; run again, it goes on where it was interrupted
    Compress(CompressArguments),
    /// What is in a checkpoint: layers, terms, bits, sizes
    Inspect(InspectArguments),
    /// Perplexity, divergence from a reference, bits per weight
    Eval(EvalArguments),
    /// Check a folder: hashes, structure, values
    Verify(VerifyArguments),
    /// The methods there are, with their papers and parameters
    Methods,
    /// The recipes in the binary
    Presets(PresetsArguments),
    /// The whole job on a small model in the binary, in under a minute
    Demo(DemoArguments),
}

/// A model and what to do to it.
#[derive(Debug, Args)]
pub(crate) struct RecipeArguments {
    /// A folder, a .gguf file, or org/name[@revision] from the Hugging Face cache
    pub(crate) model: String,
    /// A recipe file or a preset (`lapidary presets`)
    #[arg(long, short, default_value = "W4A16")]
    pub(crate) recipe: String,
    /// Bits of a weight
    #[arg(long)]
    bits: Option<u8>,
    /// Columns that share a scale: a number, row, or tensor
    #[arg(long, allow_hyphen_values = true)]
    group_size: Option<String>,
    /// One scale a group, no zero point
    #[arg(long, conflicts_with = "asymmetric")]
    symmetric: bool,
    /// A scale and a zero point a group
    #[arg(long)]
    asymmetric: bool,
    /// Calibration text: a file of text or JSONL, rows in safetensors, or builtin
    #[arg(long)]
    calibration: Option<String>,
    /// Calibration rows
    #[arg(long)]
    samples: Option<usize>,
    /// Tokens of a calibration row
    #[arg(long)]
    seq_len: Option<usize>,
    /// Format of the result: compressed-tensors, native, dense
    #[arg(long)]
    format: Option<String>,
    /// Any other parameter, for instance gptq.act_order=false
    #[arg(long, value_name = "STEP.KEY=VALUE")]
    set: Vec<String>,
    /// Most memory to use, for instance 8GB
    #[arg(long, value_parser = bytes)]
    pub(crate) memory: Option<u64>,
}

impl RecipeArguments {
    pub(crate) fn overrides(&self) -> Overrides {
        let symmetric = match (self.symmetric, self.asymmetric) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        Overrides {
            bits: self.bits,
            group_size: self.group_size.clone(),
            symmetric,
            text: self.calibration.clone(),
            samples: self.samples,
            seq_len: self.seq_len,
            format: self.format.clone(),
            set: self.set.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CompressArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// The folder to be written
    #[arg(long, short)]
    pub(crate) output: PathBuf,
    /// Key of all random choices (which rows of the calibration text are taken)
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Refuse every fallback instead of noting it
    #[arg(long)]
    pub(crate) strict: bool,
    /// Largest file of weights
    #[arg(long, default_value = "5GB", value_parser = bytes)]
    pub(crate) shard_size: u64,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// A folder, a .gguf file, or org/name[@revision]
    pub(crate) model: String,
}

/// How perplexity is measured; figures of different protocols cannot be compared.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ProtocolName {
    /// Windows of 2048 tokens of the whole text, as in the GPTQ papers
    Windows,
    /// Chunks of 512, second half scored, as llama-perplexity does
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// Pages, normalised by words, as lm-evaluation-harness's wikitext
    Word,
}

/// Rounding of the factors of matrix products.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum PrecisionName {
    /// None: 32 bits
    F32,
    /// To bfloat16: faster, and a little noise in the figures
    Bf16,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    /// A folder, a .gguf file, or org/name[@revision]
    pub(crate) model: String,
    /// Text to predict; the held-out text in the binary by default
    #[arg(long)]
    pub(crate) text: Option<PathBuf>,
    /// The uncompressed model, for divergence and agreement
    #[arg(long)]
    pub(crate) reference: Option<String>,
    /// How the text is cut and scored
    #[arg(long, value_enum, default_value_t = ProtocolName::Windows)]
    pub(crate) protocol: ProtocolName,
    /// Only the first N windows, chunks or pages
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<NonZeroUsize>,
    /// Tokens of a window, where they are to be fewer than the protocol's
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<usize>,
    /// Rounding of the factors of matrix products
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    pub(crate) precision: PrecisionName,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// A folder
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PresetsArguments {
    /// Print the JSON schema of recipes
    #[arg(long)]
    pub(crate) schema: bool,
    /// Print this preset as a recipe
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Keep the results in this folder
    #[arg(long, short)]
    pub(crate) output: Option<PathBuf>,
}

/// A size such as `8GB`, `500MiB` or a number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        unit => return Err(format!("{unit:?} is not a unit; use MB, GB, MiB or GiB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor < 1e18 => Ok((number * factor) as u64),
        _ => Err(format!("{text:?} is not a size; write for instance 8GB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes("8GB"), Ok(8_000_000_000));
        assert_eq!(bytes("1.5 MiB"), Ok(1_572_864));
        assert_eq!(bytes("123"), Ok(123));
        assert!(bytes("-1GB").is_err() && bytes("8 apples").is_err() && bytes("").is_err());
    }
}
