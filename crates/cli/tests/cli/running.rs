//! `run` and `serve`: what a prompt may be, and a server's life.

use crate::support::{LAPIDARY, Said, environment, run, run_with, with_model};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `lapidary run model` with these bytes as standard input.
fn continued(folder: &Path, options: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut child = Command::new(LAPIDARY)
        .args(["run", "model", "--precision", "f32"])
        .args(options)
        .current_dir(folder)
        .envs(environment(folder))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A prompt that is refused early is not read to its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_text_is_continued_the_same_way_each_time() {
    let folder = with_model();
    let options = ["--json", "-n", "12", "--seed", "4"];
    let (code, out, _) = continued(folder.path(), &options, b"Once upon a time");
    assert_eq!(code, Some(0));
    let first: Value = serde_json::from_str(&out).unwrap();
    assert!(first["tokens"].as_u64().unwrap() <= 12 && !first["text"].as_str().unwrap().is_empty());
    let line = "run model --precision f32 --json -n 12 --seed 4 --prompt Once";
    let other = run(folder.path(), line).json();
    assert_ne!(first["text"], other["text"]);
    assert_eq!(other["text"], run(folder.path(), line).json()["text"]);
    // The same text for people, as it comes.
    // What the model is told first is part of what it reads.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(folder.path().join("chat.jinja"), template).unwrap();
    let line = "run model --json -n 4 --chat-template chat.jinja --prompt Once";
    let read = |line: &str| run(folder.path(), line).json()["prompt_tokens"].as_u64().unwrap();
    assert!(read(&format!("{line} --system Rhyme.")) > read(line));
    run(folder.path(), "run model --prompt x --system y").failed(2, &["chat template"]);
    let (_, shown, told) =
        continued(folder.path(), &["-n", "12", "--seed", "4"], b"Once upon a time");
    assert_eq!(
        shown.trim_end_matches('\n'),
        first["text"].as_str().unwrap().trim_end_matches('\n')
    );
    assert!(told.contains("tokens read"));
}

#[test]
fn no_prompt_is_a_panic() {
    let folder = with_model();
    let long = "word ".repeat(3000);
    let cases: [(&[u8], i32, &str); 7] = [
        (b"", 0, ""),
        (b"\0", 0, ""),
        ("\u{202e}é日🙂\u{0}\u{ffff}".as_bytes(), 0, ""),
        (b"<|endoftext|><|endoftext|>", 0, ""),
        (b"\xff\xfe broken", 2, "not text in UTF-8"),
        (b"half \xe2\x82", 2, "not text in UTF-8"),
        (long.as_bytes(), 2, "context"),
    ];
    for (input, expected, part) in cases {
        let (code, _, told) = continued(folder.path(), &["-n", "2"], input);
        assert_eq!(code, Some(expected), "{input:.40?}: {told}");
        assert!(told.contains(part) && !told.contains("panicked"), "{told}");
    }
    let refused = [
        ("run model --prompt x --temperature -1", "temperature"),
        ("run model --prompt x --top-p 7", "top_p"),
        ("run model --prompt x -n 100000", "context"),
    ];
    for (line, part) in refused {
        run(folder.path(), line).failed(2, &[part]);
    }
    run(folder.path(), "run model --prompt x --chat-template missing.jinja")
        .failed(4, &["missing"]);
    std::fs::write(folder.path().join("bad.jinja"), "{% for").unwrap();
    run(folder.path(), "run model --prompt x --chat-template bad.jinja").failed(4, &["template"]);
}

#[test]
fn a_server_says_where_it_is_and_ends_when_told_to() {
    let folder = with_model();
    let mut child = Command::new(LAPIDARY)
        .args(["serve", "model", "--port", "0", "--name", "gem", "--precision", "f32"])
        .current_dir(folder.path())
        .envs(environment(folder.path()))
        .env("LAPIDARY_API_KEY", "key")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{line}");
    let ask = |key: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        stream.write_all(format!("{head}authorization: Bearer {key}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("key").contains("\"gem\""));
    assert!(ask("other").starts_with("HTTP/1.1 401"));
    let port = address.rsplit(':').next().unwrap();
    run(folder.path(), &format!("serve model --port {port}")).failed(5, &["cannot listen"]);
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
}

/// `lapidary bench model` with this shell script in Python's place.
#[cfg(unix)]
fn compared(folder: &Path, script: &str) -> Said {
    use std::os::unix::fs::PermissionsExt;
    let python = folder.join("python");
    std::fs::write(&python, script).unwrap();
    std::fs::set_permissions(&python, PermissionsExt::from_mode(0o755)).unwrap();
    let line = "bench model --prompt 8 --generate 4 --repetitions 3 --json --compare some.gguf";
    run_with(folder, line, &[("LAPIDARY_PYTHON", &python)])
}

#[test]
fn a_bench_has_its_keys() {
    let folder = with_model();
    let keys = [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "bytes_per_token",
        "read_bytes_per_s",
        "share_of_bandwidth",
        "load_s",
    ];
    let measured = run(
        folder.path(),
        "bench model --prompt 8 --generate 4 --repetitions 1 --json --cache int8 --threads 1",
    );
    let measured = measured.json();
    for key in keys {
        assert!(measured[key].as_f64().unwrap() > 0.0, "{key}: {measured}");
    }
    assert_eq!((&measured["threads"], &measured["prompt"]), (&1.into(), &8.into()));
    assert!(measured.get("llama_cpp").is_none());
    run(folder.path(), "bench model --compare").failed(2, &["--compare FILE"]);
}

/// A smaller model beside its source: what is expected of it follows from the sizes.
#[test]
fn a_bench_sets_a_model_against_another() {
    let folder = with_model();
    run(
        folder.path(),
        "compress model -o small --method layers --set layers.drop=1 --samples 2 --seq-len 32",
    )
    .ok();
    let line = "bench small --against model --prompt 8 --generate 4 --repetitions 3 --threads 1";
    let found = run(folder.path(), &format!("{line} --json")).json();
    let config = |model: &str| {
        let text = std::fs::read(folder.path().join(model).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        config["num_hidden_layers"].as_f64().unwrap()
    };
    let ratio = |key: &str| found["expected_ratio"][key].as_f64().unwrap();
    let layers = config("model") / config("small");
    assert!((ratio("prefill") - layers).abs() < 1e-9, "{found}");
    // The head is read for every token, and is held as well.
    assert!(ratio("decode") > 1.0 && ratio("decode") < layers, "{found}");
    assert!(ratio("memory") < 1.0, "{found}");
    for key in ["prefill", "decode"] {
        assert!(found["measured_ratio"][key].as_f64().unwrap() > 0.0, "{found}");
    }
    let shown = run(folder.path(), line).ok();
    assert!(shown.contains("expected"), "{shown}");
    run(folder.path(), "bench small --against nowhere").failed(4, &["nowhere"]);
}

#[cfg(unix)]
#[test]
fn a_bench_compares_in_turns() {
    let folder = with_model();
    // Each answer half as long as the one before it, so that the best is not the median.
    let script = "#!/bin/sh\necho 9.9\ns=64\nwhile read what count; do\n\
                  echo $count.$what >> asked; echo $s; s=$((s / 2)); done\n";
    let measured = compared(folder.path(), script).json();
    let theirs = &measured["llama_cpp"];
    assert_eq!(theirs["version"], "9.9");
    // 64 seconds to warm up, then prefill in 32, 8 and 2 and decoding in 16, 4 and 1.
    assert_eq!(theirs["prefill_tokens_per_s_median"], 8.0 / 8.0);
    assert_eq!(theirs["prefill_tokens_per_s"], 8.0 / 2.0);
    assert_eq!(theirs["decode_tokens_per_s_median"], 4.0 / 4.0);
    assert_eq!(theirs["decode_tokens_per_s"], 4.0 / 1.0);
    let ratio = measured["decode_tokens_per_s"].as_f64().unwrap() / 4.0;
    assert_eq!(theirs["decode_ratio"], ratio);
    let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
    assert_eq!(asked, format!("8.prefill\n{}", "8.prefill\n4.decode\n".repeat(3)));
    let dies = compared(folder.path(), "#!/bin/sh\nexit 1\n");
    dies.failed(3, &["llama-cpp-python", "LAPIDARY_PYTHON"]);
    let garbage = "#!/bin/sh\necho 9.9\nwhile read line; do echo soon; done\n";
    compared(folder.path(), garbage).failed(3, &["llama.cpp"]);
}
