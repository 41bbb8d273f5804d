"""The tokens that `transformers` puts after prompts, the likeliest each time, in float32.

    python greedy.py MODEL PROMPTS.json --tokens 200

MODEL is a .gguf file or a folder; PROMPTS.json holds lists of token ids. Prints as JSON, for each
prompt, the ids that follow, and the smallest gap between the two largest logits on the way: where it
is tiny, another order of sums may lead elsewhere.
"""
import argparse
import json
from pathlib import Path

import checkpoint
import torch


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()

    model = checkpoint.load_model(options.model)
    rows = []
    for prompt in json.loads(Path(options.prompts).read_text()):
        ids, gap, past, following = torch.tensor([prompt]), float("inf"), None, []
        for _ in range(options.tokens):
            output = model(ids, past_key_values=past, use_cache=True)
            past = output.past_key_values
            best = output.logits[0, -1].topk(2)
            gap = min(gap, (best.values[0] - best.values[1]).item())
            following.append(best.indices[0].item())
            ids = best.indices[None, :1]
        rows.append({"ids": following, "gap": gap})
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
