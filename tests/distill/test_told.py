"""What a student tells about its choice: shares, and how well its filter predicted labels."""

import numpy as np
import pytest
import torch

from fedquilt.core.rng import Rng
from fedquilt.distill.registry import FILTERS, filter_of
from fedquilt.distill.selection import Candidates, FilterSettings
from fedquilt.distill.told import RANGES, about_choice, about_prediction


def test_the_share_of_right_paths_is_among_the_chosen_ones() -> None:
    right = torch.tensor([True, False, True, True])
    assert about_choice(torch.tensor([0, 1]), 4, right) == {"taken": 0.5, "taken_right": 0.5}
    assert about_choice(torch.tensor([0, 1]), 4, None) == {"taken": 0.5}
    assert about_choice(torch.tensor([], dtype=torch.long), 4, right) == {"taken": 0.0}


def test_error_and_correlation_are_those_of_numpy_within_their_ranges() -> None:
    predicted, labels = torch.rand(9, generator=Rng(3).torch()), torch.rand(9, generator=Rng(4).torch())
    told = about_prediction(predicted, labels)
    assert told["label_correlation"] == pytest.approx(np.corrcoef(predicted, labels)[0, 1])
    assert told["label_error"] == pytest.approx(float(np.sqrt(np.square((predicted - labels).numpy()).mean())))
    far = about_prediction(torch.tensor([50.0, -50.0, 50.0]), torch.tensor([0.1, 0.9, 0.2]))
    assert all(RANGES[name].low <= number <= RANGES[name].high for name, number in far.items())


def test_equal_predictions_have_no_correlation() -> None:
    assert about_prediction(torch.full((3,), 0.3), torch.tensor([0.1, 0.3, 0.5])).keys() == {"label_error"}
    assert about_prediction(torch.zeros(0), torch.zeros(0)) == {}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_that_learn_say_what_they_predicted_of_the_last_choice(name: str) -> None:
    own = filter_of(FilterSettings(name, width=8, clusters=3))
    assert (own.predicted is not None) == (name in ("learnability", "linear-ucb"))
    if own.predicted is None:
        return
    drawn = torch.randn(12, 4, generator=Rng(5).torch())
    at = Candidates(drawn, drawn[:, 0], drawn[:, 1])
    labels, state = torch.sigmoid(drawn[:, 0]), own.init(4, Rng(1))
    for step in range(6):
        positions, state = own.choose(state, at, Rng(2).child(step))
        before = about_prediction(own.predicted(state)[positions], labels[positions])
        state = own.learn(state, positions, labels[positions], step)
    assert own.predicted(state).shape == (12,)
    assert before["label_correlation"] > 0.8  # the same samples again and again
