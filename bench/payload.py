"""A large adapter over Flower: real processes on loopback, TLS and node authentication.

    python bench/payload.py                       # 100 MB of adapter, two nodes
    python bench/payload.py --megabytes 500 --no-database

It prints the seconds of a round against the same round in one process, the bytes that were sent, and the peak resident
memory of each kind of process.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import threading
import time
from pathlib import Path

from fedquilt.config.load import load
from fedquilt.engine.flower.local_config import CONNECTION
from fedquilt.engine.flower.local_federation import Trial
from fedquilt.engine.flower.processes import marked
from fedquilt.experiment.flower_app import deploy
from fedquilt.experiment.run import run
from fedquilt.record import read_rounds

WIDTH, LAYERS = 512, 4
BYTES_OF_A_RANK = 4 * 2 * 2 * WIDTH * LAYERS  # float32, query and value, A and B
RUN = """\
name = "payload"
threads = 1
rounds = {rounds}
quorum = 1.0
model = {{ name = "tiny:vit?layers={layers}&width={width}&heads=4&image=8&patch=4", task = "image-classification" }}
data = {{ source = "sklearn:digits", limit = 200 }}
partition = {{ num_clients = {nodes} }}
clients = {{ budgets = [{layers}], shares = "1" }}
adapter = {{ rank = {rank}, alpha = 4 }}
training = {{ steps = 1, batch_size = 2 }}
evaluation = {{ every = 100, last = 1, clients = false }}
network = {{ timeout = 1200, wait = 600, dtype = "{dtype}" }}
method = {{ name = "full" }}
"""


class Watched:
    """The largest resident memory of every kind of process of a trial, looked at while it goes on."""

    def __init__(self, trial: Trial) -> None:
        self.peak: dict[str, int] = {}
        self._mark, self._over = str(trial.folder), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for process in marked(self._mark):
                try:
                    words = Path(f"/proc/{process}/cmdline").read_bytes().decode().replace("\0", " ")
                    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0])
                except (OSError, IndexError):
                    continue  # it has just ended
                kinds = ("flwr-serverapp", "flwr-clientapp", "flower-supernode", "flower-superlink")
                kind = next((kind for kind in kinds if f"/{kind} " in words), "others")
                self.peak[kind] = max(self.peak.get(kind, 0), peak * 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the adapter, each way")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="[network] dtype")
    parser.add_argument("--no-database", action="store_true", help="the SuperLink keeps its state in memory")
    words = parser.parse_args()
    rank = round(words.megabytes * 1e6 / BYTES_OF_A_RANK)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file = folder / "payload.toml"
        more = {"rounds": words.rounds, "nodes": words.nodes, "dtype": words.dtype}
        file.write_text(RUN.format(rank=rank, layers=LAYERS, width=WIDTH, **more))
        config = load(file)[0]
        with Trial(folder / "trial", words.nodes, database=not words.no_database) as trial, Watched(trial) as watched:
            trial.ready()
            os.environ["FLWR_HOME"] = str(trial.home)
            began = time.perf_counter()
            deploy(config, folder / "runs" / "payload", CONNECTION, print)
            whole = time.perf_counter() - began
        alone = run(config, folder / "alone")
        far, near = (read_rounds(place) for place in (folder / "runs" / "payload", alone))
    sent = far[-1]["exchanges"][0]["clients"]["0"]
    print(
        f"{sent['bytes_down'] / 1e6:.0f} MB down and {sent['bytes_up'] / 1e6:.0f} MB up for each of {words.nodes} nodes"
    )
    print(f"database {'off' if words.no_database else 'on'}; the whole run took {whole:.0f} s")
    for line, other in zip(far, near, strict=True):
        print(f"round {line['round'] + 1}: {line['seconds']:.1f} s; in one process {other['seconds']:.1f} s")
    print("peak memory:", ", ".join(f"{kind} {peak / 1e9:.2f} GB" for kind, peak in sorted(watched.peak.items())))


if __name__ == "__main__":
    main()
