"""Writes a Llama of about 1.5 billion random weights as a GGUF of Q4_0 blocks: a model larger than
the caches, for measuring speed. Its tokenizer is that of another GGUF.

    python synthetic.py TOKENIZER.gguf OUT.gguf [--layers 32] [--hidden 2048] [--seed 0]
"""

import argparse

import gguf
import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("tokenizer")
parser.add_argument("out")
parser.add_argument("--layers", type=int, default=32)
parser.add_argument("--hidden", type=int, default=2048)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

hidden, layers, head = options.hidden, options.layers, 64
inner, kv = hidden * 11 // 4, hidden // 4
random = np.random.default_rng(options.seed)

reader = gguf.GGUFReader(options.tokenizer)
writer = gguf.GGUFWriter(options.out, "llama")
vocabulary = 0
for field in reader.fields.values():
    if not field.name.startswith("tokenizer."):
        continue
    kind = field.types[0]
    if field.name == "tokenizer.ggml.tokens":
        vocabulary = len(field.data)
    value = field.contents()
    if kind == gguf.GGUFValueType.ARRAY:
        writer.add_array(field.name, value)
    else:
        writer.add_key_value(field.name, value, kind)
writer.add_block_count(layers)
writer.add_context_length(4096)
writer.add_embedding_length(hidden)
writer.add_feed_forward_length(inner)
writer.add_head_count(hidden // head)
writer.add_head_count_kv(kv // head)
writer.add_rope_dimension_count(head)
writer.add_rope_freq_base(10000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(vocabulary)
writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def matrix(name, rows, columns):
    """Codes around 8, and scales for values of the size that keeps activations as they are."""
    blocks = rows * columns // 32
    data = random.integers(0, 256, (blocks, 18), dtype=np.uint8)
    scales = random.uniform(0.5, 1.5, blocks) / (4.6 * columns**0.5)
    data[:, :2] = scales.astype("<f2").view(np.uint8).reshape(blocks, 2)
    shape = (rows, columns // 32 * 18)
    writer.add_tensor(
        name, data.reshape(shape), raw_dtype=gguf.GGMLQuantizationType.Q4_0
    )


def gains(name):
    writer.add_tensor(name, np.ones(hidden, dtype=np.float32))


matrix("token_embd.weight", vocabulary, hidden)
gains("output_norm.weight")
for layer in range(layers):
    block = f"blk.{layer}."
    gains(block + "attn_norm.weight")
    matrix(block + "attn_q.weight", hidden, hidden)
    matrix(block + "attn_k.weight", kv, hidden)
    matrix(block + "attn_v.weight", kv, hidden)
    matrix(block + "attn_output.weight", hidden, hidden)
    gains(block + "ffn_norm.weight")
    matrix(block + "ffn_gate.weight", inner, hidden)
    matrix(block + "ffn_up.weight", inner, hidden)
    matrix(block + "ffn_down.weight", hidden, inner)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
