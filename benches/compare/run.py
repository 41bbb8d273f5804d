"""llm-compressor's GPTQ and ours on the same model, rows and settings, in one run.

    cargo xtask compare                  sets everything up and runs this script
    python run.py MODEL.gguf --lapidary BINARY --cache CACHE [--bits 4] [--group-size 64]
                  [--rows 128] [--length 512] [--windows 10] [--threads 2] [--keep-peer]

MODEL.gguf is the float model. Text comes from LAPIDARY_WIKITEXT, a folder with WikiText-2's
`wiki.test.raw` and `wiki.valid.tokens`; without it, from the texts of this repository. With
`--keep-peer` the peer's figures and folder of the last run with these settings are used again: its
CPU seconds still hold, its wall seconds are of another hour.

Both are measured from outside, as processes: user and system seconds, wall seconds, the kernel's
peak of resident memory. The peer's share without imports, loading and saving stands beside it; for
us there is no such share: our whole process counts. `lapidary eval` measures both folders' quality.
A table goes to stderr, the same as JSON to stdout.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main() -> None:
    options = parse()
    texts = find_texts()
    folder, rows = prepare(options, texts)
    settings = {
        "bits": options.bits, "group_size": options.group_size, "symmetric": True,
        "rows": options.rows, "length": options.length, "threads": options.threads,
        "windows": options.windows, "text": texts["name"],
    }
    peer = run_peer(options, folder, rows)
    ours = run_ours(options, rows)
    for figures in (peer, ours):
        quality = evaluate(options, figures.pop("folder"), texts["evaluation"])
        figures |= {key: quality[key] for key in ("perplexity", "kl_divergence", "top1_agreement")}
        settings["float_perplexity"] = quality["reference_perplexity"]
    ratios = {key: ours[key] / peer[key] for key in ours if key in peer}
    print_table(settings, peer, ours, ratios)
    print(json.dumps({"settings": settings, "peer": peer, "ours": ours, "ratio": ratios}, indent=1))


def find_texts() -> dict:
    if folder := os.environ.get("LAPIDARY_WIKITEXT"):
        return {"name": "WikiText-2", "evaluation": Path(folder) / "wiki.test.raw",
                "calibration": Path(folder) / "wiki.valid.tokens"}
    return {"name": "of this repository", "evaluation": ROOT / "assets/demo/evaluation.txt",
            "calibration": ROOT / "assets/calibration/mixed.txt"}


def prepare(options, texts: dict) -> tuple[Path, Path]:
    """The model as a folder, which the peer reads, and the calibration rows, which both read."""
    options.cache.mkdir(parents=True, exist_ok=True)
    folder = options.cache / f"{options.model.stem.removesuffix('-f16')}-f32"
    if not folder.exists():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        python("float_folder.py", options.model, partial)
        partial.rename(folder)
    name = f"rows-{options.rows}x{options.length}"
    name += "" if texts["name"] == "WikiText-2" else "-own"
    rows = options.cache / f"{name}.safetensors"
    if not rows.exists():
        python("rows.py", folder, texts["calibration"], rows,
               "--rows", options.rows, "--length", options.length)
    return folder, rows


def python(script: str, *arguments) -> None:
    command = [sys.executable, HERE / script, *arguments]
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def run_peer(options, folder: Path, rows: Path) -> dict:
    out = options.cache / f"gptq-w{options.bits}-g{options.group_size}-{rows.stem}"
    record = out.with_suffix(".json")
    if not (options.keep_peer and record.exists() and out.exists()):
        shutil.rmtree(out, ignore_errors=True)
        measured, report = measure([
            sys.executable, HERE / "peer_gptq.py", folder, "--rows", rows, "--out", out,
            "--bits", options.bits, "--group-size", options.group_size,
            "--threads", options.threads,
        ])
        figures = measured | {"compression_cpu_seconds": json.loads(report)["cpu_seconds"]}
        record.write_text(json.dumps(figures, indent=1) + "\n")
    return json.loads(record.read_text()) | {"folder": out}


def run_ours(options, rows: Path) -> dict:
    out = options.cache / f"ours-w{options.bits}-g{options.group_size}-{rows.stem}"
    # Run again, it would find its work done.
    shutil.rmtree(out, ignore_errors=True)
    figures, _ = measure([
        options.lapidary, "compress", options.model, "--output", out, "--json", "--quiet",
        "--recipe", f"W{options.bits}A16-gptq", "--group-size", options.group_size, "--symmetric",
        "--calibration", rows, "--samples", options.rows, "--seq-len", options.length,
        "--threads", options.threads,
    ])
    # The whole process counts as compression: there are no imports to leave out.
    return figures | {"compression_cpu_seconds": figures["cpu_seconds"], "folder": out}


def measure(command: list) -> tuple[dict, str]:
    """Runs a command; what it took, and its standard output."""
    command = [str(part) for part in command]
    print("running", " ".join(command), file=sys.stderr, flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    # Popen has not seen the end that wait4 took.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    figures = {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "wall_seconds": round(wall, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }
    print("took", figures, file=sys.stderr, flush=True)
    return figures, output


def evaluate(options, folder: Path, text: Path) -> dict:
    command = [options.lapidary, "eval", folder, "--reference", options.model, "--text", text,
               "--windows", options.windows, "--json", "--quiet"]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def print_table(settings: dict, peer: dict, ours: dict, ratios: dict) -> None:
    def out(*columns: str) -> None:
        print(f"{columns[0]:<28}" + "".join(f"{c:>16}" for c in columns[1:]), file=sys.stderr)

    print(", ".join(f"{key} {value}" for key, value in settings.items()), file=sys.stderr)
    out("", "llm-compressor", "lapidary", "ratio")
    for key, ratio in ratios.items():
        unit = 1e6 if key.endswith("_bytes") else 1
        name = key.replace("_bytes", ", MB").replace("_", " ")
        out(name, f"{peer[key] / unit:.4g}", f"{ours[key] / unit:.4g}", f"{ratio:.3f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--lapidary", type=Path, required=True, help="the binary, optimised")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--keep-peer", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
