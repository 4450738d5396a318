"""What a model card says of a run: scores of the final model, and what left the clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedquilt.report.model_card import model_card
from fedquilt.report.runs import Run

FINAL = {
    "global": None,
    "groups": {"small": {"accuracy": 0.5, "examples": 10.0}, "large": None},
    "server": {"accuracy": 0.75, "examples": 4.0},
    "clients": {"0": {"accuracy": 0.25, "examples": 8.0}, "1": {"accuracy": None, "examples": 8.0}},
}


def card(config=(), partition=(), final=FINAL):
    config = {"seed": 1, "rounds": 1, "method": {"name": "some"}, "model": {"task": "causal-lm"}, **dict(config)}
    clients = [{"id": 0, "examples": 30, "name": "north"}, {"id": 1, "examples": 20}]
    rounds = ({"round": 0, "exchanges": [], "evaluation": {**final, "global": {"accuracy": 0.1}}},)
    run = Run(Path("some"), config, {}, {"clients": clients, **dict(partition)}, rounds, {"final": final})
    return model_card(run, "the model", "Load it.", base="some/base", task="causal-lm", library="peft")


def test_scores_of_groups_the_server_and_clients_are_those_of_the_final_model():
    text = card()
    assert "| group small, on its common test rows | 50.0 % |" in text
    assert "| the server's model, on its own test rows | 75.0 % |" in text
    assert "| north | 25.0 % |" in text
    assert "| 1 | nan % |" in text  # a loss that was not finite hides no card
    assert "10.0 %" not in text
    assert "large" not in text


@pytest.mark.parametrize(
    ("config", "partition", "words"),
    [
        ({}, {}, "none of their rows"),
        ({"server": {"model": {"name": "big"}}}, {}, "Texts or predictions left the clients"),
        ({}, {"vertical": {"active": "bank"}}, "What tells of single rows left the parties"),
    ],
)
def test_the_card_says_what_left_the_clients(config, partition, words):
    assert words in " ".join(card(config, partition).split())


def test_data_sets_of_the_hub_are_named_as_it_names_them():
    groups = [{"label": "own", "data": {"source": "hub:some/sets:main@train"}}, {"data": {"source": "./rows.csv"}}]
    text = card({"data": {"source": "hub:some/sets"}, "groups": groups})
    assert 'datasets: ["some/sets"]' in text
    assert "datasets:" not in card({"data": {"source": "./rows.csv"}})
