"""Compresses a folder with llm-compressor and says what that took.

    python peer_gptq.py FOLDER --rows ROWS.safetensors --out OUT [--method gptq|rtn]
                        [--bits 4] [--group-size 64] [--asymmetric] [--threads 2]

FOLDER is a float model (float_folder.py), computed in float32. ROWS holds the calibration rows,
`input_ids` [rows, length] of any integer type (rows.py, or what our own tool writes); the other
tool must read the same file. The settings that are not named are llm-compressor's defaults: blocks
of 128 columns, damping 0.01, columns in order of activation with groups in place ("static").

JSON on stdout: `cpu_seconds` and `wall_seconds` of the compression alone (calibration included,
imports, loading and saving not), `process_cpu_seconds` and `process_wall_seconds` of everything
from the start of this process to the written folder, and `peak_rss_bytes` of the process. Measure
a quality with xtask/real/agree.py.
"""
import argparse
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

PROCESS_START = time.monotonic()
# llm-compressor logs to stdout, which is for the report alone: all else goes to stderr.
REPORT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = load_file(options.rows)["input_ids"].long() if options.rows else None
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)

    cpu, wall = cpu_seconds(), time.monotonic()
    compress(model, rows, options)
    cpu, wall = cpu_seconds() - cpu, time.monotonic() - wall
    save(model, options)

    report = {
        "tool": "llm-compressor", "method": options.method, "bits": options.bits,
        "group_size": options.group_size, "symmetric": not options.asymmetric,
        "rows": None if rows is None else list(rows.shape), "threads": torch.get_num_threads(),
        "cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1),
        "process_cpu_seconds": round(cpu_seconds(), 1),
        "process_wall_seconds": round(time.monotonic() - PROCESS_START, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(report, indent=1), file=REPORT, flush=True)


def compress(model, rows: torch.Tensor | None, options) -> None:
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
        num_bits=options.bits, type="int", symmetric=not options.asymmetric,
        strategy="group", group_size=options.group_size,
    ))
    modifier = QuantizationModifier if options.method == "rtn" else GPTQModifier
    recipe = modifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    if options.method == "rtn":
        oneshot(model=model, recipe=recipe)
        return
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]}
               for row in rows]
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False)
    oneshot(model=model, recipe=recipe, dataset=loader,
            num_calibration_samples=len(rows), max_seq_length=rows.shape[1])


def save(model, options) -> None:
    model.save_pretrained(options.out, save_compressed=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(options.folder) / name, Path(options.out) / name)


def cpu_seconds() -> float:
    """User and system time of this process and of the children it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rows")
    parser.add_argument("--out", required=True)
    parser.add_argument("--method", choices=["gptq", "rtn"], default="gptq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.method == "gptq" and not options.rows:
        sys.exit("gptq needs --rows")
    return options


if __name__ == "__main__":
    main()
