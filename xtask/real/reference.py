"""The perplexity of a model as `transformers` computes it in float32, as JSON.

    python reference.py MODEL --text wiki.test.raw --protocol windows --windows 10
    python reference.py MODEL --text wiki.test.raw --protocol llama.cpp --chunks 20
    python reference.py MODEL --text wiki.test.raw --protocol word --pages 5
    python reference.py MODEL --text wiki.test.raw --logits 64 --out facts.safetensors

MODEL is a .gguf file or a folder, plain or compressed-tensors. perplexity.py says what the
protocols are. With `--logits N --out FILE` no perplexity is computed: FILE holds `input_ids`
I64 [1, N], the first N tokens of the text, and `logits` F32 [1, N, vocab]. With `--float-inputs`
the inputs of layers stay floats that the folder says are rounded; `rounded_inputs` counts the layers
where they are rounded.
"""
import argparse
import time

import checkpoint
import perplexity
from safetensors.torch import save_file


def main() -> None:
    options = parse()
    newlines = options.newlines or perplexity.NEWLINES[options.protocol]
    text = checkpoint.read_text(options.text, newlines)
    model = checkpoint.load_model(options.model)
    rounding = checkpoint.rounding_layers(model)
    if options.float_inputs:
        checkpoint.leave_inputs(rounding)
    run = perplexity.logits_of(model)
    started = time.monotonic()
    if options.logits:
        result = write_logits(run, text, options)
    else:
        result = PROTOCOLS[options.protocol](run, text, options)
    result |= {"newlines": newlines, "rounded_inputs": len(checkpoint.rounding_layers(model))}
    checkpoint.print_json(result | {"seconds": round(time.monotonic() - started, 1)})


def by_windows(run, text: str, options) -> dict:
    tokens = checkpoint.encode(options.model, text)
    return perplexity.windows(run, tokens, options.windows)


def as_llama_cpp(run, text: str, options) -> dict:
    tokens = checkpoint.encode(options.model, text)
    special = checkpoint.special_tokens(options.model)
    bos = special["bos"] if special["adds_bos"] else None
    return perplexity.llama_cpp(run, tokens, options.chunks, bos)


def by_word(run, text: str, options) -> dict:
    special = checkpoint.special_tokens(options.model)
    prefix = special["eos"] if special["bos"] is None else special["bos"]
    tokenizer = checkpoint.load_tokenizer(options.model)

    def encode(page: str):
        ids = tokenizer.encode(page, add_special_tokens=False).ids
        return perplexity.torch.tensor([prefix] * special["adds_bos"] + ids)

    return perplexity.word(run, text, encode, prefix, options.pages, options.max_length)


PROTOCOLS = {"windows": by_windows, "llama.cpp": as_llama_cpp, "word": by_word}


def write_logits(run, text: str, options) -> dict:
    ids = checkpoint.encode(options.model, text)[: options.logits]
    logits = run(ids)
    save_file({"input_ids": ids[None].clone(), "logits": logits[None].contiguous()}, options.out)
    return {"file": options.out, "tokens": len(ids), "vocab": logits.shape[-1]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True, help="a text file in UTF-8")
    parser.add_argument("--newlines", choices=["lf", "keep"],
                        help="CRLF becomes LF, or stays; by default as the protocol has it")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="windows")
    parser.add_argument("--windows", type=int, help="score only the first N windows")
    parser.add_argument("--chunks", type=int, help="score only the first N chunks")
    parser.add_argument("--pages", type=int, help="score only the first N pages")
    parser.add_argument("--max-length", type=int, default=2048, help="of the protocol `word`")
    parser.add_argument("--float-inputs", action="store_true",
                        help="round no layer's inputs, whatever the folder says")
    parser.add_argument("--logits", type=int, metavar="N")
    parser.add_argument("--out", metavar="FILE")
    options = parser.parse_args()
    if bool(options.logits) != bool(options.out):
        parser.error("--logits and --out go together")
    return options


if __name__ == "__main__":
    main()
