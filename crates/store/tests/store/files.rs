//! Atomic files, published folders, locks, and the disk itself.

use std::path::Path;

use lapidary_store::atomic::{self, AtomicFile, publish_dir};
use lapidary_store::fs::{Fs, Kind, read, read_lines, read_text};
use lapidary_store::{Category, RealFs, StoreError};

use crate::support::real;

fn names(dir: &Path) -> Vec<String> {
    let entries = RealFs.list(dir).unwrap();
    entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    atomic::write(&real(), &path, b"old").unwrap();

    let mut file = AtomicFile::create(&real(), &path).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    drop(file);
    assert_eq!(names(dir.path()), ["file"], "nothing is left of an abandoned file");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");

    let mut file = AtomicFile::create(&real(), &path).unwrap();
    file.write_all(b"n").unwrap();
    file.write_all(b"ew").unwrap();
    let written = file.commit().unwrap();
    assert_eq!((written.bytes, written.sha256), (3, lapidary_store::hash::sha256(b"new")));
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert!(AtomicFile::create(&real(), Path::new("/")).is_err());
}

#[test]
fn a_folder_is_published_once() {
    let dir = tempfile::tempdir().unwrap();
    let (staging, target) = (dir.path().join("staging"), dir.path().join("target"));
    std::fs::create_dir_all(staging.join("sub")).unwrap();
    std::fs::write(staging.join("sub/file"), b"x").unwrap();
    publish_dir(&RealFs, &staging, &target).unwrap();
    assert_eq!(names(dir.path()), ["target"]);
    assert_eq!(std::fs::read(target.join("sub/file")).unwrap(), b"x");

    std::fs::create_dir_all(&staging).unwrap();
    let error = publish_dir(&RealFs, &staging, &target).unwrap_err();
    assert_eq!(error.category(), Category::Refused);
    let empty = dir.path().join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    let error = RealFs.rename_new(&staging, &empty).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "not even an empty folder is replaced");
    std::os::unix::fs::symlink("/etc", staging.join("link")).unwrap();
    assert!(publish_dir(&RealFs, &staging, &dir.path().join("new")).is_err());
}

#[test]
fn text_is_cut_where_a_line_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    let lines = |limit| read_lines(&RealFs, &path, "the text", limit);
    std::fs::write(&path, "one\ntwö\nthree").unwrap();
    assert_eq!(read_text(&RealFs, &path, "the text", 14).unwrap(), "one\ntwö\nthree");
    assert_eq!(lines(14).unwrap(), ("one\ntwö\nthree".to_owned(), false));
    for (limit, text) in [(13, "one\ntwö\n"), (9, "one\ntwö\n"), (7, "one\n"), (4, "one\n")] {
        assert_eq!(lines(limit).unwrap(), (text.to_owned(), true), "{limit}");
    }
    assert!(matches!(lines(3), Err(StoreError::TooLarge { .. })));
    assert!(matches!(read_text(&RealFs, &path, "the text", 13), Err(StoreError::TooLarge { .. })));
    std::fs::write(&path, b"caf\xe9").unwrap();
    let error = read_text(&RealFs, &path, "the text", 99).unwrap_err();
    assert_eq!(error.category(), Category::BadInput);
    assert!(error.to_string().contains("byte 3: this is not UTF-8"), "{error}");
}

#[test]
fn a_second_writer_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let lock = RealFs.lock(&path).unwrap();
    let error = RealFs.lock(&path).unwrap_err();
    assert_eq!(error.category(), Category::Refused);
    let message = format!("is in use by process {}", std::process::id());
    assert!(error.to_string().contains(&message), "{error}");
    drop(lock);
    RealFs.lock(&path).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn only_regular_files_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let error = RealFs.open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::NotAFile { found: "folder", .. }), "{error}");
    let error = RealFs.open(Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(error, StoreError::NotAFile { found: "pipe or device", .. }), "{error}");
    let pipe = dir.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    assert!(RealFs.open(&pipe).is_err(), "and does not wait for a writer");
    assert_eq!(RealFs.list(dir.path()).unwrap()[0].kind, Kind::Other);
    assert!(RealFs.open(&dir.path().join("absent")).unwrap_err().is_not_found());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_has_its_own_words() {
    let mut full = RealFs.append(Path::new("/dev/full")).unwrap();
    full.write_all(b"x").unwrap();
    let error = full.flush().unwrap_err();
    assert_eq!(error.category(), Category::Io);
    assert!(error.to_string().contains("/dev/full: the disk is full; free some space"), "{error}");
}

#[test]
fn sizes_are_bounded_and_space_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, [0; 11]).unwrap();
    assert_eq!(read(&RealFs, &path, "the file", 11).unwrap().len(), 11);
    let error = read(&RealFs, &path, "the file", 10).unwrap_err().to_string();
    assert!(error.ends_with("the file is 11 bytes, the limit is 10"), "{error}");
    let here = RealFs.free_space(dir.path()).unwrap();
    let below = RealFs.free_space(&dir.path().join("not/yet/there")).unwrap();
    assert!(here > 0 && below > 0);
    assert!(RealFs.free_space(Path::new("not-there")).unwrap() > 0);
}
