//! Pipes that nobody reads, disks that are full, files that may not grow.

use crate::support::{LAPIDARY, SMALL, Said, entries, environment, files, run, with_model};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the binary with its standard output or error, or both, in other hands.
fn run_into(folder: &Path, line: &str, out: Option<Stdio>, err: Option<Stdio>) -> Said {
    let mut command = Command::new(LAPIDARY);
    command.args(line.split_whitespace()).current_dir(folder).envs(environment(folder));
    command.stdin(Stdio::null());
    command.stdout(out.unwrap_or_else(Stdio::piped)).stderr(err.unwrap_or_else(Stdio::piped));
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A pipe whose reader is gone.
fn closed_pipe() -> Option<Stdio> {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Some(writer.into())
}

/// A device that is always full.
fn full() -> Option<Stdio> {
    Some(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = with_model();
    for line in
        ["methods", "presets", "presets --schema", "inspect model --json", "plan model", "--help"]
    {
        let said = run_into(folder.path(), line, closed_pipe(), None);
        assert!(said.code == Some(0) && said.err.is_empty(), "{line}: {said:?}");
    }
}

#[test]
fn the_work_goes_on_when_nobody_reads_the_notes() {
    let folder = with_model();
    let here = folder.path();
    let said = run_into(here, &format!("compress model -o out {SMALL}"), None, closed_pipe());
    assert!(said.code == Some(0) && said.out.starts_with("out written"), "{said:?}");
    let said = run_into(here, "inspect nothing", None, closed_pipe());
    assert_eq!(said.code, Some(4), "{said:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_an_error_and_loses_no_file() {
    let folder = with_model();
    let here = folder.path();
    let what = ["cannot write to standard output", "No space left"];
    for line in ["methods", "presets --json", "inspect model"] {
        run_into(here, line, full(), None).failed(5, &what);
    }
    let job = format!("compress model -q -o out {SMALL}");
    run_into(here, &job, full(), None).failed(5, &what);
    assert!(run(here, &job).ok().starts_with("out was complete already"));
    run_into(here, "inspect nothing", None, full());
    assert_eq!(run_into(here, "verify out", None, full()).code, Some(0));
}

/// As on a full disk, writes fail in the midst of a file.
#[cfg(unix)]
#[test]
fn a_job_whose_files_may_not_grow_says_so_and_goes_on_later() {
    let folder = with_model();
    let here = folder.path();
    let job =
        |output: &str| format!("compress model -q -o {output} -r W3A16 --group-size 64 {SMALL}");
    run(here, &job("undisturbed")).ok();
    // In units of 512 bytes: too little for a block, then too little for the result.
    for (blocks, file) in [(100, "stage-00000.safetensors"), (1500, "result/")] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -f {blocks}; exec \"$0\" \"$@\""), LAPIDARY]);
        shell.args(job("out").split_whitespace()).current_dir(here).envs(environment(here));
        let output = shell.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let said =
            Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        said.failed(5, &["cannot write", ".out.lapidary", file, "too large"]);
        assert_eq!(entries(here), [".out.lapidary", "model", "undisturbed"]);
    }
    let said = run(here, &format!("{} --json", job("out"))).json();
    assert_eq!(said["resumed_blocks"], 4);
    assert_eq!(files(&here.join("out")), files(&here.join("undisturbed")));
    assert_eq!(entries(here), ["model", "out", "undisturbed"]);
}
