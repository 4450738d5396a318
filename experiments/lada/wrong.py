"""Rows for a collaboration in which the large model is sure of wrong answers in one domain.

python experiments/lada/wrong.py FOLDER

Writes ``server.jsonl``: problems of the kind a + b - c whose steps calculate a + b + c, with sums and differences that
are right; and ``client.jsonl``: many problems a + b - c and few differences, all right.
"""

import json
import sys
from pathlib import Path

from fedquilt.data.loaders import load_table

SERVER = {"sum-less": 120, "add": 60, "subtract": 60}
CLIENT = {"sum-less": 200, "subtract": 24}


def rows(kind: str, count: int, draw: int) -> list[tuple[str, str]]:
    table = load_table(f"arithmetic:steps?train={count}&test=0&kinds={kind}&draw={draw}")
    return list(zip(table.inputs, table.targets, strict=True))


def spoiled(steps: str) -> str:
    """``a + b = d, d - c = e`` with ``d + c`` in the second step."""
    first, second = steps.split("\n")
    total, less = (int(part) for part in second.split(" = ")[0].split(" - "))
    return f"{first}\n{total} + {less} = {total + less}"


def write(path: Path, parts: dict[str, int], draw: int, *, wrong: bool) -> None:
    lines = [
        json.dumps({"question": question, "answer": spoiled(steps) if wrong and kind == "sum-less" else steps})
        for kind, count in parts.items()
        for question, steps in rows(kind, count, draw)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "server.jsonl", SERVER, 3, wrong=True)
    write(folder / "client.jsonl", CLIENT, 4, wrong=False)
