"""Makes small tokenizers of the kinds that GGUF is written for, and the tokens that `tokenizers` gives.

    pip install -r ../../../../xtask/real/requirements.txt
    python make.py

`NAME.json` is a `tokenizer.json`. The byte-level ones differ in the rules for splitting text alone, those
of published models; their merges were found in text that was not split, so that each rule shows.
`texts.json` holds awkward texts, `golden.json` for each name the tokens of every text.
"""
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[3] / "assets/calibration"
TEXTS = [
    "", "Hello world", " a space before", "   three before, two after  ", "a  b   c    d", " ", "    ",
    "tabs\tand\nlines\n\n\nand\r\nmore \n", "don't WON'T it's it'S we'll I'D", "1234567 3.14 12 2024-01-31",
    "na\u00efve caf\u00e9 \u00fcber Stra\u00dfe", "\u65e5\u672c\u8a9e\u306e\u6587\u3067\u3059\u3002\u4e2d\u6587", "emoji \U0001f600\U0001f469\u200d\U0001f467 end",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u03b1\u03b2\u03b3", "!!!???... -- (x)[y]{z} <a href='b'>", "x=y+z; if(a){b}\n\treturn 0;",
    "no\u00a0break and \u2003 em", "spelled\u2581out\u2581", "\x00\x01\x7f", "CamelCaseWords HTTPServer", "<s> and </s> typed",
    "before<|user|>within<|end|> after", "<|user|><|end|>", "<|user|> spaced <|end|>  twice",
]
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|user|>", "<|end|>"]


def main() -> None:
    lines = [line for name in ("written.txt", "mixed.txt")
             for line in (ASSETS / name).read_text().splitlines()[:400]] + TEXTS * 3
    made = {}
    for name in ("llama", "gemma", "phi3"):
        made[name] = pieces(name, lines)
    shared = bytes_model(lines)
    for name, rules in splitting().items():
        made[name] = shared | rules
    golden = {}
    for name, definition in made.items():
        text = json.dumps(definition, ensure_ascii=False)
        (HERE / f"{name}.json").write_text(text + "\n")
        tokenizer = Tokenizer.from_str(text)
        golden[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    (HERE / "texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n")
    (HERE / "golden.json").write_text(json.dumps(golden) + "\n")


def pieces(name: str, lines: list) -> dict:
    """A SentencePiece model of type BPE, as transformers writes one: every way to make a token is a merge."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, limit_alphabet=90)
    trained.train_from_iterator(lines, trainer)
    found = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    runs = ["▁▁", "▁▁▁", "▁▁▁▁"]
    # Runs of spaces and lines are tokens of their own wherever they stand in Gemma.
    joined = runs + [token for token, _ in found if len(token) > 1 and token not in runs]
    single = [token for token, _ in found if len(token) == 1]
    order = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    order += [token for token in dict.fromkeys(joined + single) if token not in order]
    vocab = {token: i for i, token in enumerate(order)}
    merges = []
    for token in joined:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        cuts = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(cuts, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    special = ["<unk>", "<s>", "</s>"] + SPECIAL
    text = ["\n\n", *runs] if name == "gemma" else []
    if name == "phi3":
        special.append("<|endoftext|>")
    for token in special + text:
        vocab.setdefault(token, len(vocab))
    strips = ["</s>"] + SPECIAL if name == "phi3" else []
    added = [added_token(vocab[token], token, token in special, token in strips)
             for token in special + text]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    both = {"type": "Sequence", "normalizers": [prepend, replace]}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
             "invert": False}
    return document(
        {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
         "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
         "ignore_merges": False, "vocab": vocab, "merges": [list(pair) for pair in merges]},
        added,
        normalizer=replace if name == "gemma" else both,
        pre_tokenizer=split if name == "gemma" else None,
    )


def bytes_model(lines: list) -> dict:
    """Byte-level BPE, with merges across every boundary that rules for splitting could set."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=640, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(lines, trainer)
    definition = json.loads(trained.to_str())
    vocab = definition["model"]["vocab"]
    added = []
    for token in ["<s>", "</s>"] + SPECIAL:
        added.append(added_token(vocab.setdefault(token, len(vocab)), token, True, False))
    return document(definition["model"], added)


def splitting() -> dict:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    gpt2 = level | {"use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}

    def split(pattern: str, **more) -> dict:
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        return sequence(step | more, level)

    def sequence(*steps) -> dict:
        return {"type": "Sequence", "pretokenizers": list(steps)}

    nfc = {"type": "NFC"}
    removed = {"behavior": "Removed", "invert": True}
    return {
        "gpt2": {"pre_tokenizer": gpt2},
        "gpt-neox": {"pre_tokenizer": gpt2, "normalizer": nfc},
        "smollm": {"pre_tokenizer": sequence(digits, gpt2)},
        "llama3": {"pre_tokenizer": split(GPT4 % "{1,3}")},
        "qwen2": {"pre_tokenizer": split(GPT4 % ""), "normalizer": nfc},
        "stablelm2": {"pre_tokenizer": split(GPT4 % "")},
        "phi4": {"pre_tokenizer": split(GPT4 % "{1,3}", **removed)},
    }


def added_token(index: int, token: str, special: bool, strip: bool) -> dict:
    return {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": strip,
            "normalized": False, "special": special}


def document(model: dict, added: list, **parts) -> dict:
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None, "model": model} | parts


if __name__ == "__main__":
    main()
