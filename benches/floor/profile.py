"""Where the processor time of GPTQ goes, against what its arithmetic must take at the least.

    python profile.py MODEL.gguf ROWS.safetensors --lapidary BINARY [--bits 4] [--group-size 64]

Needs Linux's `perf`, which samples the running binary (its function names suffice, no debug
information) and torch, whose matrix products in float32 and bfloat16 give the machine's peak, in
processor seconds, so that other load does not count. BINARY compresses MODEL by GPTQ with the rows
(benches/compare/rows.py). Prints a table on stderr and JSON on stdout.

The floor counts what cannot be left out, multiply and add as two: the block's products for each
token, once up to the last layer's input for the statistics and once as quantized, the causal half
of attention in both, and the symmetric half of each Gram matrix.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FREQUENCY = 199
# First match counts. The product's inner loop is inlined into what divides it among threads.
PARTS = [
    ("factorization", r"faer|gemm_v0|inverse_factor"),
    ("grid search", r"kernels::grid|round_scale|FloatType::round"),
    ("column sweep", r"kernels::sweep|gptq::|tile::avx512::multiply_f32"),
    ("attention, without its products", r"attention"),
    ("SiLU, norm, rotary, residual", r"activation|norm|rope|Backend>::add"),
    ("Gram matrices, without their products", r"kernels::gram"),
    ("packing for products", r"tile::pack|spec_extend|spec_from_iter"),
    ("writing products out", r"matrix::write_row"),
    ("products", r"fold_with|tile::|FnMut"),
    ("clearing and moving memory", r"memset|memmove|memcpy|clear_page|page_fault|memcg"),
    ("hashing and writing", r"sha2|sha256"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--lapidary", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    options = parser.parse_args()

    operations = count_operations(options)
    peaks = {kind: peak(kind) for kind in ("float32", "bfloat16")}
    floor = {kind: operations / rate for kind, rate in peaks.items()}
    parts = profile(options)
    total = sum(parts.values())
    result = {
        "operations": operations, "peak_per_cpu_second": peaks, "floor_cpu_seconds": floor,
        "cpu_seconds": total, "parts": parts,
    }
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"{name:<40}{seconds:8.1f} s{100 * seconds / total:7.1f} %", file=sys.stderr)
    print(f"{'all':<40}{total:8.1f} s", file=sys.stderr)
    for kind, seconds in floor.items():
        name = f"floor: {operations / 1e12:.1f} TFLOP at {peaks[kind] / 1e9:.0f} G/s, {kind}"
        print(f"{name:<40}{seconds:8.1f} s{100 * seconds / total:7.1f} %", file=sys.stderr)
    print(json.dumps(result, indent=1))


def count_operations(options) -> float:
    """From the shapes that `lapidary plan` lists; layers of a block share inputs as Llama's do."""
    from safetensors import safe_open

    with safe_open(options.rows, "np") as file:
        rows, length = file.get_slice("input_ids").get_shape()
    plan = subprocess.run(
        [options.lapidary, "plan", options.model, "--json", *recipe(options)],
        check=True, stdout=subprocess.PIPE,
    )
    operations = 0
    for site in json.loads(plan.stdout)["sites"]:
        out, into = site["shape"]
        kind = site["name"].rsplit(".", 1)[1]
        passes = 1 if kind == "down_proj" else 2
        operations += passes * 2 * out * into
        # q, k and v share a Gram matrix, gate and up another.
        if kind in ("q_proj", "o_proj", "gate_proj", "down_proj"):
            operations += into * into
        if kind == "q_proj":
            # Scores and mixing, two passes, half of them behind the causal mask.
            operations += 2 * 2 * 2 * out * length / 2
    return float(operations) * rows * length


def peak(kind: str) -> float:
    """Operations in a processor second of torch's product of two square matrices."""
    import torch

    n, repeats = 2048, 8
    a, b = (torch.randn(n, n, dtype=getattr(torch, kind)) for _ in range(2))
    torch.mm(a, b)
    started = time.process_time()
    for _ in range(repeats):
        torch.mm(a, b)
    return repeats * 2 * n**3 / (time.process_time() - started)


def profile(options) -> dict[str, float]:
    """Processor seconds by part."""
    with tempfile.TemporaryDirectory() as scratch:
        data = f"{scratch}/perf.data"
        subprocess.run(
            ["perf", "record", "--event", "cpu-clock", "--freq", str(FREQUENCY), "--output", data,
             "--", options.lapidary, "compress", options.model, "--output", f"{scratch}/out",
             "--quiet", *recipe(options), "--calibration", options.rows],
            check=True, stdout=sys.stderr,
        )
        report = subprocess.run(
            ["perf", "report", "--input", data, "--stdio", "--no-children", "--show-nr-samples",
             "--fields", "sample,symbol"],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
    parts: dict[str, float] = {}
    for line in report.stdout.splitlines():
        if found := re.match(r"\s*(\d+)\s+\[(.)\] (.*)", line):
            samples, mode, symbol = found.groups()
            rest = "the system's kernel" if mode == "k" else "other"
            name = next((name for name, pattern in PARTS if re.search(pattern, symbol)), rest)
            parts[name] = parts.get(name, 0.0) + int(samples) / FREQUENCY
    return parts


def recipe(options) -> list[str]:
    return ["--recipe", f"W{options.bits}A16-gptq", "--group-size", str(options.group_size)]


if __name__ == "__main__":
    main()
