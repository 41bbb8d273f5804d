//! From a model argument to a path.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lapidary_store::{Category, Checkpoint, Environment, resolve};

use crate::support::{real, safetensors_of};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

fn put(path: PathBuf, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A cache as `huggingface_hub` makes it: blobs, and snapshots of links to them.
fn cache(hub: &Path) -> PathBuf {
    let repository = hub.join("models--org--name");
    put(repository.join("blobs/1234"), safetensors_of(&["a"]));
    put(repository.join("refs/main"), COMMIT);
    put(repository.join("refs/pr/7"), OTHER);
    for commit in [COMMIT, OTHER] {
        let snapshot = repository.join("snapshots").join(commit);
        std::fs::create_dir_all(&snapshot).unwrap();
        let link = snapshot.join("model.safetensors");
        std::os::unix::fs::symlink("../../blobs/1234", link).unwrap();
    }
    repository
}

fn in_cache(hub: &Path) -> Environment {
    Environment { hf_hub_cache: Some(hub.to_owned()), ..Environment::default() }
}

#[test]
fn a_path_that_exists_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let found = resolve(&*real(), path, &Environment::default()).unwrap();
    assert_eq!(found, dir.path());
}

#[test]
fn a_repository_is_found_by_name_and_revision() {
    let hub = tempfile::tempdir().unwrap();
    let repository = cache(hub.path());
    let snapshots = repository.join("snapshots");
    let find = |model: &str| resolve(&*real(), model, &in_cache(hub.path())).unwrap();
    assert_eq!(find("org/name"), snapshots.join(COMMIT));
    assert_eq!(find("org/name@main"), snapshots.join(COMMIT));
    assert_eq!(find("org/name@pr/7"), snapshots.join(OTHER));
    assert_eq!(find(&format!("org/name@{OTHER}")), snapshots.join(OTHER));

    let checkpoint = Checkpoint::open(real(), &find("org/name")).unwrap();
    let tensor = checkpoint.require("a").unwrap();
    assert_eq!(checkpoint.read(tensor).unwrap(), [0], "links into the blobs are followed");
}

#[test]
fn the_first_variable_that_is_set_says_where_the_cache_is() {
    let variables = [
        ("HF_HUB_CACHE", "/1", "/1"),
        ("HF_HOME", "/2", "/2/hub"),
        ("XDG_CACHE_HOME", "/3", "/3/huggingface/hub"),
        ("HOME", "/4", "/4/.cache/huggingface/hub"),
    ];
    for (first, (_, _, expected)) in variables.iter().enumerate() {
        let lookup = |name: &str| {
            let set = variables.iter().skip(first).find(|variable| variable.0 == name);
            Some(set.map_or(OsString::new(), |variable| variable.1.into()))
        };
        let environment = Environment::from_variables(lookup);
        assert_eq!(environment.hub_cache(), Some(PathBuf::from(expected)));
    }
    assert_eq!(Environment::from_variables(|_| None).hub_cache(), None);
}

#[test]
fn what_is_not_found_says_where_it_was_sought_and_how_to_get_it() {
    let hub = tempfile::tempdir().unwrap();
    cache(hub.path());
    let message = |model: &str| {
        let error = resolve(&*real(), model, &in_cache(hub.path())).unwrap_err();
        assert_eq!(error.category(), Category::NotFound);
        error.to_string()
    };
    let absent = message("org/other");
    assert!(absent.contains("`hf download org/other`"), "{absent}");
    let folder = hub.path().join("models--org--other");
    assert!(absent.contains(&format!("{}", folder.join("refs/main").display())), "{absent}");
    let revision = message("org/name@v2");
    assert!(revision.contains("hf download org/name --revision v2"), "{revision}");
    assert!(revision.contains(COMMIT), "{revision}");
    assert!(message("./models/x/y").contains("give an existing folder"));
    let nowhere = resolve(&*real(), "org/name", &Environment::default()).unwrap_err().to_string();
    assert!(nowhere.contains("set HF_HOME"), "{nowhere}");
}

#[test]
fn names_cannot_leave_the_cache() {
    let hub = tempfile::tempdir().unwrap();
    let hostile = [
        "../no-such",
        "a/../b",
        "a/..",
        "/etc/no-such",
        "org/name@../../x",
        "org/name@/etc",
        "org/name@..",
        "org/name@",
        "org//name",
        "a--b/c",
        "a/b/c",
        "",
        "a b",
        "a\0b",
        "a\\b",
    ];
    for model in hostile {
        let error = resolve(&*real(), model, &in_cache(hub.path())).unwrap_err();
        assert_eq!(error.category(), Category::NotFound, "{model:?}: {error}");
        assert!(error.to_string().contains("give an existing folder"), "{model:?}: {error}");
    }
    let repository = cache(hub.path());
    put(repository.join("refs/main"), "../../../etc");
    let error = resolve(&*real(), "org/name", &in_cache(hub.path())).unwrap_err();
    assert_eq!(error.category(), Category::BadInput);
}
