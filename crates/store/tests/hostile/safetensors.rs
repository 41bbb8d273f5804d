//! Hostile safetensors files.

use crate::support::safetensors;
use crate::{Case, Content};

const NAME: &str = "x.safetensors";

fn header(name: &'static str, header: &str, data: usize, expected: &'static str) -> Case {
    Case::file(name, NAME, safetensors(header, data), expected)
}

/// A header with one tensor `t` of this description.
fn tensor(name: &'static str, entry: &str, data: usize, expected: &'static str) -> Case {
    header(name, &format!(r#"{{"t":{{{entry}}}}}"#), data, expected)
}

/// A header of any stated length, and the bytes that are really there.
fn stated(name: &'static str, length: u64, rest: &[u8], expected: &'static str) -> Case {
    Case::file(name, NAME, [&length.to_le_bytes()[..], rest].concat(), expected)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = lengths();
    cases.extend(syntax());
    cases.extend(fields());
    cases.extend(spans());
    cases
}

fn lengths() -> Vec<Case> {
    let sparse = |name, bytes: Vec<u8>, length, expected| Case {
        name,
        files: vec![(NAME, Content::Sparse(bytes, length))],
        open: NAME,
        expected,
    };
    let limit = 100_000_000_u64;
    vec![
        Case::file("empty file", NAME, [], "the length of the header needs 8 bytes"),
        Case::file("seven bytes", NAME, [0; 7], "the length of the header needs 8 bytes"),
        stated("length 0", 0, b"", "does not start with `{`"),
        stated("length 0 and a body", 0, b"{}", "does not start with `{`"),
        stated("length beyond the file", 3, b"{}", "the header needs 11 bytes"),
        stated("length at the limit", limit, b"{}", "is truncated: the header needs"),
        stated("length above the limit", limit + 1, b"{}", "above the limit of 100000000"),
        stated("length 2^63", 1 << 63, b"{}", "above the limit"),
        stated("length 2^64 - 1", u64::MAX, b"{}", "above the limit"),
        stated("length 2^64 - 8", u64::MAX - 7, b"{}", "above the limit"),
        sparse("100 MB of zeros", limit.to_le_bytes().to_vec(), limit + 8, "start with `{`"),
        sparse(
            "a long file of zeros after a short header",
            safetensors("{}", 0),
            1 << 40,
            "the tensors end at byte 10, but the file goes on to",
        ),
        Case::file("pickle", NAME, b"\x80\x02}q\x00.0000000", "above the limit"),
        Case::file("zip", NAME, b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "above the limit"),
        Case::file("page of HTML", NAME, b"<!DOCTYPE html><html>", "above the limit"),
        Case::file(
            "pointer of git-lfs",
            NAME,
            b"version https://git-lfs.github.com/spec/v1",
            "above the limit",
        ),
    ]
}

fn syntax() -> Vec<Case> {
    let fine = r#""dtype":"U8","shape":[1],"data_offsets":[0,1]"#;
    let twice = format!(r#"{{"t":{{{fine}}},"t":{{{fine}}}}}"#);
    let long_name = format!(r#"{{"{}":{{"dtype":"?"}}}}"#, "n".repeat(1_000_000));
    vec![
        header("array", "[]", 0, "does not start with `{`"),
        header("space first", " {}", 0, "does not start with `{`"),
        header("not closed", "{", 0, "bad JSON"),
        header("trailing bytes", "{}x", 0, "bad JSON: trailing characters"),
        header("two documents", "{}{}", 0, "bad JSON: trailing characters"),
        header("a million brackets", &format!("{{\"a\":{}", "[".repeat(1_000_000)), 0, "bad JSON"),
        header("a million braces", &"{\"a\":".repeat(1_000_000), 0, "bad JSON"),
        header("a million brackets deep inside", &unknown_field_nested(), 1, "bad JSON"),
        header("duplicate tensor", &twice, 1, "duplicate key `t`"),
        header(
            "duplicate metadata",
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            0,
            "duplicate key `__metadata__`",
        ),
        header("duplicate metadata key", r#"{"__metadata__":{"a":"","a":""}}"#, 0, "key `a`"),
        header("metadata that is no string", r#"{"__metadata__":{"a":1}}"#, 0, "bad JSON"),
        header("metadata that is a tensor", &format!("{{\"__metadata__\":{{{fine}}}}}"), 1, "JSON"),
        header("null", r#"{"t":null}"#, 0, "bad JSON"),
        header("control character", "{\"a\u{1}\":{}}", 0, "bad JSON"),
        header("escape sequences in a name", &escapes(), 1, "tensor `\\u{1b}[31m\\n`"),
        Case::file("not UTF-8", NAME, [&3_u64.to_le_bytes()[..], b"{\xff}"].concat(), "bad JSON"),
        header("a name of a megabyte", &long_name, 0, "bad JSON"),
    ]
}

fn fields() -> Vec<Case> {
    let fine = r#""dtype":"U8","shape":[1],"data_offsets":[0,1]"#;
    let ten_thousand_dimensions =
        format!(r#""dtype":"U8","shape":[{}1],"data_offsets":[0,1]"#, "1,".repeat(10_000));
    vec![
        tensor("no type", r#""shape":[1],"data_offsets":[0,1]"#, 1, "missing field `dtype`"),
        tensor("no shape", r#""dtype":"U8","data_offsets":[0,1]"#, 1, "missing field `shape`"),
        tensor("no offsets", r#""dtype":"U8","shape":[1]"#, 1, "missing field `data_offsets`"),
        tensor("duplicate field", &format!(r#"{fine},"dtype":"I8""#), 1, "duplicate field `dtype`"),
        tensor("ten thousand dimensions", &ten_thousand_dimensions, 1, "more than 64 dimensions"),
        tensor(
            "unknown type",
            r#""dtype":"F7","shape":[1],"data_offsets":[0,1]"#,
            1,
            "tensor `t` has the unknown element type `F7`",
        ),
    ]
}

fn unknown_field_nested() -> String {
    let nested = "[".repeat(1_000_000);
    format!(r#"{{"t":{{"x":{nested},"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#)
}

fn escapes() -> String {
    r#"{"\u001b[31m\n":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}"#.to_owned()
}

fn spans() -> Vec<Case> {
    let two = |first: &str, second: &str| {
        let entry = |offsets: &str, size: &str| {
            format!(r#"{{"dtype":"U8","shape":[{size}],"data_offsets":[{offsets}]}}"#)
        };
        format!(r#"{{"a":{},"b":{}}}"#, entry(first, "4"), entry(second, "4"))
    };
    let of = |shape: &str, offsets: &str| {
        format!(r#""dtype":"F32","shape":[{shape}],"data_offsets":[{offsets}]"#)
    };
    vec![
        header("overlap", &two("0,4", "3,7"), 7, "tensor `b`: its bytes start at 3"),
        header("same bytes twice", &two("0,4", "0,4"), 4, "an overlap"),
        header("hole", &two("0,4", "5,9"), 9, "a hole"),
        header("hole at the start", &two("1,5", "5,9"), 9, "a hole"),
        header("bytes after the last", &two("0,4", "4,8"), 9, "the file goes on to"),
        header("truncated by one", &two("0,4", "4,8"), 7, "is truncated: tensor `b` needs"),
        tensor("end before start", &of("1", "4,0"), 4, "a hole"),
        tensor("end before start at 0", &of("0", "0,-1"), 4, "bad JSON"),
        tensor(
            "too short for its shape",
            &of("2", "0,4"),
            4,
            "4 bytes are stated, F32 [2] takes 8",
        ),
        tensor("too long for its shape", &of("2", "0,12"), 12, "takes 8"),
        tensor("2^40 × 2^40", &of("1099511627776,1099511627776", "0,0"), 0, "exceeds 64 bits"),
        tensor("2^62 floats", &of("4611686018427387904", "0,0"), 0, "exceeds 64 bits"),
        tensor("2^64 - 1 floats", &of("18446744073709551615", "0,4"), 4, "exceeds 64 bits"),
        tensor("2^64", &of("18446744073709551616", "0,4"), 4, "bad JSON"),
        tensor("negative dimension", &of("-1", "0,4"), 4, "bad JSON"),
        tensor("fractional dimension", &of("1.0", "0,4"), 4, "bad JSON"),
        tensor("dimension as text", &of("\"1\"", "0,4"), 4, "bad JSON"),
        tensor("one offset", &of("1", "0"), 4, "bad JSON"),
        tensor("three offsets", &of("1", "0,4,8"), 4, "bad JSON"),
        tensor(
            "offsets at the end of 64 bits",
            &of("1", "0,18446744073709551615"),
            4,
            "18446744073709551615 bytes are stated",
        ),
        tensor(
            "a tensor as long as 64 bits",
            &format!(r#""dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]"#, u64::MAX),
            4,
            "is truncated: tensor `t` needs 18446744073709551615",
        ),
    ]
}
