"""Errors are finished messages."""

import pickle
import re
import tomllib

import pytest
from project_sources import ROOT

from fedquilt.core import errors
from fedquilt.core.errors import ConfigError, FedquiltError, suggestion


def test_every_error_of_the_module_is_a_fedquilt_error_and_says_what_it_is_for():
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) >= 7
    for kind in kinds:
        assert issubclass(kind, FedquiltError)
        assert kind.__doc__
        assert str(kind("rounds = 0: must be at least 1")) == "rounds = 0: must be at least 1"


def test_a_config_error_carries_every_problem():
    error = ConfigError(["rounds = 0: must be at least 1", "[model] nmae: unknown key"])
    assert error.problems == ("rounds = 0: must be at least 1", "[model] nmae: unknown key")
    assert str(error) == "rounds = 0: must be at least 1\n[model] nmae: unknown key"
    assert ConfigError("one").problems == ("one",)


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert isinstance(error, ConfigError)
    assert error.problems == ("a", "b")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("buget", " (did you mean 'budget'?)"),
        ("ranks", " (did you mean 'rank'?)"),
        ("rank", " (did you mean 'rank'?)"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_suggestion_is_the_nearest_allowed_word_or_nothing(word, expected):
    assert suggestion(word, ("budget", "rank", "alpha")) == expected
    assert suggestion(word, ()) == ""


def test_what_the_field_calls_otherwise_is_known():
    assert suggestion("fedavg", ["fedra", "fedit"]) == " (did you mean 'fedit'?)"
    tasks = ["image-classification", "sequence-classification", "causal-lm"]
    assert suggestion("text-classification", tasks) == " (did you mean 'sequence-classification'?)"
    assert suggestion("text-generation", tasks) == " (did you mean 'causal-lm'?)"
    assert suggestion("LR", ["learning_rate"]) == " (did you mean 'learning_rate'?)"
    assert suggestion("fedavgg", ["fedra", "fedit"]) == " (did you mean 'fedit'?)"  # misspelt as well
    assert suggestion("rr", ["rank"]) == ""  # a name of one letter is near to everything
    assert suggestion("fedavg", ["fedra", "flora"]) == " (did you mean 'fedra'?)"  # what it means is not allowed here


def test_what_is_suggested_instead_is_a_word_of_the_run_file():
    known = (ROOT / "docs" / "run-file.md").read_text() + (ROOT / "README.md").read_text()
    also = tomllib.loads((ROOT / "src" / "fedquilt" / "assets" / "also_called.toml").read_text())
    for name, others in also.items():
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", known), name
        assert others
