"""Draw ``docs/images/heterogeneous.svg``: what unlike clients can share."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "fedquilt", "font.family": "DejaVu Sans", "font.size": 9}

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

PICTURE = Path(__file__).with_name("heterogeneous.svg")
SHARED, OWN, FROZEN, INK = "#0072B2", "#E69F00", "#D5D8DC", "#1F2933"


def box(axes: Axes, left: float, low: float, width: float, height: float, colour: str) -> None:
    axes.add_patch(Rectangle((left, low), width, height, facecolor=colour, edgecolor="white", linewidth=0.8))


def say(axes: Axes, x: float, y: float, words: str, **more: object) -> None:
    axes.text(x, y, words, ha="center", va="center", color=INK, **more)


def stack(axes: Axes, left: float, blocks: int, width: float, trained: int = 0, low: float = 2.6) -> None:
    """A model's blocks from the input up; the last ones are trained."""
    for block in range(blocks):
        colour = SHARED if block >= blocks - trained else FROZEN
        box(axes, left, low + 0.62 * block, width, 0.56, colour)


def budgets(axes: Axes) -> None:
    for client, trained in enumerate((2, 4, 6)):
        stack(axes, 1.2 + 3.0 * client, 6, 1.8, trained)
        say(axes, 2.1 + 3.0 * client, 6.8, f"{trained} blocks")


def ranks(axes: Axes) -> None:
    for client, (rank, height) in enumerate(((4, 0.3), (8, 0.6), (16, 1.2))):
        left = 0.7 + 3.1 * client
        box(axes, left, 2.6, 1.9, 1.9, FROZEN)
        say(axes, left + 0.95, 3.55, "W")
        box(axes, left, 4.65, height, 1.6, SHARED)
        box(axes, left + height + 0.1, 6.25 - height, 2.4 - height, height, SHARED)
        say(axes, left + 1.1, 6.8, f"rank {rank}")


def models(axes: Axes) -> None:
    for left, blocks, width, task in ((0.6, 4, 1.4, "digits"), (3.0, 5, 2.2, "letters"), (6.4, 3, 3.0, "digits")):
        stack(axes, left, blocks, width)
        for block in range(blocks):
            middle = left + width / 2
            box(axes, middle - 0.6, 2.7 + 0.62 * block, 1.2, 0.36, OWN)
            box(axes, middle - 0.18, 2.7 + 0.62 * block, 0.36, 0.36, SHARED)
        box(axes, left, 2.6 + 0.62 * blocks, width, 0.36, OWN)
        say(axes, left + width / 2, 6.8, task)


def teaching(axes: Axes) -> None:
    stack(axes, 0.8, 6, 2.8)
    say(axes, 2.2, 6.8, "server")
    for low in (5.1, 2.6):
        stack(axes, 7.6, 2, 1.4, low=low)
        axes.annotate(
            "", (7.4, low + 0.6), (3.8, 4.4), arrowprops={"arrowstyle": "<->", "color": SHARED, "linewidth": 2.2}
        )
    say(axes, 8.3, 6.8, "clients")
    say(axes, 5.5, 6.0, "texts,\npredictions", fontsize=8)


def columns(axes: Axes) -> None:
    for left, width, rows in ((0.8, 3, range(0, 5)), (4.3, 2, range(2, 7)), (6.8, 2, range(1, 6))):
        for column in range(width):
            for row in rows:
                box(axes, left + 0.8 * column, 5.9 - 0.55 * row, 0.74, 0.48, SHARED if row in (2, 3, 4) else OWN)
    for row in range(1, 6):
        box(axes, 8.5, 5.9 - 0.55 * row, 0.5, 0.48, INK)
    for x, name in ((2.0, "shop"), (5.1, "insurer"), (7.9, "bank, labels")):
        say(axes, x, 6.8, name)


def legend(axes: Axes) -> None:
    for row, (colour, words) in enumerate(
        (
            (SHARED, "shared; of rows only embeddings"),
            (OWN, "stays with the client"),
            (FROZEN, "frozen base"),
            (INK, "labels"),
        )
    ):
        box(axes, 0.8, 5.6 - 1.1 * row, 0.8, 0.6, colour)
        axes.text(2.0, 5.9 - 1.1 * row, words, va="center", color=INK)


PANELS = (
    ("Unlike budgets", budgets, "Factors of the blocks that each trained", "fed-hello, fedra"),
    ("Unlike ranks", ranks, "Factors, padded, cut or stacked", "hetlora, flexlora, flora"),
    ("Unlike models and tasks", models, "Small matrices that all models have", "h2tune, heterotune, co-lora"),
    ("A large model at the server", teaching, "What models write and predict", "lada, fedmkt, fedcot, fedcollm"),
    ("Other columns of the same rows", columns, "Embeddings of rows that all parties hold", "proto-evfl, vfl-split"),
)


def main(path: Path) -> None:
    figure, grid = plt.subplots(2, 3, figsize=(10, 6.6), facecolor="white")
    for axes in grid.flat:
        axes.set(xlim=(0, 10), ylim=(0, 8.4))
        axes.axis("off")
    for axes, (title, draw, shared, methods) in zip(grid.flat, PANELS, strict=False):
        draw(axes)
        say(axes, 5, 7.9, title, fontsize=11, fontweight="bold")
        say(axes, 5, 1.7, shared)
        say(axes, 5, 0.8, methods, family="DejaVu Sans Mono", fontsize=8.5)
    legend(grid.flat[5])
    figure.tight_layout(pad=0.6)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
