"""Data files with something wrong in them: every one is read, or refused by one kind of error, quickly."""

from __future__ import annotations

import io
import json
import random
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from fedquilt.core.errors import DataError
from fedquilt.data.loaders import load_table
from fedquilt.data.readers.images import Pictures, of_one_size

LIMIT_SECONDS = 10
TEXTS = ["a fine film", "dull and long", "so so", "again !", "la\u2028la", ""]
ODD = [
    None,
    True,
    0,
    -1,
    2**70,
    1e308,
    float("nan"),
    "",
    "\ud800",
    "x" * 200_000,
    [],
    {},
    [[1]],
    {"bytes": "no"},
    "07",
    " ",
]


def rows_of(rng: random.Random) -> list[dict[str, object]]:
    made: list[dict[str, object]] = [
        {"text": rng.choice(TEXTS), "label": rng.choice(["a", "b"]), "user": rng.randrange(3)} for _ in range(12)
    ]
    for _ in range(rng.choice([0, 0, 1, 2])):
        row = rng.choice(made)
        row[rng.choice(["text", "label", "user", "is_train", "messages"])] = rng.choice(ODD)
    return made


def delimited(rng: random.Random, separator: str) -> bytes:
    cells = [[str(row.get(name, "")) for name in ("text", "label", "user")] for row in rows_of(rng)]
    lines = [separator.join(line) for line in [["text", "label", "user"], *cells]]
    if rng.random() < 0.2:
        lines[rng.randrange(len(lines))] += rng.choice([separator, '"', "\r", "\0", "\x0c", separator + '"open'])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def json_text(rng: random.Random, lines: bool) -> bytes:
    texts = [json.dumps(row) for row in rows_of(rng)]
    odd = [
        "[" * 20_000,
        '{"text": ' * 5_000,
        '{"text": ' + "9" * 5_000 + "}",
        "[1]",
        "NaN",
        '{"text": 1, "text": 2}',
        "{}",
    ]
    if rng.random() < 0.4:
        texts[rng.randrange(len(texts))] = rng.choice(odd)
    return ("\n".join(texts) if lines else f"[{','.join(texts)}]").encode()


def npz(rng: random.Random) -> bytes:
    file = io.BytesIO()
    shape, kind = rng.choice([(12, 8, 8), (12, 8, 8, 3)]), rng.choice(["u1", "u2", "f4", "i8", "?"])
    if rng.random() < 0.3:
        shape = rng.choice([(11, 8, 8), (12,), (12, 0, 8), (12, 8, 8, 5)])
    if rng.random() < 0.3:
        kind = rng.choice(["U5", "c8", "V0", "U0", "S3"])
    images = np.zeros(shape, kind)
    labels = np.arange(12) % 2
    if rng.random() < 0.2:
        images = np.array([{}] * 12, dtype=object)
    if kind[0] in "fui" and rng.random() < 0.5 and images.size:
        images.flat[0] = rng.choice([0, 1, 200])
    np.savez_compressed(file, images=images, labels=labels)
    if rng.random() < 0.2:
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            name, content = rng.choice([("bomb.npy", bytes(300_000_000)), ("note.txt", b"x"), ("more.npy", b"twice")])
            archive.writestr(name, content)
    return file.getvalue()


def picture(rng: random.Random) -> bytes:
    file = io.BytesIO()
    mode = rng.choice(["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "F", "I", "LA"])
    size = rng.choice([(8, 8), (8, 8), (3, 9), (5000, 4000) if rng.random() < 0.1 else (1, 1)])
    made = Image.new(mode, size)
    form = {"CMYK": "TIFF", "F": "TIFF", "I": "TIFF"}.get(mode) or rng.choice(["PNG", "TIFF"])
    if rng.random() < 0.1 and mode in ("L", "RGB"):
        made.save(file, "GIF", save_all=True, append_images=[Image.new(mode, size, 1)])
    else:
        made.save(file, form)
    return damaged(rng, file.getvalue()) if rng.random() < 0.1 else file.getvalue()


def parquet(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        labels = [rng.choice([0, 1]) for _ in range(8)]
        labels[0] = rng.choice([0, 0, 0, None])
        made = datasets.Dataset.from_dict({"text": [rng.choice(TEXTS) for _ in labels], "label": labels})
    else:
        odd = [{"bytes": b"", "path": None}, {"bytes": None, "path": "/dev/zero"}]
        images = [{"bytes": picture(rng), "path": None} for _ in range(4)]
        images += [rng.choice(odd)] if rng.random() < 0.3 else []
        names = datasets.ClassLabel(names=["a", "b"])
        features = datasets.Features({"image": datasets.Image(), "label": names})
        made = datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in range(len(images))]}, features)
    file = io.BytesIO()
    pyarrow.parquet.write_table(made.data.table, file)
    return file.getvalue()


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes with a few of them flipped, cut off, doubled, or filled with others."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(data)) if data else 0
        match rng.randrange(5):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[place:]
            case 2:
                data[place:place] = data[place : place + rng.randrange(1, 64)]
            case 3:
                data[place : place + 8] = rng.choice([b"\xff" * 8, bytes(8), b'"\n,\t', b"\xed\xa0\x80"])
            case _:
                del data[place : place + rng.randrange(1, 16)]
    return bytes(data)


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    ".csv": lambda rng: delimited(rng, rng.choice(",;\t|")),
    ".tsv": lambda rng: delimited(rng, "\t"),
    ".jsonl": lambda rng: json_text(rng, lines=True),
    ".json": lambda rng: json_text(rng, lines=False),
    ".npz": npz,
    ".parquet": parquet,
}
KEYS: list[dict[str, str]] = [
    {},
    {"group": "user"},
    {"prompt": "{text} {user}"},
    {"target": "label"},
    {"pair": "label"},
    {"format": "messages"},
]


def tried(path: Path, keys: dict[str, str]) -> str:
    """What became of reading a file: ``read``, ``refused``, or the last lines of what it must not end in."""
    try:
        table = load_table(str(path), **keys)  # type: ignore[arg-type]
        if isinstance(table.inputs, Pictures):
            of_one_size(table.inputs, (8, 8))
        return "read" if len(table) else "read without rows"
    except DataError as error:
        return "refused" if str(path) in str(error) else f"the file is not named: {error}"
    except BaseException:
        return traceback.format_exc(limit=-3)


def fuzzed(folder: Path, count: int, seed: int) -> tuple[Counter[str], float]:
    """How many of ``count`` files of each format were read and refused, and the longest time of one in seconds."""
    ends: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        suffix = list(MAKERS)[number % len(MAKERS)]
        content = MAKERS[suffix](rng)
        path = folder / f"file-{number}{suffix}"
        path.write_bytes(damaged(rng, content) if rng.random() < 0.4 else content)
        began = time.process_time()
        end = tried(path, rng.choice(KEYS))
        slowest = max(slowest, time.process_time() - began)
        assert end in ("read", "refused"), f"file {number} of seed {seed}, {suffix}:\n{end}"
        ends[f"{suffix} {end}"] += 1
        path.unlink()
    return ends, slowest


def told(ends: Counter[str], slowest: float) -> str:
    return f"{sum(ends.values())} files: {dict(sorted(ends.items()))}; the slowest took {slowest:.2f} s"


def test_a_few_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    ends, slowest = fuzzed(tmp_path, 90, seed=1)
    print(told(ends, slowest))
    assert slowest < LIMIT_SECONDS
    assert {f"{suffix} refused" for suffix in MAKERS} <= ends.keys()
    assert {".csv read", ".tsv read", ".jsonl read", ".npz read"} <= ends.keys()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_thousand_damaged_files_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    ends, slowest = fuzzed(tmp_path, 1000, seed)
    print(told(ends, slowest))
    assert slowest < LIMIT_SECONDS
    assert sum(ends.values()) == 1000


def test_a_zip_that_unpacks_to_more_than_data_do_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(300_000_000))
    with pytest.raises(DataError, match=r"a\.npz: 29\d,\d{3} bytes unpack to 300,000,000, .*decompression bomb"):
        load_table(str(tmp_path / "a.npz"))
