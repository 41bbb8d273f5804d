//! Hostile GGUF files.

use crate::support::{Gguf, string};
use crate::{Case, Content};

const NAME: &str = "x.gguf";

fn case(name: &'static str, builder: Gguf, expected: &'static str) -> Case {
    Case::file(name, NAME, builder.build(), expected)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = counts();
    cases.extend(values());
    cases.extend(arrays());
    cases.extend(shapes());
    cases.extend(offsets());
    cases.extend(large());
    cases
}

fn counts() -> Vec<Case> {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut builder = Gguf::new().data(64);
        change(&mut builder);
        builder
    };
    let version = |version: u32| with(&|builder| builder.version = version);
    vec![
        Case::file("empty file", NAME, [], "the magic number needs 4 bytes"),
        Case::file("magic only", NAME, b"GGUF", "the version needs 8 bytes"),
        case("wrong magic", with(&|b| b.magic = *b"GGML"), "it starts with GGML"),
        case("binary magic", with(&|b| b.magic = *b"\x1b\x00\n\xff"), "starts with \\x1b\\x00\\n"),
        case("version 0", version(0), "big-endian"),
        case("version 1", version(1), "GGUF version 1; convert it"),
        case("version 4", version(4), "GGUF version 4; versions 2 and 3"),
        case("big endian", version(3_u32.swap_bytes()), "a big-endian GGUF file"),
        case("2^60 tensors", with(&|b| b.tensor_count = Some(1 << 60)), "tensors are stated"),
        case("2^64 - 1 tensors", with(&|b| b.tensor_count = Some(u64::MAX)), "tensors are stated"),
        case("tensors that wrap", with(&|b| b.tensor_count = Some(u64::MAX / 24 + 2)), "stated"),
        case("2^60 entries", with(&|b| b.entry_count = Some(1 << 60)), "metadata entries are"),
        case("2^64 - 1 entries", with(&|b| b.entry_count = Some(u64::MAX)), "metadata entries are"),
        case("entries that wrap", with(&|b| b.entry_count = Some(u64::MAX / 13 + 2)), "stated"),
        case("one entry too many", with(&|b| b.entry_count = Some(2)), "byte"),
    ]
}

fn values() -> Vec<Case> {
    let entry = |kind: u32, value: &[u8]| Gguf::new().entry("key", kind, value).data(64);
    let text = |length: u64| entry(8, &[&length.to_le_bytes()[..], b"abc"].concat());
    let alignment = |value: u32| {
        Gguf::new().entry("general.alignment", 4, value.to_le_bytes()).tensor("t", &[4], 24, 0)
    };
    let twice = Gguf::new().entry("key", 0, [1]).entry("key", 0, [1]);
    vec![
        case("unknown type", entry(13, b""), "key `key` has the unknown type 13"),
        case("unknown type 2^32 - 1", entry(u32::MAX, b""), "unknown type 4294967295"),
        case("truth value 2", entry(7, &[2]), "a truth value of 2"),
        case("string of 2^62 bytes", text(1 << 62), "a metadata string of 4611686018427387904"),
        case("string of 2^64 - 1 bytes", text(u64::MAX), "bytes, the limit is"),
        case("string beyond the file", text(1000), "1000 bytes of a metadata string are stated"),
        case("string that is not UTF-8", entry(8, b"\x01\0\0\0\0\0\0\0\xff"), "is not UTF-8"),
        case("duplicate key", twice, "duplicate metadata key `key`"),
        case("alignment 0", alignment(0), "an alignment of 0"),
        case("alignment 3", alignment(3), "an alignment of 3"),
        case("alignment 2^31", alignment(1 << 31), "an alignment of 2147483648"),
        case(
            "alignment as text",
            Gguf::new().entry("general.alignment", 8, string("32")),
            "it must be a positive integer",
        ),
        case(
            "negative alignment",
            Gguf::new().entry("general.alignment", 5, (-32_i32).to_le_bytes()),
            "it must be a positive integer",
        ),
        case(
            "split into 2^64 - 1 files",
            Gguf::new().entry("split.count", 10, u64::MAX.to_le_bytes()),
            "split into 18446744073709551615 files",
        ),
        case(
            "part of a split with another name",
            Gguf::new().entry("split.count", 2, 3_u16.to_le_bytes()),
            "give the parts their original names",
        ),
    ]
}

fn arrays() -> Vec<Case> {
    let array = |kind, count, items: &[u8]| Gguf::new().array("key", kind, count, items).data(64);
    vec![
        case("array of 2^60 bytes", array(0, 1 << 60, b""), "array elements are stated"),
        case("array of 2^61 longs, which wraps", array(10, 1 << 61, b""), "array elements are"),
        case("array of 2^60 strings", array(8, 1 << 60, b""), "array elements are stated"),
        case("array beyond the file", array(6, 1000, b""), "1000 array elements are stated"),
        case("array of arrays", array(9, 1, b""), "an array of arrays (9)"),
        case("array of nothing known", array(77, 1, b""), "an array of the unknown type (77)"),
        case("array with a long string", array(8, 1, &u64::MAX.to_le_bytes()), "a string of an"),
        case("array with a bad truth value", array(7, 2, &[1, 9]), "a truth value of 9"),
    ]
}

fn shapes() -> Vec<Case> {
    let one = |ne: &[u64], kind, offset| Gguf::new().tensor("t", ne, kind, offset).data(64);
    vec![
        case("five dimensions", one(&[1; 5], 0, 0), "has 5 dimensions"),
        case("a thousand dimensions", one(&[1; 1000], 0, 0), "has 1000 dimensions"),
        case("unknown type", one(&[1], 4, 0), "tensor `t` has the ggml type 4"),
        case("type of a fork", one(&[1], 139, 0), "types of forks of llama.cpp"),
        case("type 2^32 - 1", one(&[1], u32::MAX, 0), "has the ggml type 4294967295"),
        case("2^40 × 2^40", one(&[1 << 40, 1 << 40], 0, 0), "its size exceeds 64 bits"),
        case("2^62 floats", one(&[1 << 62], 0, 0), "its size exceeds 64 bits"),
        case("2^64 - 1 bytes", one(&[u64::MAX], 24, 0), "is truncated: tensor `t` needs"),
        case("product that wraps to 0", one(&[1 << 32, 1 << 32], 24, 0), "exceeds 64 bits"),
        case("ragged rows", one(&[33, 2], 2, 0), "rows of 33 elements do not divide into Q4_0"),
        case("blocks in a scalar", one(&[], 12, 0), "do not divide into Q4_K blocks of 256"),
    ]
}

fn offsets() -> Vec<Case> {
    let one = |ne: &[u64], kind, offset| Gguf::new().tensor("t", ne, kind, offset).data(64);
    let two = |offset| Gguf::new().tensor("a", &[33], 24, 0).tensor("b", &[4], 24, offset).data(96);
    let twice = Gguf::new().tensor("t", &[4], 24, 0).tensor("t", &[4], 24, 32).data(64);
    vec![
        case("beyond the file", one(&[65], 24, 0), "is truncated: tensor `t` needs"),
        case("offset beyond the file", one(&[1], 24, 1 << 20), "is truncated: tensor `t`"),
        case("offset that wraps", one(&[1], 24, u64::MAX - 31), "is truncated: tensor `t`"),
        case("end that wraps", one(&[u64::MAX - 200], 24, 64), "is truncated: tensor `t`"),
        case("offset that is not aligned", one(&[1], 24, 16), "16 is not a multiple of 32"),
        case("overlap", two(32), "tensor `b`: its bytes overlap those of tensor `a`"),
        case("same bytes twice", two(0), "overlap those of tensor"),
        case("duplicate name", twice, "there are two tensors of this name"),
        case("escape sequence in a name", Gguf::new().tensor("\x1b[2J", &[1; 5], 0, 0), "\\u{1b}"),
    ]
}

/// Files that are really long, so that large counts could be there.
fn large() -> Vec<Case> {
    let sparse = |name, builder: Gguf, expected| Case {
        name,
        files: vec![(NAME, Content::Sparse(builder.build(), 1 << 42))],
        open: NAME,
        expected,
    };
    let mut tensors = Gguf::new();
    tensors.tensor_count = Some(1 << 30);
    let strings = Gguf::new().array("key", 8, (1 << 24) + 1, b"");
    vec![
        sparse("2^30 tensors", tensors, "more than the 268435456 bytes of a header can hold"),
        sparse("2^40 floats", Gguf::new().array("key", 6, 1 << 40, b""), "of a header can hold"),
        sparse("2^24 + 1 strings", strings, "the limit is 16777216"),
        sparse(
            "a string of a gigabyte",
            Gguf::new().entry("key", 8, (1_u64 << 30).to_le_bytes()),
            "bytes, the limit is 16777216",
        ),
    ]
}
