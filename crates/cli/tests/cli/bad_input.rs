//! Recipes, texts, options and places that make no sense: one line, the right exit code, and
//! nothing under the name of the result.

use crate::support::{SMALL, entries, run, with_model, with_tiny};

#[test]
fn recipes_are_refused_with_line_and_column() {
    let folder = with_tiny();
    let here = folder.path();
    let cases: [(&str, i32, &[&str]); 9] = [
        (
            "steps:\n  - method: rtn\n    bitz: 4\n",
            2,
            &["line 3, column 5", "\"bitz\"", "mean bits?"],
        ),
        ("steps:\n  - method: rtn\n    bits: 9\n", 2, &["line 3, column 11", "2 to 8"]),
        ("steps:\n  - method: rtn\n    bits: four\n", 2, &["line 3, column 11"]),
        ("steps:\n  - method: gtpq\n", 2, &["line 2, column 13", "gptq"]),
        ("stebs: []\n", 2, &["line 1, column 1", "\"stebs\"", "mean steps?"]),
        ("steps: [\n", 2, &["line 1"]),
        ("\u{0}", 2, &["mine.yaml"]),
        ("steps: [{method: rtn, targets: ['re:(']}]", 2, &["mine.yaml: line 1", "re:("]),
        ("steps: [{method: rtn, targets: [k_prjo]}]", 3, &["\"k_prjo\" matches no", "k_proj"]),
    ];
    for (text, code, parts) in cases {
        std::fs::write(here.join("mine.yaml"), text).unwrap();
        let said = run(here, "compress tiny -q -o out -r mine.yaml");
        said.failed(code, parts);
        if code == 2 {
            assert!(said.err.starts_with("error: mine.yaml: "), "{said:?}");
        }
        assert_eq!(entries(here), ["mine.yaml", "tiny"]);
    }
    run(here, "plan tiny -r W5A16").failed(2, &["\"W5A16\"", "did you mean W", "lapidary presets"]);
    run(here, "plan tiny -r no.yaml").failed(4, &["no.yaml does not exist"]);
    run(here, "presets W4B16").failed(2, &["\"W4B16\"", "did you mean W4A16?"]);
}

#[test]
fn options_that_make_no_sense() {
    let folder = with_model();
    let here = folder.path();
    let cases: [(&str, i32, &[&str]); 13] = [
        ("--bits 9", 2, &["bits: 9 is not from 2 to 8"]),
        ("--bits 0", 2, &["bits: 0 is not from 2 to 8"]),
        ("--group-size 0", 2, &["group_size: 0", "row or tensor"]),
        ("--group-size many", 2, &["group_size: \"many\""]),
        ("--samples 0", 2, &["calibration.samples is 0"]),
        ("--seq-len 0", 2, &["calibration.seq_len is 0"]),
        ("--set bits", 2, &["--set bits: it is of the form step.key=value"]),
        ("--set awq.bits=4", 2, &["no step is named awq"]),
        ("--set gptq.warmth=4", 2, &["\"warmth\" of a gptq step; known keys: method,"]),
        ("--set gptq.act_order=perhaps", 2, &["act_order"]),
        ("--set calibration.rows=4", 2, &["\"rows\""]),
        ("--format zip", 2, &["\"zip\"", "compressed-tensors"]),
        ("--memory 1MB", 3, &["the limit is 1 MB", "raise --memory"]),
    ];
    for (option, code, parts) in cases {
        run(here, &format!("compress model -q -o out {option}")).failed(code, parts);
        run(here, &format!("plan model {option}")).failed(code, parts);
        assert_eq!(entries(here), ["model"], "{option}");
    }
    run(here, &format!("compress model -q -o out {SMALL} --strict"))
        .failed(3, &["24 layers: ", "groups of 128 do not divide", "--strict"]);
    assert_eq!(entries(here), ["model"]);
    // What the parser of the command line refuses, it explains in its own way.
    for line in ["", "polish model", "plan", "plan model --memory 1XB", "plan model --threads 0"] {
        let said = run(here, line);
        assert!(said.code == Some(2) && said.out.is_empty() && !said.err.is_empty(), "{said:?}");
    }
}

#[test]
fn texts_that_are_none() {
    let folder = with_model();
    let here = folder.path();
    let cases: [(&str, &[u8], &[&str]); 7] = [
        ("empty.txt", b"", &["empty.txt", "0 tokens do not make one row"]),
        ("short.txt", b"a few words", &["short.txt", "do not make one row", "--seq-len"]),
        ("latin.txt", b"caf\xe9 and more of the same", &["latin.txt", "byte 3", "UTF-8"]),
        ("half.jsonl", b"{\"text\": \"a\"}\n{\"text\":\n", &["half.jsonl", "line 2"]),
        ("other.jsonl", b"{\"text\": \"a\"}\n\n{\"tixt\": \"a\"}\n", &["line 3", "under text"]),
        ("list.jsonl", b"[\"text\"]\n", &["list.jsonl", "line 1", "under text"]),
        ("rows.safetensors", b"no safetensors", &["rows.safetensors"]),
    ];
    for (name, bytes, parts) in cases {
        std::fs::write(here.join(name), bytes).unwrap();
        let job = format!("compress model -q -o out --calibration {name} {SMALL}");
        run(here, &job).failed(4, parts);
        std::fs::remove_file(here.join(name)).unwrap();
        assert_eq!(entries(here), ["model"], "{name}");
    }
    run(here, "compress model -q -o out --calibration no.txt")
        .failed(4, &["no.txt does not exist"]);
    run(here, "eval model --text no.txt").failed(4, &["no.txt does not exist"]);
    std::fs::write(here.join("latin.txt"), b"caf\xe9").unwrap();
    run(here, "eval model --text latin.txt").failed(4, &["latin.txt", "byte 3"]);
    run(here, "eval model --context 1").failed(4, &["context of 1 tokens"]);
}

#[test]
fn models_that_are_not_there_or_do_not_fit() {
    let folder = with_model();
    let here = folder.path();
    let missing = ["not found", "hf download nobody/nothing", "looked at"];
    for verb in ["plan", "inspect", "eval", "compress -o out"] {
        run(here, &format!("{verb} nobody/nothing")).failed(4, &missing);
    }
    run(here, "verify nothing").failed(4, &["nothing does not exist"]);
    run(here, "eval model --reference nobody/nothing").failed(4, &missing);
    std::fs::write(here.join("notes.txt"), "hello").unwrap();
    run(here, "inspect notes.txt").failed(4, &["notes.txt", "neither a folder nor"]);
    let tiny = with_tiny();
    let tiny = tiny.path().join("tiny");
    let lacks = ["no tokenizer.json", "AutoTokenizer"];
    run(here, &format!("eval {}", tiny.display())).failed(4, &lacks);
    run(here, &format!("compress {} -q -o out", tiny.display())).failed(4, &lacks);
    run(here, &format!("eval model --reference {}", tiny.display())).failed(4, &["vocabularies"]);
    assert_eq!(entries(here), ["model", "notes.txt"]);
}

#[test]
fn places_where_nothing_can_be_written() {
    let folder = with_model();
    let here = folder.path();
    let job = "compress model -q -r W4A16-rtn -o";
    std::fs::create_dir(here.join("taken")).unwrap();
    std::fs::write(here.join("file"), "a file").unwrap();
    let taken = ["exists and is not a result of this program", "choose another -o"];
    for place in ["taken", "file", "model", ".", "/"] {
        run(here, &format!("{job} {place}")).failed(3, &taken);
    }
    for place in ["model/out", "model/a/b", "./model/../model/out"] {
        run(here, &format!("{job} {place}")).failed(3, &["in the model's own folder model"]);
    }
    run(here, &format!("{job} file/out"))
        .failed(5, &["cannot create the folder file/", "ot a directory"]);
    assert_eq!(entries(here), ["file", "model", "taken"]);
    assert_eq!(entries(&here.join("model")).len(), 4);
    // Folders above the result are made, like those of any path that is new.
    run(here, &format!("{job} new/deep/out")).ok();
    run(here, "verify new/deep/out").ok();
    // The same name, another job.
    run(here, &format!("{job} new/deep/out --bits 3"))
        .failed(3, &["another job", "its recipe differ"]);
}

/// Permissions hold nobody back who runs as root.
#[cfg(unix)]
#[test]
fn a_folder_without_permission_to_write() {
    use std::os::unix::fs::PermissionsExt;
    let folder = with_model();
    let here = folder.path();
    let closed = here.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).unwrap();
    let may_write = std::fs::write(closed.join("trial"), "").is_ok();
    let said = run(here, "compress model -q -r W4A16-rtn -o closed/out");
    match may_write {
        true => assert_eq!(said.code, Some(0), "{said:?}"),
        false => said.failed(5, &["cannot create the folder closed/", "ermission denied"]),
    }
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o755)).unwrap();
}
