"""What llama.cpp makes of a GGUF: perplexity as its own tool measures it (windows of CONTEXT tokens,
the second half of each scored), and the divergence from another GGUF on the same tokens.

    llama_perplexity.py MODEL TEXT [--reference GGUF] [--context 512] [--windows 20]

Prints one JSON object. Needs llama-cpp-python and numpy.
"""

import argparse
import json

import llama_cpp
import numpy as np


def load(path, context):
    return llama_cpp.Llama(
        model_path=path,
        n_ctx=context,
        n_batch=context,
        logits_all=True,
        n_gpu_layers=0,
        verbose=False,
    )


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def logits(model, tokens):
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--reference")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=20)
    arguments = parser.parse_args()

    model = load(arguments.model, arguments.context)
    reference = arguments.reference and load(arguments.reference, arguments.context)
    begins = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model.model))
    with open(arguments.text, encoding="utf-8", newline="") as file:
        tokens = model.tokenize(file.read().encode(), add_bos=begins, special=False)
    half = arguments.context // 2
    loss, divergence, same, count = 0.0, 0.0, 0, 0
    windows = min(arguments.windows, len(tokens) // arguments.context)
    for window in range(windows):
        piece = tokens[window * arguments.context :][: arguments.context]
        if begins:
            piece[0] = model.token_bos()
        scored = slice(half, arguments.context - 1)
        ours = log_softmax(logits(model, piece)[scored])
        wanted = np.array(piece[half + 1 :])
        loss -= ours[np.arange(len(wanted)), wanted].sum()
        count += len(wanted)
        if reference:
            theirs = log_softmax(logits(reference, piece)[scored])
            divergence += (np.exp(theirs) * (theirs - ours)).sum()
            same += (theirs.argmax(-1) == ours.argmax(-1)).sum()
    result = {
        "perplexity": float(np.exp(loss / count)),
        "tokens": count,
        "windows": windows,
        "first_tokens": tokens[:64],
        "llama_cpp_python": llama_cpp.__version__,
    }
    if reference:
        result["kl_divergence"] = float(divergence / count)
        result["top1_agreement"] = float(same / count)
    print(json.dumps(result))


main()
