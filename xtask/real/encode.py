"""What an encoder such as all-MiniLM-L6-v2 makes of a few sentences, as safetensors.

    python encode.py FOLDER OUT.safetensors

For each sentence i, alone and without padding: `{i}.input_ids` I64 [1, seq] with the special
tokens, `{i}.token_type_ids` I64 [1, seq], `{i}.last_hidden_state` F32 [1, seq, hidden] and
`{i}.embedding` F32 [1, hidden], its mean over the tokens scaled to length one. The sentences
themselves stand in the metadata, under their numbers.
"""
import sys

import checkpoint
import torch
from safetensors.torch import save_file

SENTENCES = [
    "A weight is a sum of terms.",
    "The quick brown fox jumps over the lazy dog, twice!",
    "Ünïcödé, 東京 and $3.14 — words that a tokenizer must take apart.",
    "no",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the "
    "season of Light, it was the season of Darkness, it was the spring of hope, it was the winter "
    "of despair.",
]


@torch.no_grad()
def main(folder: str, out: str) -> None:
    model, tokenizer = checkpoint.load_model(folder), checkpoint.load_tokenizer(folder)
    tensors = {}
    for i, sentence in enumerate(SENTENCES):
        encoding = tokenizer.encode(sentence)
        inputs = {
            "input_ids": torch.tensor([encoding.ids]),
            "token_type_ids": torch.tensor([encoding.type_ids]),
        }
        hidden = model(**inputs).last_hidden_state.contiguous()
        mean = torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)
        found = inputs | {"last_hidden_state": hidden, "embedding": mean}
        tensors |= {f"{i}.{name}": tensor for name, tensor in found.items()}
    save_file(tensors, out, metadata={str(i): text for i, text in enumerate(SENTENCES)})
    checkpoint.print_json({
        "file": out, "sentences": len(SENTENCES),
        "tokens": [tensors[f"{i}.input_ids"].shape[1] for i in range(len(SENTENCES))],
    })


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: encode.py FOLDER OUT.safetensors")
    main(*sys.argv[1:3])
