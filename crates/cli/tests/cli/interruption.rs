//! Signals at any moment of a job, and the same bytes in the end.
#![cfg(unix)]

use crate::support::{LAPIDARY, entries, environment, files, run, with_model};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A job of some seconds, in steps that a test can hit.
const JOB: &str = "compress model --recipe W3A16 --group-size 64 --samples 48 --seq-len 256 -q";

/// The same in less time.
const SHORT: &str = "compress model --recipe W3A16 --group-size 64 --samples 24 --seq-len 128 -q";

fn start(folder: &Path, line: &str) -> Child {
    let mut command = Command::new(LAPIDARY);
    command.args(line.split_whitespace()).current_dir(folder).envs(environment(folder));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits until a file is there; whether it came before the process ended.
fn wait_for(path: &Path, child: &mut Child) -> bool {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "{} does not come", path.display());
        if child.try_wait().unwrap().is_some() {
            return path.exists();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[test]
fn an_interrupt_ends_a_job_at_the_next_block_and_says_how_to_go_on() {
    let folder = with_model();
    let here = folder.path();
    for (name, output) in [("-INT", "interrupted"), ("-TERM", "terminated")] {
        let line = format!("{JOB} -o {output}");
        let work = here.join(format!(".{output}.lapidary"));
        let mut child = start(here, &line);
        assert!(wait_for(&work.join("stage-00000.safetensors"), &mut child), "{name}");
        signal(&child, name);
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert_eq!(status.code(), Some(130), "{name}: {out}{err}");
        assert!(out.is_empty() && err.lines().count() == 1, "{name}: {out}{err}");
        let wanted = "error: interrupted; run the same command again to go on from block ";
        assert!(err.starts_with(wanted), "{name}: {err}");
        assert!(!here.join(output).exists());
        let said = run(here, &format!("{line} --json")).json();
        let next: u64 = err[wanted.len()..].trim().parse().unwrap();
        assert_eq!(said["resumed_blocks"].as_u64(), Some(next));
        assert!(!work.exists());
    }
    run(here, &format!("{JOB} -o undisturbed")).ok();
    let wanted = files(&here.join("undisturbed"));
    assert!(
        files(&here.join("interrupted")) == wanted && files(&here.join("terminated")) == wanted
    );
}

#[test]
fn a_job_killed_at_any_moment_resumes_to_the_same_bytes() {
    let folder = with_model();
    let here = folder.path();
    let began = Instant::now();
    run(here, &format!("{SHORT} -o undisturbed")).ok();
    let time = began.elapsed();
    let wanted = files(&here.join("undisturbed"));
    for kill in 0..5_u64 {
        let line = format!("{SHORT} -o out{kill}");
        let output = here.join(format!("out{kill}"));
        let mut child = start(here, &line);
        // Somewhere within the time of an undisturbed run, spread by SplitMix64's increment.
        let moment = kill.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        std::thread::sleep(time.mul_f64(moment as f64 / 65536.0));
        child.kill().unwrap();
        child.wait().unwrap();
        if output.exists() {
            assert_eq!(files(&output), wanted, "a result with a name is whole");
        }
        run(here, &line).ok();
        assert!(files(&output) == wanted, "kill {kill}");
        assert!(!entries(here).contains(&format!(".out{kill}.lapidary")));
    }
}
