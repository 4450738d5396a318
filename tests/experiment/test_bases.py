"""What a run file says of its frozen bases, and what is refused before a model is loaded."""

import pytest
import torch

from fedquilt.config.groups import parts
from fedquilt.config.load import load
from fedquilt.experiment.bases import base_dtype, has_bfloat16, odd_bases
from fedquilt.experiment.check import check
from fedquilt.experiment.plan import plan

FILE = {
    "model": {"name": "tiny:llama?layers=2&width=16", "task": "causal-lm"},
    "data": {"source": "arithmetic:blank?train=60&test=6"},
    "clients": {"budgets": [2], "shares": "1"},
    "training": {"batch_size": 4},
    "method": {"name": "fedit"},
}
TUNED = ["adapter.kind=full", "method.name=full"]


def config(*overrides):
    return load(FILE, overrides)[0]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model.dtype=bfloat16", *TUNED], "model.dtype = 'bfloat16': adapter.kind = 'full' trains the base's own"),
        (["model.dtype=float16"], "model.dtype = 'float16': small gradients would vanish in it without loss scaling"),
        (["model.dtype=float32", *TUNED], ""),
        (["model.dtype=bfloat16", "training.precision=bf16"], ""),
    ],
)
def test_a_type_that_does_not_suit_what_is_trained_is_refused(overrides, text):
    found = odd_bases(parts(config(*overrides)))
    assert [problem.startswith(text) for problem in found] == [True] * bool(text)
    assert all(problem in check(config(*overrides)) for problem in found)


def test_the_group_that_says_so_is_named():
    group = {"label": "a", "budget": 2}
    model = {**FILE["model"], "dtype": "float16"}
    tables = {**FILE, "clients": {}, "groups": [group, {"label": "b", "budget": 1, "model": model}]}
    (problem,) = odd_bases(parts(load(tables)[0]))
    assert problem.startswith("groups[1].model.dtype = 'float16'")


@pytest.mark.parametrize(
    ("device", "here", "hardware", "expected"),
    [
        ("cpu", True, True, False),
        ("mps", True, True, False),
        ("auto", False, False, False),
        ("cuda", False, False, True),
        ("cuda:1", True, True, True),
        ("auto", True, True, True),
        ("auto", True, False, False),
    ],
)
def test_auto_is_float32_but_on_gpus_with_bfloat16(monkeypatch, device, here, hardware, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware)
    assert has_bfloat16(device) == expected
    assert base_dtype(config(f"device={device}")) == (None if expected else torch.float32)
    assert base_dtype(config(f"device={device}", *TUNED)) == torch.float32
    assert base_dtype(config(f"device={device}", "model.dtype=bfloat16")) == torch.bfloat16


def test_a_plan_counts_weights_in_their_type():
    (whole, *_), (short, *_) = plan(config()), plan(config("model.dtype=bfloat16"))
    adapters = whole.trained_parameters * 4
    assert short.weight_bytes - adapters == (whole.weight_bytes - adapters) // 2
    assert (short.bytes_up, short.gradient_bytes) == (whole.bytes_up, whole.gradient_bytes)
