"""A stranger's path from a file of their own to an adapter in plain PEFT: what a person types, and nothing else.

Every command runs as a process of its own in an empty folder, with the program of the environment that runs this
script. It fails if a command fails, if its output does not lead on, if PEFT without fedquilt does not reach the
reported accuracy to the row, or if all of it takes ten minutes of processor time.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_SECONDS = 600
ROWS = 600
WORDS = {
    "cardiology": ("heart", "pulse", "valve", "rhythm"),
    "neurology": ("brain", "nerve", "seizure", "reflex"),
    "oncology": ("tumour", "biopsy", "marker", "lesion"),
}
COMMON = ("patient", "shows", "with", "stable", "history", "of", "mild", "review")

# what the card of the export shows, then the rows that the run held out; only transformers and PEFT are imported
PLAIN = """
import csv, json, os, re, sys
from pathlib import Path
import torch
from transformers import AutoTokenizer

run, table = Path(sys.argv[1]), [*csv.DictReader(open(sys.argv[2], encoding="utf-8"))]
os.chdir("adapter")
exec(re.search(r"```python\\n(.*?)```", Path("README.md").read_text("utf-8"), re.S)[1])
tokenizer = AutoTokenizer.from_pretrained("base")
rows = [row for row in table if row["department"]]
clients = json.loads((run / "partition.json").read_text("utf-8"))["clients"]
held_out = [row for client in clients for row in client["test"]]
model.eval()
right = 0
for at in held_out:
    given = tokenizer(rows[at]["note"], truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        chosen = model(**given).logits.argmax(-1).item()
    right += model.config.id2label[chosen] == rows[at]["department"]
assert "fedquilt" not in sys.modules
print(right, len(held_out))
"""


def write_table(path: Path) -> None:
    """Notes of three hospitals: every fortieth has no department, and the south has none of oncology."""
    drawn = random.Random(7)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "hospital", "note", "department"])
        for number in range(ROWS):
            hospital = ("north", "south", "east")[number % 3]
            department = drawn.choice([*WORDS][: 2 if hospital == "south" else 3])
            note = " ".join(drawn.choice(WORDS[department] if drawn.random() < 0.5 else COMMON) for _ in range(8))
            out.writerow([number, hospital, note, "" if number % 40 == 11 else department])


def typed(line: list[str], *expected: str, code: int = 0) -> str:
    """Run a command, show what it says, and check its exit code and some of its words; returns all of its words."""
    print(f"\n$ {' '.join(line)}", flush=True)
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="", flush=True)
    assert done.returncode == code, f"exit code {done.returncode}, not {code}"
    assert "Traceback" not in done.stdout, "a traceback is no message"
    for words in expected:
        assert words in done.stdout, f"not said: {words}"
    return done.stdout


def main() -> None:
    """Walk the path, and print the processor time that it took."""
    fedquilt = str(Path(sys.executable).parent / "fedquilt")
    write_table(Path("visits.csv"))
    wrong = typed([fedquilt, "init", "visits.csv", "--label", "departement"], "did you mean 'department'?", code=1)
    assert wrong.count("\n") == 1, "one mistake is one line"
    made = typed(
        [fedquilt, "init", "visits.csv"],
        "15 of 600 rows have no label",
        "site 'south' has no row of class 'oncology'",
    )
    check, compare = re.findall(r"^  (\S*fedquilt .*)$", made, re.M)  # it says what comes next, and that works
    typed(check.split(), "no problem found")
    compared = typed(compare.split(), "worst client", "std over clients", "one page in")
    report, export = re.findall(r"^  (\S*fedquilt .*)$", compared, re.M)
    assert set(typed(report.split()).splitlines()) <= set(compared.splitlines()), "the same numbers again"
    typed([*report.split(), "--html", "page.html"], "wrote page.html")
    assert Path("page.html").stat().st_size > 10_000
    typed(export.split(), "adapter")
    run = export.split()[2]
    (row,) = json.loads(typed([fedquilt, "report", "--json", run]))
    Path("plain.py").write_text(PLAIN, "utf-8")
    said = typed([sys.executable, "plain.py", str(Path(run).resolve()), str(Path("visits.csv").resolve())])
    right, rows = map(int, said.split()[-2:])
    assert abs(right / rows - row["final"]) < 1e-9, f"PEFT: {right} of {rows} right; reported: {row['final']:.4f}"
    assert right / rows > 0.75, "the model learns what can be learned"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"\n{right} of {rows} held-out rows right, as reported; {seconds:.0f} s of processor time")
    assert seconds < LIMIT_SECONDS, f"more than {LIMIT_SECONDS} s"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
