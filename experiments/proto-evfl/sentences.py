"""Cut sentences for two parties: python experiments/proto-evfl/sentences.py SOURCE OUT.

SOURCE is a folder with ``train.tsv`` and ``test.tsv`` of SST-2 (sentence, tab, 0 or 1). Written are
``sentences-train.csv`` and ``sentences-test.csv``: the first half of each sentence as a text, and for the second half
how often it has each of the 200 words that are most frequent in second halves of training sentences.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

WORDS = 200


def halves(file: Path) -> list[tuple[list[str], list[str], str]]:
    """The words of both halves of each sentence, and its label."""
    rows = (line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines())
    split = ((sentence.split(), label) for sentence, label in rows)
    return [(words[: (len(words) + 1) // 2], words[(len(words) + 1) // 2 :], label) for words, label in split]


def main(source: Path, out: Path) -> None:
    """Write both tables."""
    out.mkdir(parents=True, exist_ok=True)
    counted = Counter(word for _, second, _ in halves(source / "train.tsv") for word in second)
    frequent = sorted(counted, key=lambda word: (-counted[word], word))[:WORDS]
    for part in ("train", "test"):
        with (out / f"sentences-{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["first", *(f"word_{number}" for number in range(len(frequent))), "label"])
            for first, second, label in halves(source / f"{part}.tsv"):
                writer.writerow([" ".join(first), *map(second.count, frequent), label])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
