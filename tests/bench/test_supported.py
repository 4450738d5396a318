"""The sweep over architectures: some of each kind at once, all of them when slow tests run."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

RIGHT = [
    ("sequence-classification", "bert"),
    ("sequence-classification", "roberta"),  # a head that is a module of modules
    ("sequence-classification", "distilbert"),  # a head of two modules
    ("sequence-classification", "deberta-v2"),
    ("sequence-classification", "electra"),
    ("image-classification", "deit"),
    ("image-classification", "clip"),  # a base that its class does not name, in a config of several parts
    ("causal-lm", "gpt2"),  # tied embeddings, matrices that lie across
    ("causal-lm", "mixtral"),  # experts that are no modules
]
REFUSED = [
    ("image-classification", "resnet", "no linear module inside its blocks"),
    ("image-classification", "imagegpt", "does not take these rows"),
    ("sequence-classification", "t5", "is an encoder-decoder"),
    ("sequence-classification", "albert", "has no list of equal blocks"),
    ("sequence-classification", "xlnet", "padding changes the logits of a xlnet model"),
    ("causal-lm", "electra", "attends to later tokens"),
]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield import_module("supported")
    for name in ("supported", "tiny_configs"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("task", "kind"), RIGHT)
def test_peft_reads_what_a_run_exports(bench, tmp_path, task, kind):
    answer = bench.tried(task, kind, tmp_path)
    assert answer.outcome == "right", answer.reason


@pytest.mark.parametrize(("task", "kind", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason_before_training(bench, tmp_path, task, kind, reason):
    answer = bench.tried(task, kind, tmp_path)
    assert answer.outcome == "refused"
    assert reason in answer.reason
    assert not (tmp_path / "run").exists()


def test_the_page_has_every_architecture_and_no_third_case(bench):
    page = bench.TABLE.read_text("utf-8")
    for task, kind in bench.architectures():
        rows = page.partition(f"\n## {task}")[2].partition("\n## ")[0].splitlines()
        own = [row for row in rows if row.startswith(f"| {kind} |")]
        assert len(own) == 1, f"{task} {kind} has {len(own)} rows; run python bench/supported.py"
        assert own[0].split(" | ")[1].startswith(("yes", "refused: ")), own[0]


@pytest.mark.slow
def test_the_page_is_what_the_sweep_makes(bench, tmp_path):
    assert bench.main(["--work", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text("utf-8") == bench.TABLE.read_text("utf-8")
