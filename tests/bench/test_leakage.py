"""The attacks of the benchmark find what is there to be found, and nothing in noise."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedquilt.core.rng import Rng
from fedquilt.core.vertical import TEST

FILE = Path(__file__).parents[2] / "bench" / "leakage.py"


@pytest.fixture
def bench():
    spec = spec_from_file_location("bench_leakage", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gradients_that_show_classes_are_read_and_noise_is_not(bench):
    labels, draws = np.arange(90) % 3, Rng(1).numpy()
    known = bench.known_rows(labels, 1)
    assert np.bincount(labels[known]).tolist() == [bench.KNOWN] * 3
    directions = torch.eye(3)[torch.tensor(labels)] * torch.tensor(labels + 1.0).unsqueeze(1)
    rows = [draws.permutation(90)[:30].tolist() for _ in range(40)]
    shown = SimpleNamespace(gradients=[(own, directions[own]) for own in rows])
    found = bench.gradient_scores(shown, labels, known)
    assert found["cosine"] == found["mean"] == 1.0
    assert found["norm"] > 0.8  # the middle class has the middle norm
    noise = SimpleNamespace(gradients=[(own, torch.tensor(draws.normal(size=(30, 3)))) for own in rows])
    found = bench.gradient_scores(noise, labels, known)
    assert all(0.3 < one < 0.7 for one in found.values())


def test_columns_are_decoded_from_what_holds_them(bench):
    draws = Rng(2).numpy()
    columns, own = (draws.normal(size=(200, 4)).astype(np.float32) for _ in range(2))
    passive, active = (
        SimpleNamespace(splits={TEST: {"features": torch.tensor(rows), "labels": torch.zeros(200)}})
        for rows in (columns, own)
    )
    shown = torch.tensor(columns @ draws.normal(size=(4, 8)).astype(np.float32))
    seen = SimpleNamespace(shown=shown, party=passive, vertical=SimpleNamespace(active=active))
    found = bench.inverted(seen, 1)
    assert found["embeddings"] > 0.95
    assert found["both"] > 0.9
    assert found["own"] < 0.1


def test_every_defence_is_a_run_file_of_both_methods(bench):
    for method in bench.METHODS:
        for defence in bench.DEFENCES.values():
            made = bench.settings("digits", method, defence, 1)
            assert made.disclosure.is_on == bool(defence)
            assert bool(made.disclosure.prototype_noise) == (method == "proto-evfl" and "embedding_noise" in defence)
    assert bench.cell([0.5, 0.7], plain=False) == "60.0 ± 14.1"
