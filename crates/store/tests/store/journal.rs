//! The journal: what was appended is there, what was not finished is not.

use std::path::Path;

use lapidary_store::journal::{Journal, Recovered};
use lapidary_store::{Category, Result};
use serde_json::{Value, json};

use crate::support::{real, scratch};

fn open(path: &Path) -> Result<(Journal, Recovered)> {
    Journal::open(&real(), path)
}

fn entry(number: usize) -> Value {
    json!({ "block": number, "site": format!("line\nbreak \"{number}\""), "x": 0.1 })
}

/// A journal of three entries, as bytes.
fn three(path: &Path) -> Vec<u8> {
    let (mut journal, recovered) = open(path).unwrap();
    assert!(recovered.entries.is_empty());
    for number in 0..3 {
        journal.append(&entry(number)).unwrap();
    }
    std::fs::read(path).unwrap()
}

#[test]
fn what_was_appended_is_there() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let bytes = three(&path);
    assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), 3);
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    assert!(lines.into_iter().all(|line| serde_json::from_slice::<Value>(line).is_ok()));

    let (mut journal, recovered) = open(&path).unwrap();
    assert_eq!(recovered.entries, [entry(0), entry(1), entry(2)]);
    assert_eq!(recovered.dropped_bytes, 0);
    journal.append(&entry(3)).unwrap();
    drop(journal);
    assert_eq!(open(&path).unwrap().1.entries.len(), 4, "the chain goes on over a reopening");
}

#[test]
fn cut_at_any_byte_the_complete_lines_remain() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let bytes = three(&path);
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let complete = bytes[..length].iter().filter(|&&byte| byte == b'\n').count();
        let (mut journal, recovered) = open(&path).unwrap();
        let expected: Vec<Value> = (0..complete).map(entry).collect();
        assert_eq!(recovered.entries, expected, "cut at {length}");
        for number in complete..3 {
            journal.append(&entry(number)).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same bytes after all");
    }
}

#[test]
fn a_last_line_of_garbage_is_dropped() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let bytes = three(&path);
    for garbage in [&b"\0\0\0\0"[..], b"\xff\n", b"{}\n", b"{\"sha256\":\"", b"\n"] {
        std::fs::write(&path, [&bytes[..], garbage].concat()).unwrap();
        let (_, recovered) = open(&path).unwrap();
        assert_eq!(recovered.entries.len(), 3);
        assert_eq!(recovered.dropped_bytes, garbage.len() as u64);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_changed_earlier_line_is_an_error() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let bytes = three(&path);
    let line = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for position in 0..line {
        for bit in [0, 6] {
            let mut changed = bytes.clone();
            changed[position] ^= 1 << bit;
            std::fs::write(&path, &changed).unwrap();
            let error = open(&path).unwrap_err();
            assert_eq!(error.category(), Category::BadInput, "byte {position}");
            assert_eq!(std::fs::read(&path).unwrap(), changed, "nothing was cut off");
        }
    }
    std::fs::write(&path, &bytes[line..]).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("line 1 column 1: this line was changed"), "a line is gone: {error}");
}
