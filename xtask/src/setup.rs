//! What the checks stand on: a cache outside the tree, a Python environment, models, the binary.

use crate::error::Error;
use crate::process::{json, run, show};
use lapidary_store::hash::sha256;
use serde_json::Value;
use std::collections::BTreeSet;
use std::env::var_os;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where PyTorch has wheels without CUDA: a tenth of the size.
const CPU_WHEELS: (&str, &str) = ("download.pytorch.org", "https://download.pytorch.org/whl/cpu");

/// The repository.
pub(crate) fn root() -> Result<PathBuf, Error> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().ok_or_else(|| Error::Unexpected("xtask has no parent".to_owned()))?;
    Ok(root.to_owned())
}

/// The cache: `LAPIDARY_CACHE`, else `lapidary` in the user's cache folder.
pub(crate) fn cache() -> Result<PathBuf, Error> {
    let set = |name: &str| var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = set("LAPIDARY_CACHE").or_else(|| user().map(|cache| cache.join("lapidary")));
    let cache = cache.ok_or_else(|| {
        Error::Unexpected("neither LAPIDARY_CACHE nor HOME says where to keep models".to_owned())
    })?;
    std::fs::create_dir_all(&cache).map_err(Error::at(&cache))?;
    cache.canonicalize().map_err(Error::at(&cache))
}

/// The environment of the scripts of `xtask/real` and `benches/compare`.
pub(crate) const SCRIPTS: &str = "venv";

/// The Python of an environment with what `requirements` pins; made, or completed, when it is not
/// there. A stamp with the hash of the requirements says that it is. What `NAME.alone.txt` pins beside
/// a `NAME.txt` is installed without its dependencies.
pub(crate) fn python(
    root: &Path,
    cache: &Path,
    environment: &str,
    requirements: &str,
) -> Result<PathBuf, Error> {
    let requirements = root.join(requirements);
    let venv = cache.join(environment);
    let python = venv.join("bin/python");
    let alone = requirements.with_extension("alone.txt");
    let mut wanted = requirements_hash(&requirements)?;
    if alone.exists() {
        wanted = sha256((wanted + &requirements_hash(&alone)?).as_bytes());
    }
    let stamp = venv.join(format!("lapidary-{}", &wanted[..16]));
    if python.exists() && stamp.exists() {
        return Ok(python);
    }
    if !python.exists() {
        let maker = var_os("PYTHON").unwrap_or_else(|| "python3".into());
        show(Command::new(maker).args(["-m", "venv"]).arg(&venv))?;
    }
    for (requirements, more) in [(requirements, None), (alone, Some("--no-deps"))] {
        let installed = || {
            let script = root.join("xtask/real/installed.py");
            run(Command::new(&python).arg(script).arg(&requirements))
        };
        if !requirements.exists() || installed().is_ok() {
            continue;
        }
        forget_stamps(&venv)?;
        eprintln!("installing {} into {}", requirements.display(), venv.display());
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet"]).args(more).arg("-r").arg(&requirements);
        if reachable(CPU_WHEELS.0) {
            pip.args(["--extra-index-url", CPU_WHEELS.1]);
        }
        show(&mut pip)?;
        installed()?;
    }
    std::fs::write(&stamp, &wanted).map_err(Error::at(&stamp))?;
    Ok(python)
}

/// What another set of requirements was stamped for may be gone after an installation.
fn forget_stamps(venv: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(venv).map_err(Error::at(venv))? {
        let path = entry.map_err(Error::at(venv))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("lapidary-") {
            std::fs::remove_file(&path).map_err(Error::at(&path))?;
        }
    }
    Ok(())
}

/// Hash of a requirements file and of those it includes.
fn requirements_hash(file: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(file).map_err(Error::at(file))?;
    let mut all = sha256(text.as_bytes());
    for included in text.lines().filter_map(|line| line.strip_prefix("-r ")) {
        all += &requirements_hash(&file.with_file_name("").join(included.trim()))?;
    }
    Ok(sha256(all.as_bytes()))
}

fn reachable(host: &str) -> bool {
    let addresses = (host, 443).to_socket_addrs();
    let mut addresses = addresses.into_iter().flatten();
    addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok())
}

/// Fetches models into the cache; the answer has their paths by name.
pub(crate) fn models(
    root: &Path,
    python: &Path,
    cache: &Path,
    names: &BTreeSet<&str>,
) -> Result<Value, Error> {
    let mut found = Value::Object(serde_json::Map::new());
    for name in names {
        let script = root.join("xtask/real/fetch.py");
        let mut fetch = Command::new(python);
        fetch.arg(script).arg(name).arg(cache.join("models"));
        if let (Value::Object(found), Value::Object(more)) = (&mut found, json(&mut fetch)?) {
            found.extend(more);
        }
    }
    Ok(found)
}

/// The `lapidary` binary, optimised: the given one, else built now; cargo says where it is.
pub(crate) fn binary(root: &Path, given: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(given) = given {
        return given.canonicalize().map_err(Error::at(given));
    }
    let cargo = var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root).args(["build", "--release", "--package", "lapidary"]);
    build.args(["--bin", "lapidary", "--message-format", "json-render-diagnostics"]);
    let messages = run(&mut build)?.stdout;
    let executable = messages.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let message: Value = serde_json::from_slice(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.ok_or_else(|| Error::Unexpected("cargo names no executable".to_owned()))
}
