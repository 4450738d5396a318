"""A server's model, questions and rows as Python objects."""

from typing import Any

import pytest
import torch

import fedquilt
from fedquilt.core.errors import RunError

PLAIN: dict[str, Any] = {
    **{"rounds": 1, "threads": 1, "device": "cpu", "evaluation": {"limit": 2}},
    "model": {"name": "tiny:llama?layers=1&width=16", "task": "causal-lm", "max_length": 32},
    **{
        "data": "arithmetic:blank?train=12&test=2",
        "partition": {"num_clients": 2},
        "clients": {"shares": "1", "budgets": [1]},
    },
    **{"adapter": {"rank": 2}, "training": {"steps": 1, "batch_size": 2}},
    "method": {"name": "lada", "candidates": 3, "path_tokens": 3, "path_bytes": 12, "filter": "all"},
}
MODEL = {"name": "tiny:llama?layers=2&width=16", "task": "causal-lm", "max_length": 32}
QUESTIONS = {"text": [f"{one} + 1 = " for one in range(8)], "answer": [str(one + 1) for one in range(8)]}
ROWS = {"text": [f"{one} + 2 = " for one in range(6)], "answer": [str(one + 2) for one in range(6)]}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_questions_and_rows_of_a_server_may_be_in_memory() -> None:
    own = {
        "model": MODEL,
        "data": {"source": QUESTIONS, "target": "answer", "answers": "number", "new_tokens": 3},
        "private": {"source": ROWS, "target": "answer", "test": ROWS},
    }
    assert fedquilt.check(PLAIN, server=own) == []
    run = fedquilt.run(PLAIN, server=own)
    assert run.rounds[-1]["evaluation"]["server"]["examples"] == 2
    server = run.config.server
    assert server is not None
    assert server.private is not None
    assert server.data.source.startswith("in-memory:rows-")
    assert server.private.source == server.private.test != server.data.source
    model = run.model(server=True)
    assert model(torch.arange(4, 8).view(1, -1)).logits.isfinite().all()
    assert (run.adapter(server=True) / "adapter_config.json").is_file()
    with pytest.raises(RunError, match="began with objects in memory: data 'in-memory:rows-"):
        fedquilt.open_run(run.folder, data=ROWS).resume(back_to=0)
    assert fedquilt.open_run(run.folder, data=[QUESTIONS, ROWS]).resume().finished


def test_words_in_place_of_a_servers_sections_are_their_main_keys() -> None:
    own = {"model": MODEL, "data": "arithmetic:blank?train=8&test=2", "private": "arithmetic:blank?train=8&test=2"}
    assert fedquilt.check(PLAIN, server=own) == []
