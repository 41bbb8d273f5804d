"""Perplexity in the three protocols that `lapidary eval` names, and what each one counts.

`windows`    The token stream of the whole text, no special tokens, cut into windows of 2048 that do
             not overlap; what is left over is not scored. Each window predicts its tokens 1..2047
             from those before them: perplexity = exp(mean over all predicted tokens of -ln p).
`llama.cpp`  The same stream, cut into chunks of 512. Only the second half is scored: positions
             256..510 predict tokens 257..511, 255 per chunk. Where the tokenizer puts a `bos`
             before a text, the stream starts with one and each chunk's first token is replaced
             by it.
`word`       What lm-evaluation-harness does for `wikitext`: each page of the file by itself,
             detokenized, every token scored. The first window is `bos` (or else `eos`) and
             max_length - 1 tokens and predicts max_length; each next full window starts one token
             earlier than what it predicts; the last one keeps a full window of context and scores
             what remains. Words and bytes are those of the page *before* detokenizing, words being
             len(re.split(r"\\s+", page)).

A text with CRLF line ends gives other tokens than the same text with LF, so each protocol reads
its file as its namesake does: Python's text mode makes LF of them, llama.cpp keeps every byte.
"""
import math
import re
from collections.abc import Callable, Iterable, Iterator

import torch

# ids I64 [seq] -> logits F32 [seq, vocab]
Logits = Callable[[torch.Tensor], torch.Tensor]
NEWLINES = {"windows": "lf", "llama.cpp": "keep", "word": "lf"}
# Rows of logits that are turned into log-probabilities at a time.
ROWS = 256


def logits_of(model) -> Logits:
    @torch.no_grad()
    def run(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids[None], use_cache=False).logits[0]

    return run


def cut(tokens: torch.Tensor, length: int, limit: int | None = None) -> list[torch.Tensor]:
    """Whole pieces of `length` tokens, from the start; at most `limit` of them."""
    count = len(tokens) // length
    count = count if limit is None else min(count, limit)
    if count == 0:
        raise ValueError(f"{len(tokens)} tokens do not fill one window of {length}")
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum over rows of -ln softmax(logits)[target]; accumulated in float64."""
    total = 0.0
    for start in range(0, len(targets), ROWS):
        rows, wanted = logits[start : start + ROWS], targets[start : start + ROWS]
        log_p = torch.log_softmax(rows.float(), dim=-1).gather(1, wanted[:, None])
        total -= log_p.double().sum().item()
    return total


def windows(run: Logits, tokens: torch.Tensor, limit: int | None, length: int = 2048) -> dict:
    sums = [
        negative_log_likelihood(run(piece)[:-1], piece[1:]) for piece in cut(tokens, length, limit)
    ]
    scored = len(sums) * (length - 1)
    return {
        "protocol": "windows", "window": length, "windows": len(sums), "tokens": scored,
        "perplexity": math.exp(sum(sums) / scored),
        "window_nll": [total / (length - 1) for total in sums],
    }


def llama_cpp(
    run: Logits, tokens: torch.Tensor, limit: int | None, bos: int | None, length: int = 512
) -> dict:
    """`bos` is None unless the tokenizer adds it to a text by itself."""
    if bos is not None:
        tokens = torch.cat([torch.tensor([bos]), tokens])
    first = length // 2
    sums = []
    for piece in cut(tokens, length, limit):
        ids = piece.clone()
        if bos is not None:
            ids[0] = bos
        sums.append(negative_log_likelihood(run(ids)[first:-1], piece[first + 1 :]))
    scored = len(sums) * (length - first - 1)
    return {
        "protocol": "llama.cpp", "window": length, "windows": len(sums), "tokens": scored,
        "perplexity": math.exp(sum(sums) / scored),
    }


def word(
    run: Logits, text: str, encode: Callable[[str], torch.Tensor], prefix: int,
    limit: int | None = None, max_length: int = 2048,
) -> dict:
    """`limit` counts pages; `encode` gives the tokens that the tokenizer gives for a text."""
    nll, tokens, words, octets, count = 0.0, 0, 0, 0, 0
    for page in list(pages(text))[:limit]:
        ids = encode(detokenize(page))
        for seen, scored in rolling_windows(ids.tolist(), prefix, max_length):
            targets = torch.tensor(scored)
            nll += negative_log_likelihood(run(torch.tensor(seen))[-len(scored) :], targets)
        tokens += len(ids)
        words += len(re.split(r"\s+", page))
        octets += len(page.encode("utf-8"))
        count += 1
    return {
        "protocol": "word", "window": max_length, "pages": count, "tokens": tokens,
        "words": words, "bytes": octets,
        "word_perplexity": math.exp(nll / words),
        "byte_perplexity": math.exp(nll / octets),
        "bits_per_byte": nll / octets / math.log(2),
    }


def pages(text: str) -> Iterator[str]:
    """The text cut before each heading of the top level, a line like ` = Title = `."""
    page: list[str] = []
    for line in text.split("\n"):
        if _is_title(line):
            if "\n".join(page).strip():
                yield "\n".join(page)
            page = []
        page.append(line)
    if "\n".join(page).strip():
        yield "\n".join(page)


def _is_title(line: str) -> bool:
    # Deeper headings are written ` = = Title = = `.
    line = line.replace("= =", "==").strip()
    return line.startswith("= ") and line.endswith(" =")


# Each applied to the whole page, in this order. The first pattern's slashes come from a regular
# expression of another language and match nothing sensible; they are part of the protocol.
_DETOKENIZE: list[tuple[str, str]] = [
    (re.escape("s '"), "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    *[(re.escape(f" @{mark}@ "), mark) for mark in "-,."],
    *[(re.escape(f" {mark} "), f"{mark} ") for mark in ":;.!?,"],
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]


def detokenize(page: str) -> str:
    """Undoes WikiText's tokenization as far as lm-evaluation-harness does."""
    for pattern, replacement in _DETOKENIZE:
        page = re.sub(pattern, replacement, page)
    return page


def rolling_windows(
    tokens: list[int], prefix: int, max_length: int
) -> Iterable[tuple[list[int], list[int]]]:
    """Pairs (what the model reads, what its last rows predict); every token is predicted once."""
    shifted = [prefix, *tokens]  # shifted[i] is what stands before tokens[i]
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        yield shifted[max(0, end - max_length) : end], tokens[start:end]
