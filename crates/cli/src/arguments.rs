//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use lapidary_engine::plan::Limits;
use lapidary_engine::recipe::{Budget, Overrides, parse_bytes, parse_count};
use lapidary_engine::target::{Engine, Target};
use lapidary_runtime::{CacheType, Options, Precision};
use std::net::{IpAddr, Ipv4Addr};
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
    /// The same model in another format; compressed layers stay as they are where that can hold them
    Convert(ConvertArguments),
    /// What is in a checkpoint: layers, terms, bits, sizes
    Inspect(InspectArguments),
    /// Perplexity, divergence from a reference, bits per weight
    Eval(EvalArguments),
    /// Check a folder: hashes, structure, values
    Verify(VerifyArguments),
    /// An importance matrix for llama.cpp: what the layers of a model are given on a text
    Imatrix(ImatrixArguments),
    /// The methods there are, with their papers and parameters
    Methods,
    /// The recipes in the binary
    Presets(PresetsArguments),
    /// Continue a text, answer a question, or chat
    Run(RunArguments),
    /// An OpenAI-compatible server
    Serve(ServeArguments),
    /// How fast a model runs here: prefill, decoding, memory; beside llama.cpp on request
    Bench(BenchArguments),
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
    /// In place of a recipe, a method with its defaults on all linear layers, or a chain such as
    /// wanda+gptq (`lapidary methods`)
    #[arg(long, value_name = "METHOD", conflicts_with = "recipe")]
    pub(crate) method: Option<String>,
    /// Bits of a weight
    #[arg(long)]
    bits: Option<f64>,
    /// Columns that share a scale: a number, row, or tensor
    #[arg(long, allow_hyphen_values = true)]
    group_size: Option<String>,
    /// How the inputs of layers are rounded too when the model is run: int8, fp8 or none
    #[arg(long, value_name = "NUMBERS")]
    activations: Option<String>,
    /// Share of the weights that is pruned, for instance 0.5
    #[arg(long, value_name = "SHARE", conflicts_with = "pattern")]
    sparsity: Option<f64>,
    /// Prune N of every M columns, for instance 2:4
    #[arg(long, value_name = "N:M")]
    pattern: Option<String>,
    /// One scale a group, no zero point
    #[arg(long, conflicts_with = "asymmetric")]
    symmetric: bool,
    /// A scale and a zero point a group
    #[arg(long)]
    asymmetric: bool,
    /// Search for the best bits of every layer: bits stored for each weight, at the most
    #[arg(long, value_name = "BITS", group = "budget")]
    bpw: Option<f64>,
    /// The same for a size of the weight files, for instance 80MB
    #[arg(long, value_parser = parse_bytes, group = "budget")]
    size: Option<u64>,
    /// The same for a divergence from the uncompressed model, in nats a token (predicted)
    #[arg(long, value_name = "NATS", group = "budget")]
    max_kl: Option<f64>,
    /// The same for parameters that are not pruned, for instance 100M
    #[arg(long, value_name = "COUNT", value_parser = parse_count, group = "budget")]
    parameters: Option<u64>,
    /// The same for how many times as fast it is to write tokens, at the least, by the bytes of weights
    /// that a token reads
    #[arg(long, value_name = "TIMES", group = "budget")]
    speedup: Option<f64>,
    /// Calibration text: a file of text or JSONL, rows in safetensors, or builtin
    #[arg(long)]
    calibration: Option<String>,
    /// An importance matrix in place of calibration, for methods that need no more
    /// (`lapidary imatrix`)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<String>,
    /// Calibration rows
    #[arg(long)]
    samples: Option<usize>,
    /// Tokens of a calibration row
    #[arg(long)]
    seq_len: Option<usize>,
    /// Format of the result: compressed-tensors, int-quantized, gguf, gptq, gptq-v2, awq, mlx,
    /// bitsandbytes, bitsandbytes-fp4, bitnet, hqq, native, dense
    #[arg(long)]
    format: Option<String>,
    /// Compress a model that no family knows by the shapes of its tensors, without calibration
    #[arg(long)]
    allow_unknown: bool,
    /// Any other parameter, for instance gptq.act_order=false
    #[arg(long, value_name = "STEP.KEY=VALUE")]
    set: Vec<String>,
    /// Most memory to use, for instance 8GB
    #[arg(long, value_parser = parse_bytes)]
    memory: Option<u64>,
    #[command(flatten)]
    target: TargetArguments,
}

/// Who is to load the result.
#[derive(Debug, Args)]
pub(crate) struct TargetArguments {
    /// Check the rules of the engine that is to load it: vllm, transformers or llama.cpp
    #[arg(long = "target", value_name = "ENGINE")]
    engine: Option<Engine>,
    /// Devices that the engine divides every layer over
    #[arg(long = "tp", value_name = "N", requires = "engine", default_value = "1")]
    tensor_parallel: NonZeroUsize,
}

impl TargetArguments {
    pub(crate) fn target(&self) -> Option<Target> {
        let tensor_parallel = self.tensor_parallel;
        self.engine.map(|engine| Target { engine, tensor_parallel })
    }
}

impl RecipeArguments {
    pub(crate) fn limits(&self) -> Limits {
        Limits { memory: self.memory, target: self.target.target() }
    }

    pub(crate) fn overrides(&self) -> Overrides {
        let symmetric = match (self.symmetric, self.asymmetric) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        let budget = [
            self.bpw.map(Budget::BitsPerWeight),
            self.size.map(Budget::Size),
            self.max_kl.map(Budget::Divergence),
            self.parameters.map(Budget::Parameters),
            self.speedup.map(Budget::Speedup),
        ];
        Overrides {
            bits: self.bits,
            group_size: self.group_size.clone(),
            symmetric,
            activations: self.activations.clone(),
            sparsity: self.sparsity,
            pattern: self.pattern.clone(),
            text: self.calibration.clone(),
            imatrix: self.imatrix.clone(),
            samples: self.samples,
            seq_len: self.seq_len,
            format: self.format.clone(),
            allow_unknown: self.allow_unknown,
            budget: budget.into_iter().flatten().next(),
            set: self.set.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Largest file of weights, for instance 2GB; 5GB by default, and a GGUF in one file
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) shard_size: Option<u64>,
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
    /// Largest file of weights, for instance 2GB; 5GB by default, and a GGUF in one file
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) shard_size: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArguments {
    /// A folder, a .gguf file, or org/name[@revision] from the Hugging Face cache
    pub(crate) model: String,
    /// Format of the result, for instance compressed-tensors, native or dense
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: String,
    /// The folder to be written
    #[arg(long, short)]
    pub(crate) output: PathBuf,
    /// Refuse to lose anything
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) target: TargetArguments,
    /// Largest file of weights, for instance 2GB; 5GB by default, and a GGUF in one file
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) shard_size: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ImatrixArguments {
    /// A folder, a .gguf file, or org/name[@revision] from the Hugging Face cache
    pub(crate) model: String,
    /// The file to be written, for instance model.imatrix.gguf
    #[arg(long, short)]
    pub(crate) output: PathBuf,
    /// Calibration text: a file of text or JSONL, rows in safetensors, or builtin
    #[arg(long, default_value = "builtin")]
    pub(crate) calibration: String,
    /// Calibration rows
    #[arg(long, default_value = "128")]
    pub(crate) samples: NonZeroUsize,
    /// Tokens of a calibration row
    #[arg(long, default_value = "512")]
    pub(crate) seq_len: NonZeroUsize,
    /// Key of which rows of the calibration text are taken
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
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
    /// Compare with it in the first N windows, chunks or pages only
    #[arg(long, value_name = "N", requires = "reference")]
    pub(crate) reference_windows: Option<NonZeroUsize>,
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

/// How a model is run.
#[derive(Debug, Args)]
pub(crate) struct RunningArguments {
    /// What the products of layers may round
    #[arg(long = "precision", value_enum, default_value_t = RunPrecision::Int8)]
    precision: RunPrecision,
    /// How keys and values of earlier tokens are kept
    #[arg(long, value_enum, default_value_t = CacheName::F16)]
    cache: CacheName,
    /// Most tokens of a sequence; the model's own context by default, up to 8192
    #[arg(long, value_name = "TOKENS")]
    context: Option<NonZeroUsize>,
}

/// Rounding in the products of a running model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RunPrecision {
    /// Nothing but sums: slow, the reference of the others
    F32,
    /// Activations to about 15 bits: twice the work of int8, as many bytes read
    Int16,
    /// Activations to 8 bits in blocks of 32, or to bfloat16 where that is faster: the fastest, with
    /// errors far below those of 4-bit weights
    Int8,
}

/// Types of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheName {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// 8 bits, with a scale for 32 channels
    Int8,
    /// 4 bits, with a scale and a minimum for 32 channels
    Int4,
}

impl RunningArguments {
    /// As the runtime takes them, for so many sequences.
    pub(crate) fn options(&self, threads: Option<NonZeroUsize>, sequences: usize) -> Options {
        Options {
            threads: threads.map(NonZeroUsize::get),
            context: self.context.map(NonZeroUsize::get),
            sequences,
            cache: match self.cache {
                CacheName::F32 => CacheType::F32,
                CacheName::F16 => CacheType::F16,
                CacheName::Int8 => CacheType::Int8,
                CacheName::Int4 => CacheType::Int4,
            },
            precision: match self.precision {
                RunPrecision::F32 => Precision::Float,
                RunPrecision::Int16 => Precision::Int16,
                RunPrecision::Int8 => Precision::Int8,
            },
            ..Options::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// A folder, a .gguf file, or org/name[@revision] from the Hugging Face cache
    pub(crate) model: String,
    /// The text; else standard input: all of it, or a chat line by line at a terminal
    #[arg(long, short)]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) running: RunningArguments,
    /// What the model is told before the conversation: its system message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Continue the text as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// A chat template in place of the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// Most tokens of the answer; by default what the context has room for
    #[arg(long, short = 'n', value_name = "TOKENS")]
    pub(crate) max_tokens: Option<NonZeroUsize>,
    /// Randomness; 0 takes the most likely token each time
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Only the N most likely tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Only the most likely tokens with this probability together
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub(crate) top_p: f32,
    /// Only tokens at least this many times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Makes tokens that were there before less likely; 1 does nothing
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Key of the random choices: the same key, the same answer
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// A string that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    pub(crate) ignore_end: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// A folder, a .gguf file, or org/name[@revision] from the Hugging Face cache
    pub(crate) model: String,
    /// The address to listen at; by default only this machine reaches it
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) host: IpAddr,
    /// The port; 0 for any that is free
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    #[command(flatten)]
    pub(crate) running: RunningArguments,
    /// Sequences that are answered together; more wait
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) sequences: NonZeroUsize,
    /// Sequences that may wait or be answered, before clients are told to come back
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) queue: NonZeroUsize,
    /// Largest request
    #[arg(long, default_value = "4MB", value_parser = parse_bytes)]
    pub(crate) max_body: u64,
    /// What clients must send as a bearer token; by default LAPIDARY_API_KEY of the environment,
    /// which other users of the machine cannot see
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// The model's name in answers
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A chat template in place of the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// How long answers may go on when the server is to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) grace: u64,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// A folder, a .gguf file, or org/name[@revision] from the Hugging Face cache
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) running: RunningArguments,
    /// Tokens of the prompt
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub(crate) prompt: NonZeroUsize,
    /// Tokens that are decoded one by one, from an empty context on
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    pub(crate) generate: NonZeroUsize,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) repetitions: NonZeroUsize,
    /// Measure another model too, in turns, such as what this one was made of; and say what their sizes
    /// would lead one to expect
    #[arg(long, value_name = "MODEL", conflicts_with = "compare")]
    pub(crate) against: Option<String>,
    /// Measure llama.cpp too, in turns with this program: the same file where it is a GGUF, else the
    /// GGUF named here. Needs the Python package llama-cpp-python: LAPIDARY_PYTHON, else python3,
    /// must import llama_cpp
    #[arg(long, value_name = "GGUF")]
    pub(crate) compare: Option<Option<PathBuf>>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// A folder
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) target: TargetArguments,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }
}
