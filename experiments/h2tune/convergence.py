"""Plot docs/methods/h2tune-convergence.svg: loss over rounds on the convex toy problem of the tests, with 1/sqrt(T).

python experiments/h2tune/convergence.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "contract"))

from core_toy import SIZE, SLOTS, federated, toy  # noqa: E402

from fedquilt.bank.merge import drawn_bank  # noqa: E402
from fedquilt.core.rng import Rng  # noqa: E402

ROUNDS = 200
OUT = ROOT / "docs" / "methods" / "h2tune-convergence.svg"


def main() -> None:
    truth = drawn_bank(("query",), SLOTS, SIZE, Rng(5), 1.0)
    losses = np.array(federated([toy(number, truth) for number in range(3)], ROUNDS)[0])
    rounds = np.arange(1, ROUNDS + 1)
    late = slice(ROUNDS // 10, None)
    slope = np.polyfit(np.log(rounds[late]), np.log(losses[late]), 1)[0]
    print(f"loss {losses[0]:.4g} -> {losses[-1]:.4g}; from round {ROUNDS // 10} on it falls as T^{slope:.2f}")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fedquilt"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    axes.loglog(rounds, losses / losses[0], label="three unlike clients, one bank")
    axes.loglog(rounds, rounds**-0.5, linestyle="--", color="grey", label="1 / sqrt(T)")
    axes.set_xlabel("round T")
    axes.set_ylabel("summed loss / that of round 1")
    axes.legend(frameon=False)
    figure.savefig(OUT, metadata={"Date": None})


if __name__ == "__main__":
    main()
