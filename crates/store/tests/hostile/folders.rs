//! Hostile folders: indexes that lead elsewhere, links, configurations.

use crate::support::{safetensors, safetensors_of};
use crate::{Case, Content};

const INDEX: &str = "model.safetensors.index.json";

/// A folder with one shard, `a.safetensors`, and this index.
fn index(name: &'static str, index: impl Into<Vec<u8>>, expected: &'static str) -> Case {
    Case {
        name,
        files: vec![
            ("a.safetensors", Content::Bytes(safetensors_of(&["t"]))),
            (INDEX, Content::Bytes(index.into())),
        ],
        open: "",
        expected,
    }
}

/// An index that says that tensor `t` is in this file.
fn shard(name: &'static str, file: &str, expected: &'static str) -> Case {
    let json = serde_json::json!({ "weight_map": { "t": file } });
    index(name, json.to_string(), expected)
}

fn config(name: &'static str, text: impl Into<Vec<u8>>, expected: &'static str) -> Case {
    Case {
        name,
        files: vec![
            ("model.safetensors", Content::Bytes(safetensors_of(&["t"]))),
            ("config.json", Content::Bytes(text.into())),
        ],
        open: "",
        expected,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let outside = "is not a plain file name; do not trust this checkpoint";
    let mut cases = vec![
        shard("parent", "../a.safetensors", outside),
        shard("parent only", "..", outside),
        shard("absolute", "/etc/passwd", outside),
        shard("absolute shard", "/tmp/a.safetensors", outside),
        shard("subfolder", "sub/a.safetensors", outside),
        shard("current folder", "./a.safetensors", outside),
        shard("backslash", "..\\a.safetensors", outside),
        shard("drive", "C:a.safetensors", outside),
        shard("NUL", "a.safetensors\0", outside),
        shard("escape sequence", "\u{1b}[2Ja.safetensors", outside),
        shard("empty", "", outside),
        shard("slash at the end", "a.safetensors/", outside),
        shard("no safetensors", "pytorch_model.bin", "is not a .safetensors file"),
        shard("missing", "b.safetensors", "the index names it; download this shard"),
        index("no map", "{}", "there is no such object"),
        index("map that is an array", r#"{"weight_map":[]}"#, "there is no such object"),
        index("empty map", r#"{"weight_map":{}}"#, "the index names no tensor"),
        index("number", r#"{"weight_map":{"t":1}}"#, "its shard must be a string"),
        index("array", "[]", "there is no such object"),
        index(
            "duplicate tensor",
            r#"{"weight_map":{"t":"a.safetensors","t":"a.safetensors"}}"#,
            "duplicate key `t`",
        ),
        index("million brackets", "[".repeat(1_000_000), "nested deeper"),
        index("not JSON", "weights", "bad JSON"),
        index("10000 shards", many_shards(), "download this shard as well"),
    ];
    cases.extend(configurations());
    cases.push(Case {
        name: "configuration of a terabyte",
        files: vec![
            ("model.safetensors", Content::Bytes(safetensors_of(&["t"]))),
            ("config.json", Content::Sparse(vec![], 1 << 40)),
        ],
        open: "",
        expected: "the limit is 67108864",
    });
    cases.push(Case {
        name: "one tensor in two files",
        files: vec![
            ("a.safetensors", Content::Bytes(safetensors_of(&["t"]))),
            ("b.safetensors", Content::Bytes(safetensors_of(&["t"]))),
            ("config.json", Content::Bytes(b"{}".to_vec())),
        ],
        open: "",
        expected: "has a tensor of the same name",
    });
    cases.push(Case {
        name: "shard that is broken",
        files: vec![("model.safetensors", Content::Bytes(safetensors("{", 0)))],
        open: "",
        expected: "model.safetensors, line 1 column",
    });
    #[cfg(unix)]
    cases.extend(links());
    cases
}

fn configurations() -> Vec<Case> {
    vec![
        config("deep", "[".repeat(1_000_000), "nested deeper than is allowed"),
        config("deep objects", "{\"a\":".repeat(1_000_000), "nested deeper than is allowed"),
        config("duplicate key", r#"{"hidden_size":1,"hidden_size":2}"#, "key `hidden_size`"),
        config("not UTF-8", b"{\"a\":\"\xff\"}", "bad JSON"),
        config("infinite", r#"{"a":1e999}"#, "bad JSON"),
        config("empty", "", "bad JSON"),
    ]
}

#[cfg(unix)]
fn links() -> Vec<Case> {
    let outside = "outside of the checkpoint; copy the file here";
    let link = |name, file, target, expected| Case {
        name,
        files: vec![(file, Content::Link(target))],
        open: "",
        expected,
    };
    let mut cases = vec![
        link("weights that link outside", "model.safetensors", "/etc/passwd", outside),
        link("weights that link to a device", "model.safetensors", "/dev/zero", outside),
        link(
            "weights that link to themselves",
            "model.safetensors",
            "model.safetensors",
            "leads back to itself",
        ),
        link("weights that link to nothing", "model.safetensors", "nowhere", "does not exist"),
        link("index that links outside", INDEX, "/etc/passwd", outside),
        link("configuration that links outside", "config.json", "/etc/passwd", outside),
    ];
    cases.push(Case {
        name: "a shard that links outside",
        files: vec![
            ("a.safetensors", Content::Link("/etc/passwd")),
            (INDEX, Content::Bytes(br#"{"weight_map":{"t":"a.safetensors"}}"#.to_vec())),
        ],
        open: "",
        expected: outside,
    });
    cases
}

fn many_shards() -> String {
    let entry = |i: usize| format!(r#""t{i}":"s{i}.safetensors""#);
    let entries: Vec<String> = (0..10_000).map(entry).collect();
    format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))
}
