//! The `lapidary` command: one file a verb, all thin.
//!
//! Results go to standard output, as text or with `--json` as JSON; progress, notes and errors go to
//! standard error. Exit codes: 0 done, 2 usage, 3 refused, 4 bad input, 5 input/output, 6 numerical,
//! 70 a defect, 130 interrupted and resumable.

mod arguments;
mod error;
mod output;
mod progress;
mod signal;
mod table;
mod verbs;

use arguments::{Cli, Verb};
use clap::Parser;
use error::CliError;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = run(&cli);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has what they wanted (`lapidary methods | head`).
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::tell(&format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), CliError> {
    lapidary_kernels::process::survive_file_size_limit();
    lapidary_kernels::memory::keep_large_blocks_apart();
    if let Some(threads) = cli.threads {
        // Fails only when a pool exists already, and none does before this line.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global();
    }
    let mut output = Output::new(cli.json);
    match &cli.verb {
        Verb::Plan(arguments) => verbs::plan::run(arguments, &mut output),
        Verb::Compress(arguments) => verbs::compress::run(arguments, cli.quiet, &mut output),
        Verb::Convert(arguments) => verbs::convert::run(arguments, cli.quiet, &mut output),
        Verb::Inspect(arguments) => verbs::inspect::run(arguments, &mut output),
        Verb::Eval(arguments) => verbs::eval::run(arguments, cli.quiet, &mut output),
        Verb::Verify(arguments) => verbs::verify::run(arguments, &mut output),
        Verb::Imatrix(arguments) => verbs::imatrix::run(arguments, cli.quiet, &mut output),
        Verb::Methods => verbs::methods::run(&mut output),
        Verb::Presets(arguments) => verbs::presets::run(arguments, &mut output),
        Verb::Run(arguments) => verbs::run::run(arguments, cli.threads, cli.quiet, &mut output),
        Verb::Serve(arguments) => verbs::serve::run(arguments, cli.threads, &mut output),
        Verb::Bench(arguments) => verbs::bench::run(arguments, cli.threads, &mut output),
        Verb::Demo(arguments) => verbs::demo::run(arguments, cli.quiet, &mut output),
    }?;
    output.finish()
}
