"""Data sets of these experiments, made from MNIST and from drawn letters.

FEDQUILT_DATA=/path/to/data python experiments/axes/data.py

``axes/mnist-{small,middle,large}.npz`` hold the training images of three classes that only this group has, and of the
class 9, which all groups have; the test images are those of all classes. ``axes/mirrored-letters.npz`` has the 23
letters that a mirror changes most, drawn by the recipe that the shipped vision models learned from, and mirrored:
models whose heads are given must learn to read them again.
"""

import os
from pathlib import Path

import numpy as np

from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.glyphs import glyph_table

OWN = {"small": (0, 1, 2), "middle": (3, 4, 5), "large": (6, 7, 8)}
FOR_ALL = 9
MIRRORED = tuple("BDEFGJKLNPQRadefghjkqry")
DRAWN, TESTED = 100_000, 0.1


def main() -> None:
    """Write the four files."""
    root = Path(os.environ["FEDQUILT_DATA"])
    folder = root / "axes"
    folder.mkdir(exist_ok=True)
    mnist = np.load(root / "mnist" / "mnist.npz")
    images, labels, is_train = mnist["images"], mnist["labels"], mnist["is_train"].astype(bool)
    for group, classes in OWN.items():
        kept = np.isin(labels, (*classes, FOR_ALL)) | ~is_train
        np.savez_compressed(
            folder / f"mnist-{group}.npz", images=images[kept], labels=labels[kept], is_train=is_train[kept]
        )
    drawn = glyph_table(DRAWN, Rng(0).child("experiments", "axes"))
    names = np.array([drawn.classes[label] for label in drawn.labels.tolist()])
    kept = np.isin(names, MIRRORED)
    letters = np.asarray(drawn.inputs)[kept][..., ::-1]
    trained_on = np.arange(len(letters)) >= TESTED * len(letters)
    np.savez_compressed(folder / "mirrored-letters.npz", images=letters, labels=names[kept], is_train=trained_on)


if __name__ == "__main__":
    main()
