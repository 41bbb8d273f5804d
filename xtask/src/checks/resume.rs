//! A job killed at random moments ends with the bytes of one that was not, on any number of
//! threads.

use super::load::w4a16;
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{kill_after, run as finish};
use crate::random::Random;
use lapidary_store::hash::sha256;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

pub(crate) const CHECK: Check = Check {
    name: "resume",
    summary: "killed (SIGKILL) and run again, and on one thread: the same SHA-256 of every file",
    models: &["smollm2"],
    run,
};

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("offgrid")?;
    let whole = context.compressed(&model, &w4a16(context))?;
    let wanted = hashes(&whole.folder)?;
    let same = format!("{} files", wanted.len());

    let folder = context.scratch("killed");
    let mut random = Random::new(context.settings.seed);
    let (mut kills, mut completed) = (0, 0);
    // The moments are spread over one whole job, which goes on from kill to kill.
    let spread = 2.0 * whole.wall_seconds / context.settings.kills.max(1) as f64;
    let again = || {
        let mut command = context.lapidary("compress");
        command.arg(&model).args(w4a16(context)).arg("--output").arg(&folder);
        command
    };
    let mut moments = vec![];
    while kills < context.settings.kills {
        let moment = spread * random.unit();
        if kill_after(&mut again(), Duration::from_secs_f64(moment))? {
            kills += 1;
            moments.push(format!("{moment:.2}"));
            // What is visible under the output's name is whole or not there.
            if folder.exists() && hashes(&folder)? != wanted {
                report.line(false, "after a kill", "an unfinished folder is visible");
            }
        } else {
            completed += 1;
            compare(report, "completed between kills", &hashes(&folder)?, &wanted, &same);
            std::fs::remove_dir_all(&folder).map_err(Error::at(&folder))?;
        }
    }
    finish(&mut again())?;
    let what = format!(
        "killed {kills} times ({} s into a run), {completed} jobs done in between",
        moments.join(", ")
    );
    compare(report, &what, &hashes(&folder)?, &wanted, &same);
    let beside = left_beside(&folder)?;
    report.line(beside.is_empty(), "left beside the output", &format!("{beside:?}"));

    for threads in ["1", "2"] {
        let options = w4a16(context).into_iter().chain(["--threads".into(), threads.into()]);
        let folder = context.scratch(&format!("threads-{threads}"));
        let made = context.compress(&model, &options.collect::<Vec<_>>(), folder)?;
        let what = format!("--threads {threads}");
        compare(report, &what, &hashes(&made.folder)?, &wanted, &same);
    }
    Ok(())
}

type Hashes = BTreeMap<String, String>;

fn compare(report: &mut Report, what: &str, found: &Hashes, wanted: &Hashes, same: &str) {
    let names = found.keys().chain(wanted.keys());
    let differing: Vec<&String> =
        names.filter(|name| found.get(*name) != wanted.get(*name)).collect();
    let figures = match differing.as_slice() {
        [] => format!("the same SHA-256 of {same}"),
        differing => format!("other bytes in {differing:?}"),
    };
    report.line(differing.is_empty(), what, &figures);
}

/// SHA-256 of each file of a folder.
fn hashes(folder: &Path) -> Result<Hashes, Error> {
    let mut found = Hashes::new();
    for entry in std::fs::read_dir(folder).map_err(Error::at(folder))? {
        let path = entry.map_err(Error::at(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).map_err(Error::at(&path))?;
        found.insert(name, sha256(&bytes));
    }
    Ok(found)
}

/// Work folders and partial files that a finished job has left.
fn left_beside(folder: &Path) -> Result<Vec<String>, Error> {
    let parent = folder.parent().unwrap_or(folder);
    let own = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut left = vec![];
    for entry in std::fs::read_dir(parent).map_err(Error::at(parent))? {
        let name = entry.map_err(Error::at(parent))?.file_name().to_string_lossy().into_owned();
        if name != own && name.contains(&own) {
            left.push(name);
        }
    }
    Ok(left)
}
