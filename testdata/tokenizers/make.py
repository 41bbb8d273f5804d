"""Makes `pieces.json`: a tokenizer as transformers makes them of SentencePiece models of type BPE, small.

    python make.py      # needs the package tokenizers; reads the texts in assets/calibration

Pieces are learnt within words that begin with the spelled space; merges are all ways to cut a piece into two
others, in the order of the pieces, as transformers' converter writes them. How spaces are spelled at the
beginning of a text differs between families: who reads the file sets that.
"""
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
PIECES = 1400


def main() -> None:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False)
    texts = sorted((HERE / "../../assets/calibration").glob("*.txt"))
    learner.train([str(text) for text in texts], trainer)
    learnt = json.loads(learner.to_str())["model"]
    joined = ["".join(merge) for merge in learnt["merges"]]
    # Runs of spaces, which such vocabularies have, and which no word has inside.
    pieces = list(dict.fromkeys(["▁▁", "▁▁▁▁", *joined]))
    letters = [piece for piece in learnt["vocab"] if len(piece) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    vocab = {token: index for index, token in enumerate(tokens)}
    known = {*pieces, *letters}
    merges = []
    for piece in pieces:
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        cuts = [cut for cut in cuts if known.issuperset(cut)]
        merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    special = [
        dict(id=index, content=token, single_word=False, lstrip=False, rstrip=False,
             normalized=False, special=True)
        for index, token in enumerate(tokens[:3])
    ]
    made = dict(
        version="1.0", truncation=None, padding=None, added_tokens=special,
        normalizer=None, pre_tokenizer=None, post_processor=None,
        decoder=dict(type="Sequence", decoders=[
            dict(type="Replace", pattern=dict(String="▁"), content=" "),
            dict(type="ByteFallback"), dict(type="Fuse"),
        ]),
        model=dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None,
                   end_of_word_suffix=None, fuse_unk=True, byte_fallback=True, ignore_merges=False,
                   vocab=vocab, merges=merges),
    )
    (HERE / "pieces.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
