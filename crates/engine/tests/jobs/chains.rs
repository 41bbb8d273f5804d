//! Several steps on the same layers.

use crate::support::{Setup, StopAfter, files, real, scratch};
use lapidary_engine::{Failure, Manifest};
use lapidary_formats::Source;
use lapidary_weight::TermOutline;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const GPTQ: &str = "method: gptq, bits: 3, group_size: 16";

pub(crate) fn chain(steps: &[&str]) -> String {
    steps.join("}, {")
}

fn run(model: &str, steps: &[&str]) -> Manifest {
    let scratch = scratch();
    let setup = Setup::new(model, &chain(steps), scratch.path(), "native");
    setup.run(&scratch.path().join("out")).unwrap().manifest
}

#[test]
fn a_correction_lowers_the_error_of_every_layer() {
    let plain = run("llama-untied", &[GPTQ]);
    let corrected = run("llama-untied", &[GPTQ, "method: lqer, rank: 6"]);
    for (plain, corrected) in plain.sites.iter().zip(&corrected.sites) {
        assert_eq!(corrected.method, "gptq + lqer");
        assert!(corrected.output_error < plain.output_error, "{}", plain.name);
        let rank = |term: &TermOutline| matches!(term, TermOutline::LowRank { rank: 6, .. });
        assert!(corrected.outline.terms.iter().any(rank));
    }
    assert!(corrected.bits_per_weight > plain.bits_per_weight);
    // Some layers only.
    let some = run("llama-untied", &[GPTQ, "method: lqer, targets: [\"re:.*down_proj\"]"]);
    for site in &some.sites {
        assert_eq!(
            site.outline.terms.len() == 2,
            site.name.ends_with("down_proj"),
            "{}",
            site.name
        );
    }
}

/// Factors in place of a matrix: `native` keeps the two, `dense` writes their product; either way the
/// next block sees what was stored, and what saves nothing is refused before any work.
#[test]
fn factors_are_kept_or_multiplied_out() {
    let scratch = scratch();
    let job = |step: &str, format| Setup::new("llama-untied", step, scratch.path(), format);
    let of = |format: &'static str| {
        let output = scratch.path().join(format);
        (job("method: svd, share: 0.6", format).run(&output).unwrap().manifest, output)
    };
    let ((native, folder), (dense, product)) = (of("native"), of("dense"));
    for (factors, product) in native.sites.iter().zip(&dense.sites) {
        let [TermOutline::LowRank { rank, values }] = factors.outline.terms[..] else {
            panic!("{:?}", factors.outline)
        };
        let (rows, cols) = (factors.outline.rows, factors.outline.cols);
        let most = 0.6 * (rows * cols) as f64;
        assert_eq!(rank, (most / (rows + cols) as f64) as usize, "{}", factors.name);
        assert_eq!(factors.method, "svd");
        assert!(factors.outline.bits() as f64 <= most * values.bits() as f64);
        let difference = factors.output_error.unwrap() / product.output_error.unwrap() - 1.0;
        assert!(difference.abs() < 1e-2, "{}: {difference}", factors.name);
    }
    assert_eq!(open(&folder).format(), "native");
    let name = format!("{}.weight", native.sites[0].name);
    let values = |folder: &Path| open(folder).weight(&name).unwrap().decode();
    let (kept, written) = (values(&folder), values(&product));
    let far = kept.iter().zip(&written).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-2, "{far}");
    let refused = job("method: svd, rank: 4096", "native").run(&scratch.path().join("no"));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the largest rank that saves any is"), "{refused}");
}

fn open(folder: &Path) -> Source {
    Source::open(real(), folder).unwrap()
}

/// Stopped after each block in turn, a chain goes on to the same bytes, on any number of threads.
#[test]
fn chains_resume_and_do_not_depend_on_threads() {
    for steps in CHAINS {
        let whole = scratch();
        let job = |folder: &Path| Setup::new("llama-head-dim", &chain(steps), folder, "native");
        job(whole.path()).run(&whole.path().join("out")).unwrap();
        let wanted = files(&whole.path().join("out"));
        for threads in [1, 3] {
            let scratch = scratch();
            let job = job(scratch.path());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let output = scratch.path().join("out");
            for blocks in 1..=2 {
                let stop = AtomicBool::new(false);
                let stopped =
                    pool.install(|| job.run_with(&output, &stop, &StopAfter::new(&stop, blocks)));
                if let Err(error) = stopped {
                    assert_eq!(error.failure(), Failure::Interrupted, "{steps:?}: {error}");
                }
            }
            pool.install(|| job.run(&output)).unwrap();
            assert_eq!(files(&output), wanted, "{steps:?} on {threads} threads");
        }
    }
}

const CHAINS: &[&[&str]] = &[
    &[GPTQ, "method: lqer, rank: 4, rounds: 2"],
    &["method: awq", GPTQ],
    &["method: smoothquant", "method: gptq, bits: 8, group_size: row, activations: int8"],
    &["method: smoothquant, alpha: search", "method: rtn, bits: 4, activations: int8"],
    &["method: rotate", "method: awq", GPTQ, "method: lqer, rank: 2"],
];
