"""How far a compressed model is from its reference, both run by `transformers` in float32.

    python agree.py REFERENCE CANDIDATE --text wiki.test.raw --windows 10

REFERENCE and CANDIDATE are .gguf files or folders, plain or compressed-tensors. For language
models, over the predicted tokens of the first N windows of 2048 (perplexity.py): the perplexity of
both, `kl_divergence`, the mean of KL(reference || candidate) in nats, and `top1_agreement`, how
often both think the same token likeliest. For encoders, over the first N rows of 128 tokens: the
mean and the smallest cosine between their last hidden states, token by token, and the mean between
the rows' means. Printed as JSON.
"""
import argparse
import math

import checkpoint
import perplexity
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference")
    parser.add_argument("candidate")
    parser.add_argument("--text", required=True)
    parser.add_argument("--newlines", choices=["lf", "keep"], default="lf")
    parser.add_argument("--windows", type=int, default=10)
    options = parser.parse_args()

    tokens = checkpoint.encode(
        options.reference, checkpoint.read_text(options.text, options.newlines)
    )
    models = [checkpoint.load_model(path) for path in (options.reference, options.candidate)]
    compare = encoders if checkpoint.is_encoder(models[0].config) else language_models
    checkpoint.print_json(compare(*models, tokens, options))


def language_models(reference, candidate, tokens: torch.Tensor, options) -> dict:
    runs = [perplexity.logits_of(model) for model in (reference, candidate)]
    pieces = perplexity.cut(tokens, 2048, options.windows)
    total = torch.zeros(4, dtype=torch.float64)
    for piece in pieces:
        total += compare_logits(*[run(piece)[:-1] for run in runs], piece[1:])
    scored = len(pieces) * 2047
    mean = (total / scored).tolist()
    return {
        "windows": len(pieces), "tokens": scored, "reference_perplexity": math.exp(mean[0]),
        "perplexity": math.exp(mean[1]), "kl_divergence": mean[2], "top1_agreement": mean[3],
    }


def compare_logits(a: torch.Tensor, b: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over rows: -ln p of both, KL(a || b), rows with the same likeliest token."""
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(targets), perplexity.ROWS):
        rows = slice(start, start + perplexity.ROWS)
        log_a, log_b = (torch.log_softmax(x[rows], dim=-1) for x in (a, b))
        divergence = (log_a.exp() * (log_a - log_b)).double().sum()
        same = (log_a.argmax(-1) == log_b.argmax(-1)).sum()
        wanted = targets[rows, None]
        nll = [-x.gather(1, wanted).double().sum() for x in (log_a, log_b)]
        sums += torch.stack([*nll, divergence, same.double()])
    return sums


@torch.no_grad()
def encoders(reference, candidate, tokens: torch.Tensor, options) -> dict:
    similar = torch.nn.functional.cosine_similarity
    by_token, by_row = [], []
    for piece in perplexity.cut(tokens, 128, options.windows):
        a, b = (
            model(input_ids=piece[None]).last_hidden_state[0] for model in (reference, candidate)
        )
        by_token.append(similar(a, b, dim=-1))
        by_row.append(similar(a.mean(0), b.mean(0), dim=0))
    cosines = torch.cat(by_token)
    return {
        "rows": len(by_row), "tokens": len(cosines), "cosine": cosines.mean().item(),
        "cosine_min": cosines.min().item(), "row_cosine": torch.stack(by_row).mean().item(),
    }


if __name__ == "__main__":
    main()
