"""What the parties of a vertical run learn of each other: label inference and feature inversion, with defences.

    python bench/leakage.py                        # two data sets, two methods, five defences, five seeds
    python bench/leakage.py --data digits --methods vfl-split --seeds 1

Every figure is of a run of fedquilt of which every message is kept as it is sent. Two parties follow the protocol and
are curious afterwards. The passive one, which knows no labels but those of four aligned rows of each class, infers the
labels of the other aligned rows: from the norms of its gradients, from cosines with those of the rows that it knows,
and with a classifier on its trained encoder. The active one, which knows the passive one's columns for a fifth of the
test rows, infers them for the other test rows from embeddings. It prints tables, each figure as the mean over seeds and
its standard deviation; it has no target.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from fedquilt.client.client import Client
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.types import Order, Reply
from fedquilt.core.vertical import ALIGNED, TEST, Vertical
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import build, run
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.record import Record, read_rounds
from fedquilt.vertical.party import embedded

DATA: dict[str, dict[str, Any]] = {
    "digits": {"source": "sklearn:digits", "parties": (["image_?_[0-3]"], ["image_?_[4-7]"]), "aligned": 400},
    "breast cancer": {"source": "sklearn:breast_cancer", "parties": (["mean *"], ["* error"]), "aligned": 200},
}
"""The columns of the passive and of the active party, and the aligned rows."""
METHODS = ("vfl-split", "proto-evfl")
KNOWN, AUXILIARY = 4, 0.2
"""The labels that the passive party knows, of each class, and the share of test rows whose columns the active knows."""
CLIP = 0.5


def noisy(gradients: float, embeddings: float) -> dict[str, float]:
    """Return the settings of a defence with noise."""
    return {"gradient_clip": CLIP, "gradient_noise": gradients, "embedding_noise": embeddings}


DEFENCES: dict[str, dict[str, float]] = {
    "none": {},
    f"clip {CLIP:g}": {"gradient_clip": CLIP},
    "noise 0.3, 0.05": noisy(0.3, 0.05),
    "noise 1, 0.2": noisy(1.0, 0.2),
    "noise 3, 0.5": noisy(3.0, 0.5),
}
"""The settings of [disclosure], by the noise of gradients and of embeddings; that of prototypes is as of embeddings."""


class Seen(NamedTuple):
    """What crossed in a run, and the end of it.

    Attributes
    ----------
    gradients : of every minibatch that the passive party was sent, the numbers of its aligned rows and (n, m).
    shown : the last embeddings of the test rows by the passive party, (rows, m).
    party, vertical : the passive party, and the federation.
    memory : what the passive party remembers at the end.
    accuracy : of the joint prediction.
    """

    gradients: list[tuple[list[int], torch.Tensor]]
    shown: torch.Tensor
    party: Client
    vertical: Vertical
    memory: Mapping[str, Any]
    accuracy: float


def settings(data: str, method: str, defence: Mapping[str, float], seed: int) -> Config:
    """Return the config of a run; the passive party is the first and knows no labels of its own rows."""
    chosen = DATA[data]
    passive, active = chosen["parties"]
    disclosure: dict[str, Any] = {**defence}
    if "embedding_noise" in defence and method == "proto-evfl":
        disclosure["prototype_noise"] = defence["embedding_noise"]
    if len(disclosure) > 1:
        disclosure["test_key"] = seed
    return parse(
        {
            "seed": seed,
            "rounds": 40,
            "threads": 1,
            "device": "cpu",
            "model": {"name": "mlp?layers=1&width=64", "task": "tabular-classification"},
            "data": {"source": chosen["source"]},
            "partition": {"scheme": "vertical", "aligned": chosen["aligned"], "test_fraction": 0.3},
            "adapter": {"kind": "full"},
            "training": {"steps": 4, "batch_size": 32, "learning_rate": 0.004},
            "evaluation": {"every": 1000, "last": 1},
            "method": {"name": method, "minibatches": 4},
            "disclosure": disclosure,
            "parties": [
                {"label": "passive", "columns": passive, "labelled": False},
                {"label": "active", "columns": active},
            ],
        }
    )


def alone(data: str, seed: int) -> float:
    """Return the accuracy of the active party alone, with its own columns and its own rows besides."""
    with tempfile.TemporaryDirectory(prefix="leakage-") as folder:
        path = run(settings(data, "vfl-local", {}, seed), Path(folder) / "run")
        return float(read_rounds(path)[-1]["evaluation"]["global"]["accuracy"])


def watched(config: Config) -> Seen:
    """Run the config and return what crossed."""
    moved: list[tuple[str, Order, Reply]] = []

    class Recording(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            for reply in super().send(exchange, orders):
                moved.append((exchange.name, orders[reply.client], reply))
                yield reply

    connect = EMBEDDED._replace(make=lambda made, key, memories, progress: Recording(made.clients, memories))
    with tempfile.TemporaryDirectory(prefix="leakage-") as folder:
        path = run(config, Path(folder) / "run", connect=connect)
        _, _, memories = Record.open(path).load_checkpoint()
        accuracy = read_rounds(path)[-1]["evaluation"]["global"]["accuracy"]
    experiment = build(config)
    vertical = experiment.federation.vertical
    assert vertical is not None
    gradients = []
    for name, order, _ in moved:
        if name == "follow":
            sent = order.params["embeddings"]
            rows = np.array(order.settings["rows"]).reshape(len(sent), -1).tolist()
            gradients += [*zip(rows, sent, strict=True)]
    (*_, last) = (reply.params["embeddings"] for name, _, reply in moved if name == "predict")
    return Seen(gradients, last, experiment.clients[0], vertical, memories[0], accuracy)


# The curious passive party ------------------------------------------------------------------------------------------


def known_rows(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the numbers of the aligned rows whose labels the passive party knows."""
    draws = np.random.default_rng(seed)
    return np.concatenate([draws.permutation(np.flatnonzero(labels == one))[:KNOWN] for one in np.unique(labels)])


def gradient_scores(seen: Seen, labels: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Return the areas under the curve (AUC) of scores of gradients: of one class against the rest, mean over classes.

    A row's norm score is its gradient's norm as a multiple of its minibatch's median, its cosine score for a class the
    mean cosine with the gradients of the known rows of the class in its minibatch; both are means over the run. Which
    way a norm points is not known, so the better of the two counts. The third score is the cosine of a row's mean
    gradient over the run with that of the known rows of the class, as noise cancels out in means.
    """
    classes = np.unique(labels)
    norms, times = np.zeros(len(labels)), np.zeros(len(labels))
    means = np.zeros((len(labels), seen.gradients[0][1].shape[1]))
    cosines, met = np.zeros((len(classes), len(labels))), np.zeros((len(classes), len(labels)))
    for rows, sent in seen.gradients:
        numbers, gradients = np.array(rows), sent.numpy().astype(float)
        lengths = np.linalg.norm(gradients, axis=1)
        units = gradients / np.maximum(lengths, 1e-12)[:, None]
        np.add.at(norms, numbers, lengths / max(float(np.median(lengths)), 1e-12))
        np.add.at(times, numbers, 1)
        np.add.at(means, numbers, gradients)
        for place, one in enumerate(classes):
            mine = units[np.isin(numbers, known[labels[known] == one])]
            if len(mine):
                np.add.at(cosines[place], numbers, (units @ mine.T).mean(1))
                np.add.at(met[place], numbers, 1)
    hidden = np.setdiff1d(np.arange(len(labels)), known)
    mean_norms = (norms / np.maximum(times, 1))[hidden]
    mean_cosines = (cosines / np.maximum(met, 1))[:, hidden]
    by_norm = [roc_auc_score(labels[hidden] == one, mean_norms) for one in classes]
    by_mean = [
        roc_auc_score(labels[hidden] == one, _along(means, known[labels[known] == one])[hidden]) for one in classes
    ]
    by_cosine = [roc_auc_score(labels[hidden] == one, mean_cosines[place]) for place, one in enumerate(classes)]
    return {"norm": mean(max(one, 1 - one) for one in by_norm), "cosine": mean(by_cosine), "mean": mean(by_mean)}


def _along(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each row with the known ones."""
    units = rows / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)[:, None]
    scores: np.ndarray = (units @ units[known].T).mean(1)
    return scores


def completed(seen: Seen, labels: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Return the accuracy of a classifier of the known rows for the other aligned rows, on three views of them.

    The views are the trained encoder's embeddings, the untrained one's, and the columns themselves. The most frequent
    class among the rows gives ``prior``.
    """
    hidden = np.setdiff1d(np.arange(len(labels)), known)
    rows: Any = seen.party.splits[ALIGNED]
    trained: Any = dict(seen.memory)
    views = {
        "trained": embedded(seen.party, trained, rows).numpy(),
        "untrained": embedded(seen.party, {**trained, "params": seen.party.initial}, rows).numpy(),
        "columns": columns_of(seen.party, ALIGNED),
    }
    found = {"prior": float(np.bincount(labels[hidden]).max() / len(hidden))}
    for name, view in views.items():
        scaled = StandardScaler().fit(view)
        head = LogisticRegression(max_iter=500).fit(scaled.transform(view[known]), labels[known])
        found[name] = float(head.score(scaled.transform(view[hidden]), labels[hidden]))
    return found


# The curious active party -------------------------------------------------------------------------------------------


def columns_of(party: Client, split: str) -> np.ndarray:
    """Return a party's columns of its rows as its encoder reads them, (rows, columns)."""
    rows = party.splits[split]
    return np.concatenate([rows[name].flatten(1).numpy() for name in sorted(rows) if name != "labels"], 1)


def inverted(seen: Seen, seed: int) -> dict[str, float]:
    """Return the R2 of decoders of the passive party's columns, the median over columns, of the other test rows.

    The decoders are kernel ridge regressions, linear or Gaussian, chosen by cross-validation. They read the embeddings,
    the active party's own columns, or both. The mean of the columns has 0.
    """
    active: Any = seen.vertical.active
    wanted, own = columns_of(seen.party, TEST), columns_of(active, TEST)
    wanted = np.clip(wanted[:, wanted.std(0) > 0], -5, 5)
    order = np.random.default_rng(seed).permutation(len(wanted))
    known, hidden = np.split(order, [round(AUXILIARY * len(order))])
    centre = wanted[known].mean(0)
    found = {}
    for name, view in {
        "embeddings": seen.shown.numpy(),
        "own": own,
        "both": np.concatenate([seen.shown.numpy(), own], 1),
    }.items():
        spread = view[known].std(0)  # what hardly varies in these rows must not be blown up
        scaled = np.clip((view - view[known].mean(0)) / np.maximum(spread, 0.1 * spread.max()), -5, 5)
        grid = {"alpha": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0], "kernel": ["linear", "rbf"]}
        decoder = GridSearchCV(KernelRidge(), grid, scoring="neg_mean_squared_error", cv=5)
        decoder.fit(scaled[known], wanted[known] - centre)
        told = decoder.predict(scaled[hidden])
        found[name] = float(np.median(r2_score(wanted[hidden] - centre, told, multioutput="raw_values")))
    return found


def measured(data: str, method: str, defence: str, seed: int) -> dict[str, float]:
    """Return all figures of one run."""
    seen = watched(settings(data, method, DEFENCES[defence], seed))
    labels = seen.vertical.labels.numpy()
    known = known_rows(labels, seed)
    return {
        "accuracy": seen.accuracy,
        **gradient_scores(seen, labels, known),
        **completed(seen, labels, known),
        **inverted(seen, seed),
    }


LABELS = {
    "accuracy": "accuracy of the federation",
    "norm": "norm, AUC",
    "cosine": "cosine, AUC",
    "mean": "of mean gradients, AUC",
    "trained": "classifier on the trained encoder",
    "untrained": "on the untrained one",
    "columns": "on the columns",
    "prior": "most frequent class",
}
COLUMNS = {"embeddings": "decoder of embeddings, R2", "own": "of the active party's columns", "both": "of both"}
PLAIN = ("norm", "cosine", "mean", *COLUMNS)
"""Figures that are no shares, and are not printed in per cent."""


def printed(title: str, heads: Mapping[str, str], rows: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print a table: a row for each defence, the mean and deviation over seeds."""
    print(f"\n{title}\n\n| defence | {' | '.join(heads.values())} |")
    print("|---" * (len(heads) + 1) + "|")
    for defence, runs in rows.items():
        print(
            f"| {defence} | {' | '.join(cell([one[key] for one in runs], key in PLAIN) for key in heads)} |", flush=True
        )


def cell(values: Sequence[float], plain: bool) -> str:
    """Return the mean and deviation of figures, in per cent unless ``plain``."""
    scale, digits = (1.0, 2) if plain else (100.0, 1)
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{scale * mean(values):.{digits}f} ± {scale * spread:.{digits}f}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[*DATA], choices=[*DATA])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--defences", nargs="+", default=[*DEFENCES], choices=[*DEFENCES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    words = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    for data in words.data:
        print(
            f"\n{data}: accuracy of the active party alone {cell([alone(data, seed) for seed in words.seeds], False)}"
        )
        for method in words.methods:
            rows = {
                defence: [measured(data, method, defence, seed) for seed in words.seeds] for defence in words.defences
            }
            printed(f"{data}, {method}: labels, by the passive party", LABELS, rows)
            printed(f"{data}, {method}: columns, by the active party", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
