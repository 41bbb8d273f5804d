//! The disk fails at every call in turn: what is left must be nothing, or whole.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use lapidary_store::atomic::publish_dir;
use lapidary_store::fs::{Calls, Fault, FaultFs};
use lapidary_store::gguf::{MetaValue, Metadata, Writer};
use lapidary_store::journal::Journal;
use lapidary_store::safetensors::{ShardedWriter, plan};
use lapidary_store::{Category, Checkpoint, Dtype, Fs, Result, TensorSpec};
use serde_json::{Value, json};

use crate::support::{real, scratch};

const KINDS: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::Other, ErrorKind::Interrupted];

/// Files that readers may see, by name, with their content.
type Visible = BTreeMap<String, Vec<u8>>;

fn visible(dir: &Path) -> Visible {
    let mut files = Visible::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with('.') {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

/// Writes five tensors into three shards and an index.
fn write_shards(fs: &Arc<dyn Fs>, dir: &Path) -> Result<()> {
    let tensor = |i: usize| TensorSpec::new(format!("m{i}.weight"), Dtype::F32, [10 + i, 3]);
    let tensors: Vec<TensorSpec> = (0..5).map(tensor).collect();
    let plan = plan(&tensors, 300)?;
    assert_eq!(plan.shards.len(), 3);
    let mut writer = ShardedWriter::create(fs, dir, plan.clone(), BTreeMap::new())?;
    for tensor in plan.order() {
        let bytes = vec![tensor.shape[0] as u8; tensor.byte_len().unwrap() as usize];
        for piece in bytes.chunks(50) {
            writer.append(&tensor.name, piece)?;
        }
    }
    writer.finish().map(|_| ())
}

/// Every fault of a run that makes `calls` calls of one sort.
fn faults(calls: u64, sort: Calls) -> impl Iterator<Item = Fault> {
    (1..=calls).flat_map(move |at| {
        KINDS.into_iter().flat_map(move |kind| {
            [false, true].map(|forever| Fault { calls: sort, at, kind, forever })
        })
    })
}

fn count(sort: Calls, run: impl Fn(&Arc<dyn Fs>)) -> u64 {
    let counting = FaultFs::counting(real());
    run(&(Arc::new(counting.clone()) as Arc<dyn Fs>));
    counting.count(sort)
}

#[test]
fn an_interrupted_shard_set_shows_only_whole_files() {
    let golden_dir = scratch();
    let calls = count(Calls::Mutating, |fs| write_shards(fs, golden_dir.path()).unwrap());
    let golden = visible(golden_dir.path());
    assert_eq!(golden.len(), 4);
    assert!(calls > 30, "{calls} calls");

    for fault in faults(calls, Calls::Mutating) {
        let dir = scratch();
        let fs: Arc<dyn Fs> = Arc::new(FaultFs::new(real(), fault));
        let error = write_shards(&fs, dir.path()).unwrap_err();
        assert_eq!(error.category(), Category::Io, "{fault:?}: {error}");
        if fault.kind == ErrorKind::StorageFull {
            assert!(error.to_string().contains("the disk is full"), "{error}");
        }
        let seen = visible(dir.path());
        for (name, bytes) in &seen {
            assert!(golden.get(name) == Some(bytes), "{fault:?} left a wrong {name}");
        }
        if seen.len() < golden.len() {
            let opened = Checkpoint::open(real(), dir.path());
            assert!(opened.is_err(), "{fault:?}: a part must not pass for the whole");
        }
        // The same again without the fault, in the same folder, gives the whole.
        write_shards(&real(), dir.path()).unwrap();
        assert_eq!(visible(dir.path()), golden, "{fault:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), golden.len(), "no remains");
    }
}

#[test]
fn an_interrupted_publication_shows_the_folder_whole_or_not() {
    let prepare = |dir: &Path| {
        std::fs::create_dir_all(dir.join("work/staging/sub")).unwrap();
        std::fs::write(dir.join("work/staging/a"), b"a").unwrap();
        std::fs::write(dir.join("work/staging/sub/b"), b"b").unwrap();
    };
    let publish = |fs: &Arc<dyn Fs>, dir: &Path| {
        publish_dir(&**fs, &dir.join("work/staging"), &dir.join("out"))
    };
    for sort in [Calls::Mutating, Calls::Reading] {
        let calls = count(sort, |fs| {
            let dir = scratch();
            prepare(dir.path());
            publish(fs, dir.path()).unwrap();
        });
        assert!(calls >= 3);
        for fault in faults(calls, sort) {
            let dir = scratch();
            prepare(dir.path());
            let fs: Arc<dyn Fs> = Arc::new(FaultFs::new(real(), fault));
            publish(&fs, dir.path()).unwrap_err();
            let (staging, out) = (dir.path().join("work/staging"), dir.path().join("out"));
            assert!(staging.exists() != out.exists(), "{fault:?}: one of the two");
            let whole = if out.exists() { &out } else { &staging };
            assert_eq!(std::fs::read(whole.join("a")).unwrap(), b"a");
            assert_eq!(std::fs::read(whole.join("sub/b")).unwrap(), b"b");
        }
    }
}

#[test]
fn an_interrupted_gguf_is_whole_or_not_there() {
    let run = |fs: &Arc<dyn Fs>, dir: &Path| -> Result<()> {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", MetaValue::String("llama".to_owned()));
        let tensors = ["a", "b"].map(|name| TensorSpec::new(name, Dtype::F32, [3]));
        let mut writer = Writer::create(fs, &dir.join("model.gguf"), &metadata, &tensors)?;
        for tensor in &tensors {
            writer.append(&tensor.name, &[1; 5])?;
            writer.append(&tensor.name, &[2; 7])?;
        }
        writer.finish().map(drop)
    };
    let whole = scratch();
    run(&real(), whole.path()).unwrap();
    let calls = count(Calls::Mutating, |fs| run(fs, scratch().path()).unwrap());
    assert!(calls >= 9, "{calls} calls");
    for fault in faults(calls, Calls::Mutating) {
        let dir = scratch();
        let fs: Arc<dyn Fs> = Arc::new(FaultFs::new(real(), fault));
        let failed = run(&fs, dir.path()).is_err();
        let files = visible(dir.path());
        assert!(files.is_empty() || files == visible(whole.path()), "{fault:?}");
        assert!(failed || !files.is_empty(), "{fault:?}");
    }
}

#[test]
fn an_interrupted_journal_keeps_what_was_acknowledged() {
    let entry = |number: usize| json!({ "block": number, "text": "x".repeat(40) });
    // Appends until the first error; gives the number of entries that were acknowledged.
    let run = |fs: &Arc<dyn Fs>, path: &Path| -> usize {
        let Ok((mut journal, recovered)) = Journal::open(fs, path) else {
            return 0;
        };
        let start = recovered.entries.len();
        for number in start..6 {
            if journal.append(&entry(number)).is_err() {
                let again = journal.append(&entry(number)).unwrap_err();
                assert_eq!(again.category(), Category::Misuse, "a broken journal stays broken");
                return number;
            }
        }
        6
    };
    let calls = count(Calls::Mutating, |fs| {
        let dir = scratch();
        assert_eq!(run(fs, &dir.path().join("journal")), 6);
    });
    assert!(calls >= 14, "{calls} calls");
    for fault in faults(calls, Calls::Mutating) {
        let dir = scratch();
        let path = dir.path().join("journal");
        let fs: Arc<dyn Fs> = Arc::new(FaultFs::new(real(), fault));
        let acknowledged = run(&fs, &path);
        drop(fs);
        let (_, recovered) = Journal::open(&real(), &path).unwrap();
        let expected: Vec<Value> = (0..recovered.entries.len()).map(entry).collect();
        assert_eq!(recovered.entries, expected, "{fault:?}");
        // One more may be there: written whole, but its sync failed.
        let extra = recovered.entries.len() - acknowledged;
        assert!(extra <= 1, "{fault:?}: {acknowledged} acknowledged");
        assert_eq!(run(&real(), &path), 6);
    }
}

#[test]
fn a_checkpoint_reports_every_failed_read() {
    let dir = scratch();
    write_shards(&real(), dir.path()).unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let read_all = |fs: &Arc<dyn Fs>| -> Result<()> {
        let checkpoint = Checkpoint::open(Arc::clone(fs), dir.path())?;
        for tensor in checkpoint.tensors() {
            let bytes = checkpoint.read(tensor)?;
            assert!(bytes.iter().all(|&byte| byte == tensor.shape[0] as u8));
        }
        checkpoint.hash_files(&mut |_| ())?;
        checkpoint.read_auxiliary("tokenizer.json").map(|_| ())
    };
    let calls = count(Calls::Reading, |fs| read_all(fs).unwrap());
    for fault in faults(calls, Calls::Reading) {
        let fs: Arc<dyn Fs> = Arc::new(FaultFs::new(real(), fault));
        let error = read_all(&fs).unwrap_err();
        assert_eq!(error.category(), Category::Io, "{fault:?}: {error}");
    }
}
