"""What lm-evaluation-harness's samples are worth by transformers, on the float model.

    python loglikelihoods.py MODEL SAMPLES.jsonl...

SAMPLES are the files that `lm_eval --log_samples` wrote against a server. Each request in them is
computed again with transformers in float32, tokenized as the harness tokenizes it, and printed as
JSON: the harness's answers beside transformers'.
"""
import argparse
import json

import checkpoint
import torch


class Reference:
    def __init__(self, path: str):
        self.model = checkpoint.load_model(path)
        self.tokenizer = checkpoint.load_tokenizer(path)
        special = checkpoint.special_tokens(path)
        # What the harness puts before a text that it scores from its first token on.
        self.begin = special["eos"] if special["bos"] is None else special["bos"]
        self.end = special["eos"]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def scored(self, context: list[int], continuation: list[int]) -> dict:
        """Log-likelihood of the continuation, whether it is the greedy one, and by how much a
        token of it is, or is not, the likeliest."""
        tokens = torch.tensor([context + continuation])
        with torch.no_grad():
            scores = self.model(tokens[:, :-1]).logits[0].double().log_softmax(-1)
        scores = scores[len(context) - 1:]
        own = scores.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        top = scores.topk(2).values
        # How far the likeliest is from being another one.
        margin = torch.where(own == top[:, 0], own - top[:, 1], top[:, 0] - own)
        return {"logprob": own.sum().item(), "greedy": bool((own == top[:, 0]).all()),
                "margin": margin.min().item()}

    def pair(self, context: str, continuation: str) -> dict:
        # Spaces at the context's end belong to the continuation, as in the harness.
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole, begin = self.encode(context + continuation), self.encode(context)
        return self.scored(begin, whole[len(begin):])

    def rolling(self, text: str) -> dict:
        return self.scored([self.begin], self.encode(text))

    def continued(self, text: str, most: int, until: list[str]) -> str:
        tokens = self.encode(text)
        answer: list[int] = []
        for _ in range(most):
            with torch.no_grad():
                token = self.model(torch.tensor([tokens + answer])).logits[0, -1].argmax().item()
            if token == self.end:
                break
            answer.append(token)
            decoded = self.tokenizer.decode(answer)
            if any(stop in decoded for stop in until):
                break
        text = self.tokenizer.decode(answer)
        for stop in until:
            text = text.split(stop)[0]
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("samples", nargs="+")
    options = parser.parse_args()
    reference = Reference(options.model)
    rows = []
    for path in options.samples:
        for line in open(path, encoding="utf-8"):
            sample = json.loads(line)
            # {"gen_args_0": {"arg_0": …, "arg_1": …}, …} in the order of `resps`.
            for (name, arguments), responses in zip(sample["arguments"].items(), sample["resps"]):
                response = responses[0]
                given = [arguments[key] for key in sorted(arguments)]
                if isinstance(given[-1], dict):
                    limits = given[1]
                    theirs = {"text": reference.continued(
                        given[0], limits["max_gen_toks"], limits["until"])}
                    ours = {"text": response}
                elif len(given) == 1:
                    theirs = reference.rolling(given[0])
                    value = response[0] if isinstance(response, list) else response
                    ours = {"logprob": float(value)}
                else:
                    theirs = reference.pair(*given)
                    ours = {"logprob": float(response[0]), "greedy": str(response[1]) == "True"}
                rows.append({"doc": sample["doc_id"], "request": name, "ours": ours,
                             "theirs": theirs})
    checkpoint.print_json({"rows": rows})


if __name__ == "__main__":
    main()
