"""Fails unless this Python has exactly the versions that a requirements file pins.

    python installed.py REQUIREMENTS

A local part of a version, such as torch's `+cpu`, does not count. Prints what is missing or other.
"""
import sys
from importlib import metadata
from pathlib import Path


def main(requirements: Path) -> None:
    wrong = [found for name, version in pins(requirements) if (found := check(name, version))]
    sys.exit("\n".join(wrong) or 0)


def pins(requirements: Path):
    """Pairs (package, version), those of files included with `-r` among them."""
    for line in requirements.read_text().splitlines():
        if line.startswith("-r "):
            yield from pins(requirements.parent / line.removeprefix("-r ").strip())
        elif "==" in line:
            name, version = line.split("==")
            yield name.split("[")[0].strip(), version.strip()


def check(name: str, version: str) -> str | None:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    return None if found.split("+")[0] == version else f"{name} is {found}, not {version}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: installed.py REQUIREMENTS")
    main(Path(sys.argv[1]))
