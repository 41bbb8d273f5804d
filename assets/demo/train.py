"""Trains the built-in demonstration model: python train.py CORPUS_FOLDER [--steps N] [--resume]

A Llama of 1.8 million parameters on about 6.5 MB of public-domain prose (../corpus.py fetches it)
plus this project's own calibration documents; the chapters in evaluation.txt are never trained on.
Writes evaluation.txt, tokenizer.json, tokenizer_config.json, config.json, generation_config.json
and model.safetensors beside this file. Needs torch, tokenizers and safetensors; two CPU cores
take one to two hours. Seeded; different torch versions or thread counts round differently.

Matrices are trained with Muon, the embedding and the norms with AdamW; the learning rate warms
up, stays constant and falls linearly over the last `DECAY` of the steps, so that a checkpoint of
the constant part can be resumed with another number of steps.
"""

import argparse
import json
import math
import pathlib
import random
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "calibration")]
import corpus  # noqa: E402
import make  # noqa: E402

SEED = 1813
VOCABULARY = 2048
HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 192, 448, 4, 3, 1, 64
CONTEXT = 512
ROPE_THETA = 10_000.0
EPSILON = 1e-5
BATCH, MICRO_BATCH = 16, 4  # rows of CONTEXT tokens per step and per forward pass
WARM_UP, DECAY = 60, 0.4
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 0.02, 0.004, 0.02
END = "<|endoftext|>"
TYPE = torch.bfloat16


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("corpus_folder")
    arguments.add_argument("--steps", type=int, default=2400)
    arguments.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    arguments.add_argument("--checkpoint", default="checkpoint.pt")
    arguments.add_argument("--out", type=pathlib.Path, default=HERE)
    arguments.add_argument("--workers", type=int, default=2, help="processes; must divide 16")
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.checkpoint = pathlib.Path(options.checkpoint).resolve()
    pathlib.Path(f"{options.checkpoint}.rendezvous").unlink(missing_ok=True)

    corpus.fetch(options.corpus_folder)
    training, held_out = corpus.split(options.corpus_folder)
    documents = [text for _, text in training] + make.own_documents()
    evaluation = "\n\n".join(text for _, text in held_out) + "\n"
    (options.out / "evaluation.txt").write_text(evaluation, "utf-8", newline="\n")
    tokenizer = train_tokenizer(documents, options.out)
    end = tokenizer.token_to_id(END)
    encoded = [torch.tensor(tokenizer.encode(d).ids + [end]) for d in documents]
    test = torch.tensor(tokenizer.encode(evaluation).ids)
    print(f"{sum(map(len, encoded))} training tokens, {len(test)} held-out tokens")

    torch.multiprocessing.spawn(worker, (options, encoded, test), nprocs=options.workers)


def worker(rank, options, encoded, test):
    """One of the processes, each with one thread: together faster than threads, and the result
    depends on their number only through the order of one sum."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.distributed.init_process_group("gloo", init_method=f"file://{options.checkpoint}.rendezvous",
                                         rank=rank, world_size=options.workers)
    weights = train(rank, encoded, test, options)
    if rank == 0:
        export(weights, options.out)


def train_tokenizer(documents, out):
    """Byte-level BPE; writes tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END,
        "unk_token": END, "pad_token": None, "model_max_length": CONTEXT, "add_prefix_space": False,
        "clean_up_tokenization_spaces": False})
    return tokenizer


class RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight with the backward pass written out: few passes over memory."""

    @staticmethod
    def forward(context, x, weight):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPSILON).to(x.dtype)
        normal = x * scale
        context.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    def backward(context, gradient):
        normal, scale, weight = context.saved_tensors
        for_weight = (gradient * normal).flatten(0, -2).sum(0, dtype=torch.float32)
        inner = gradient * weight
        projection = (inner * normal).mean(-1, keepdim=True, dtype=torch.float32).to(normal.dtype)
        return torch.addcmul(inner, normal, projection, value=-1).mul_(scale), for_weight.to(weight.dtype)


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up of the two halves of x."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        gate, up = x.chunk(2, -1)
        result = torch.empty_like(x)
        for_gate, for_up = result.chunk(2, -1)
        torch.mul(gradient, F.silu(gate), out=for_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=for_gate)
        return result


class Rotate(torch.autograd.Function):
    """Rotary embedding, halves layout, of x [rows, heads, tokens, head_dim]."""

    @staticmethod
    def forward(context, x, cosine, sine):
        context.save_for_backward(cosine, sine)
        return Rotate.turn(x, cosine, sine)

    @staticmethod
    def backward(context, gradient):
        cosine, sine = context.saved_tensors
        return Rotate.turn(gradient, cosine, -sine), None, None

    @staticmethod
    def turn(x, cosine, sine):
        first, second = x.chunk(2, -1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def initial_weights():
    """Linear weights are [out, in]; q, k and v are one matrix, gate and up another."""
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    weights = {"embedding": torch.randn(VOCABULARY, HIDDEN) * 0.05, "final_norm": torch.ones(HIDDEN)}
    for layer in range(LAYERS):
        shapes = {"qkv": (width, HIDDEN), "o": (HIDDEN, HEADS * HEAD_DIM),
                  "gate_up": (2 * FFN, HIDDEN), "down": (HIDDEN, FFN)}
        for name, shape in shapes.items():
            gain = 1 / math.sqrt(2 * LAYERS) if name in ("o", "down") else 1.0
            weights[f"{layer}.{name}"] = torch.randn(shape) * gain / math.sqrt(shape[1])
        weights[f"{layer}.norm_1"] = torch.ones(HIDDEN)
        weights[f"{layer}.norm_2"] = torch.ones(HIDDEN)
    return weights


def rotary_tables():
    """(cosine, sine), each [CONTEXT, HEAD_DIM / 2]."""
    frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angles = torch.outer(torch.arange(CONTEXT).float(), frequencies)
    return angles.cos().to(TYPE), angles.sin().to(TYPE)


def loss_of(weights, rows, tables):
    """Mean cross-entropy in nats of predicting rows[:, 1:] from rows[:, :-1]."""
    count, tokens = rows.shape[0], rows.shape[1] - 1
    cosine, sine = (t[:tokens] for t in tables)
    x = F.embedding(rows[:, :-1], weights["embedding"])
    for layer in range(LAYERS):
        get = lambda name: weights[f"{layer}.{name}"]  # noqa: E731
        normal = RmsNorm.apply(x, get("norm_1"))
        qkv = F.linear(normal, get("qkv")).view(count, tokens, -1, HEAD_DIM).transpose(1, 2)
        turned = Rotate.apply(qkv[:, : HEADS + KV_HEADS], cosine, sine)
        query, key = turned[:, :HEADS], turned[:, HEADS:]
        mixed = attention(query, key, qkv[:, HEADS + KV_HEADS :])
        x = x + F.linear(mixed.transpose(1, 2).reshape(count, tokens, -1), get("o"))
        normal = RmsNorm.apply(x, get("norm_2"))
        x = x + F.linear(SwiGlu.apply(F.linear(normal, get("gate_up"))), get("down"))
    logits = F.linear(RmsNorm.apply(x, weights["final_norm"]), weights["embedding"])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def attention(query, key, value):
    """Causal attention of [rows, heads, tokens, head_dim]; written out because the fused kernel's
    backward pass is several times slower than matrix products on a CPU."""
    rows, heads, tokens, _ = query.shape
    key, value = (t.repeat_interleave(heads // KV_HEADS, 1).flatten(0, 1) for t in (key, value))
    mask = torch.full((tokens, tokens), -math.inf, dtype=query.dtype).triu(1)
    scores = torch.baddbmm(mask.expand(rows * heads, tokens, tokens),
                           query.flatten(0, 1) * HEAD_DIM**-0.5, key.transpose(1, 2))
    return (scores.softmax(-1) @ value).view_as(query)


def train(rank, encoded, test, options):
    """The training loop; `encoded` is one tensor of token ids per document."""
    masters = {k: v.requires_grad_() for k, v in initial_weights().items()}
    matrices = [v for k, v in masters.items() if v.ndim == 2 and k != "embedding"]
    others = [v for k, v in masters.items() if v.ndim == 1 or k == "embedding"]
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    rates = {muon: MUON_RATE, adam: ADAM_RATE}
    tables, first, started = rotary_tables(), 0, time.time()
    if options.resume:
        state = torch.load(options.checkpoint, weights_only=False)
        with torch.no_grad():
            for name, value in state["weights"].items():
                masters[name].copy_(value)
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        first = state["step"]
    total = 0.0
    for step in range(first, options.steps):
        for optimizer, rate in rates.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, options.steps)
        total += gradients(masters, rows_of_step(encoded, step), tables, rank, options.workers)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        if (step + 1) % 20 == 0 and rank == 0:
            seconds = time.time() - started
            print(f"step {step + 1}/{options.steps} loss {total / 20:.4f} {seconds:.0f} s", flush=True)
        if (step + 1) % 20 == 0:
            total = 0.0
        if (step + 1) % 100 == 0 and rank == 0:
            print(f"held-out perplexity {perplexity(masters, test, tables):.3f}", flush=True)
            torch.save({"weights": masters, "muon": muon.state_dict(), "adam": adam.state_dict(),
                        "step": step + 1}, options.checkpoint)
    if rank == 0:
        print(f"held-out perplexity {perplexity(masters, test, tables):.3f}", flush=True)
    return {k: v.detach() for k, v in masters.items()}


def gradients(masters, rows, tables, rank, workers):
    """Sets the gradients of the mean loss over `rows`, of which this process does its share;
    returns the loss."""
    small = {k: v.detach().to(TYPE).requires_grad_() for k, v in masters.items()}
    total = 0.0
    for part in rows.split(len(rows) // workers)[rank].split(MICRO_BATCH):
        loss = loss_of(small, part, tables) * (len(part) / len(rows))
        loss.backward()
        total += loss.item()
    flat = torch.cat([small[k].grad.float().flatten() for k in masters] + [torch.tensor([total])])
    torch.distributed.all_reduce(flat)
    position = 0
    for value in masters.values():
        value.grad = flat[position : position + value.numel()].view_as(value)
        position += value.numel()
    return flat[-1].item()


def schedule(step, steps):
    """The factor of the learning rates."""
    remaining = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARM_UP, remaining)


def rows_of_step(encoded, step):
    """BATCH rows of CONTEXT + 1 tokens. Each epoch the documents are shuffled, joined and cut at
    an offset of its own; step alone decides which rows, so that resuming changes nothing."""
    per_epoch = (sum(map(len, encoded)) - CONTEXT - 1) // CONTEXT // BATCH
    epoch, position = divmod(step, per_epoch)
    if rows_of_step.epoch != epoch:
        rng = random.Random(SEED + epoch)
        order = rng.sample(encoded, len(encoded))
        offset = rng.randrange(CONTEXT)
        rows_of_step.epoch, rows_of_step.tokens = epoch, torch.cat(order)[offset:]
        count = per_epoch * BATCH - 1
        rows_of_step.starts = [i * CONTEXT for i in rng.sample(range(count), count)]
    starts = rows_of_step.starts[position * BATCH : (position + 1) * BATCH]
    return torch.stack([rows_of_step.tokens[s : s + CONTEXT + 1] for s in starts])


rows_of_step.epoch = None


@torch.no_grad()
def perplexity(masters, test, tables):
    """Over consecutive windows of CONTEXT tokens of the first 16,384 held-out tokens."""
    small = {k: v.detach().to(TYPE) for k, v in masters.items()}
    rows = test[: 32 * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
    losses = [loss_of(small, part, tables).item() for part in rows.split(MICRO_BATCH)]
    return math.exp(sum(losses) / len(losses))


def export(weights, out):
    """config.json, generation_config.json and model.safetensors as transformers names them."""
    query, key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = {"model.embed_tokens.weight": weights["embedding"],
               "model.norm.weight": weights["final_norm"]}
    for layer in range(LAYERS):
        get = lambda name: weights[f"{layer}.{name}"]  # noqa: E731
        q, k, v = get("qkv").split((query, key, key))
        gate, up = get("gate_up").split((FFN, FFN))
        names = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
                 "self_attn.o_proj": get("o"), "mlp.gate_proj": gate, "mlp.up_proj": up,
                 "mlp.down_proj": get("down"), "input_layernorm": get("norm_1"),
                 "post_attention_layernorm": get("norm_2")}
        for name, tensor in names.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = tensor
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in tensors.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_THETA, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 0, "use_cache": True, "torch_dtype": "bfloat16"})
    write_json(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0,
                                                "do_sample": True, "temperature": 0.8, "top_p": 0.95})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    main()
