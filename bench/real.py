"""Real models and texts for benchmarks, where they are on this machine; made-up ones of the same shape otherwise.

``FEDQUILT_MODELS`` names the folder of models (MiniLM, 6 blocks of width 384), ``FEDQUILT_DATA`` that of data (SST-2).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LIKE_MINILM = "tiny:bert?layers=6&width=384"


def text_model() -> str:
    """The name of MiniLM, or of a BERT of its shape with random weights."""
    place = os.environ.get("FEDQUILT_MODELS")
    return MINILM if place and (Path(place) / MINILM).exists() else LIKE_MINILM


def text_rows(count: int) -> dict[str, list[str] | list[int]]:
    """The first sentences of SST-2 with their labels, or made-up ones whose lengths are spread as theirs are."""
    place = os.environ.get("FEDQUILT_DATA")
    if place and (path := Path(place) / "sst2" / "train.tsv").exists():
        rows = [line.rpartition("\t") for line in path.read_text(encoding="utf-8").splitlines()[:count]]
        return {"text": [text for text, _, _ in rows], "label": [int(label) for _, _, label in rows]}
    words, draw = ("the", "film", "plot", "was", "never", "dull", "and", "bright", "but", "slow"), random.Random(1)
    lengths = [min(16, max(1, round(draw.lognormvariate(1.4, 0.6)))) for _ in range(count)]
    return {"text": [" ".join(draw.choices(words, k=n)) for n in lengths], "label": [n % 2 for n in range(count)]}
