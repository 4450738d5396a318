"""A site's account of its answers: counted once each, over all runs, bounded, and what they say about a row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedquilt.core.errors import RunError
from fedquilt.privacy.account import gaussian_epsilon
from fedquilt.privacy.answers import Answers, Noise, all_answers, answers_folder

NOISE, ANSWER = Noise(0.5, 1e-5), {"embeddings": torch.ones(2, 3)}


def test_the_same_answer_counts_once_and_a_row_among_others_again(tmp_path: Path) -> None:
    folder = answers_folder(tmp_path, 1)
    assert all_answers(tmp_path) == {}
    Answers(folder).count("aaaa0000", ["r1", "r2", ""], NOISE, ANSWER)
    Answers(folder).count("aaaa0000", ["r1", "r2", ""], NOISE, ANSWER)
    Answers(folder).count("aaaa0000", ["r2", "r1", ""], NOISE, ANSWER)  # in another order it gets other noise
    Answers(folder).count("aaaa0000", ["r2"], NOISE, ANSWER)
    Answers(folder).count("bbbb0000", ["r2", "r1", ""], NOISE, ANSWER)
    found = Answers(folder).summary()
    epsilon = gaussian_epsilon(0.5, 4, 1e-5)
    assert found.pop("epsilon_of_a_row") == pytest.approx(epsilon)
    assert found == {"answers": 4, "runs": 2, "rows": 2, "answers_about_a_row": 4, "delta": 1e-5}
    assert [*all_answers(tmp_path)] == ["client-001"]


def test_without_noise_there_is_no_epsilon(tmp_path: Path) -> None:
    Answers(tmp_path).count("aaaa0000", ["r1"], NOISE, ANSWER)
    Answers(tmp_path).count("bbbb0000", ["r1"], Noise(0.0, 1e-6), ANSWER)
    assert Answers(tmp_path).summary()["epsilon_of_a_row"] is None
    assert Answers(tmp_path / "none").summary()["epsilon_of_a_row"] == 0


def test_no_more_than_the_site_allows(tmp_path: Path) -> None:
    own = Answers(tmp_path, most=1)
    own.count("aaaa0000", ["r1"], NOISE, ANSWER)
    own.count("aaaa0000", ["r1"], NOISE, ANSWER)
    with pytest.raises(RunError, match="has answered 1 queries, and max_queries=1 in its node's config allows no more"):
        own.count("aaaa0000", ["r2"], NOISE, ANSWER)
    assert own.summary()["answers"] == 1
    with pytest.raises(RunError, match="max_queries=0"):
        Answers(tmp_path / "none", most=0).count("aaaa0000", [], NOISE, ANSWER)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"\xff{}", b'{"format": 2}', b'{"format": 1, "answers": [], "runs": {"a": {"multiplier": -1}}}'],
)
def test_a_damaged_account_answers_nothing(tmp_path: Path, content: bytes) -> None:
    Answers(tmp_path).count("aaaa0000", ["r1"], NOISE, ANSWER)
    assert json.loads((tmp_path / "answers.json").read_text())["format"] == 1
    (tmp_path / "answers.json").write_bytes(content)
    with pytest.raises(RunError, match=r"damaged .* so no query is answered"):
        Answers(tmp_path).count("aaaa0000", ["r1"], NOISE, ANSWER)


def test_an_answer_of_another_model_about_the_same_rows_is_a_further_one(tmp_path: Path) -> None:
    own = Answers(tmp_path, most=2)
    for value in (1.0, 2.0, 1.0):
        own.count("aaaa0000", ["r1"], NOISE, {"embeddings": torch.full((1, 3), value)})
    assert own.summary()["answers_about_a_row"] == 2
    with pytest.raises(RunError, match="max_queries=2"):
        own.count("aaaa0000", ["r1"], NOISE, {"embeddings": torch.zeros(1, 3)})
