"""The filter that learns, and its controls. Numbers in names are those of tests/papers/test_lada_catalogue.py."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.settings import problems_of
from fedquilt.distill import nets
from fedquilt.distill.clusters import cover, k_means, num_of_share
from fedquilt.distill.controls import only_right, ranks, upper_bound
from fedquilt.distill.learnability import residual, scored
from fedquilt.distill.registry import FILTERS, filter_of
from fedquilt.distill.replay import CLIP
from fedquilt.distill.selection import NAMES, Candidates, FilterSettings, taken
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

SMALL = {"width": 8, "depth": 2, "epochs": 5, "clusters": 3}


def candidates(count=12, features=4, seed=0, offset=0.0):
    drawn = torch.randn(count, features + 3, generator=Rng(seed).torch()) + offset
    right = drawn[:, -1] > offset
    return Candidates(drawn[:, :features], drawn[:, -3], drawn[:, -2], right, drawn[:, -1])


def settings(name="learnability", **more):
    return FilterSettings(**{"name": name, **SMALL, **more})


def begun(own, features=4, seed=1):
    return own.init(features, Rng(seed))


def same(left, right):
    return tree_to_bytes(left) == tree_to_bytes(right)


def rounds(own, count=3, seed=5, state=None, first=0):
    """Some rounds of choosing and learning; the label of a sample is its first feature, squeezed."""
    state = begun(own) if state is None else state
    chosen = []
    for step in range(first, first + count):
        at = candidates(seed=seed + step)
        positions, state = own.choose(state, at, Rng(7).child(step))
        state = own.learn(state, positions, torch.sigmoid(at.contexts[positions, 0]), step)
        chosen.append(positions)
    return chosen, state


@pytest.mark.parametrize("name", NAMES)
def test_every_filter_has_one_signature_and_a_state_that_survives_a_checkpoint(name):
    assert set(FILTERS) == set(NAMES)
    own = filter_of(settings(name))
    assert own.name == name
    whole, end = rounds(own, 4)
    first, half = rounds(own, 2)
    rest, resumed = rounds(own, 2, state=tree_from_bytes(tree_to_bytes(half)), first=2)
    assert [each.tolist() for each in whole] == [each.tolist() for each in [*first, *rest]]
    assert same(end, resumed)
    for positions in whole:
        assert len(positions) > 0
        assert positions.tolist() == sorted(set(positions.tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_lada_7_choices_are_deterministic_and_functions_change_no_argument(name):
    own = filter_of(settings(name))
    _, state = rounds(own, 2)
    kept = copy.deepcopy(state)
    first, one = own.choose(state, candidates(), Rng(3))
    second, other = own.choose(state, candidates(), Rng(3))
    assert first.tolist() == second.tolist()
    assert same(one, other)
    before = copy.deepcopy(one)
    own.learn(one, first, torch.full((len(first),), 0.3), 2)
    assert same(state, kept)
    assert same(one, before)
    assert len(own.score(state, candidates(), Rng(3))) == 12


@pytest.mark.parametrize("name", NAMES)
def test_without_candidates_nothing_is_chosen_and_nothing_changes(name):
    own = filter_of(settings(name))
    _, state = rounds(own, 1)
    positions, after = own.choose(state, candidates(0), Rng(0))
    assert positions.tolist() == []
    assert same(own.learn(after, positions, torch.zeros(0), 3), state)


@given(st.integers(1, 20), st.floats(0.01, 1), st.integers(0, 10**6))
def test_lada_7_a_budget_takes_the_largest_scores_and_never_none(count, share, seed):
    scores = torch.randn(count, generator=Rng(seed).torch())
    found = taken(scores, FilterSettings(share=share))
    assert len(found) == num_of_share(share, count) >= 1
    rest = [score for place, score in enumerate(scores.tolist()) if place not in found.tolist()]
    assert min(scores[found].tolist()) >= max(rest, default=-torch.inf)


def test_a_threshold_with_its_least_and_most_by_hand():
    scores = torch.tensor([0.9, 0.2, 0.6, 0.5, 0.1])

    def found(**more):
        return taken(scores, FilterSettings(choice="threshold", **more)).tolist()

    assert found() == [0, 2]  # 0.5 is not above 0.5
    assert found(threshold=0.95) == [0]  # one is always taken
    assert found(threshold=0.95, least=0.6) == [0, 2, 3]
    assert found(threshold=0.0, most=0.4) == [0, 2]
    assert found(threshold=0.0) == [0, 1, 2, 3, 4]
    assert taken(torch.full((4,), 0.3), FilterSettings()).tolist() == [0, 1]  # of equal ones the first


def test_scores_that_are_not_finite_are_an_error():
    at = candidates()
    with pytest.raises(TrainingError, match="not finite"):
        taken(torch.tensor([0.0, torch.nan]), FilterSettings())
    for name in ("confidence", "loss"):
        own = filter_of(settings(name))
        wrong = at._replace(teacher=at.teacher / 0, student=at.student * torch.inf)
        with pytest.raises(TrainingError, match="not finite"):
            own.choose(begun(own), wrong, Rng(0))


@pytest.mark.parametrize("name", ["learnability", "random", "confidence", "loss", "linear-ucb", "oracle", "all"])
def test_lada_8_a_share_of_one_is_no_filter(name):
    for more in ({"share": 1.0}, {"choice": "threshold", "least": 1.0}):
        for positions in rounds(filter_of(settings(name, **more)))[0]:
            assert positions.tolist() == list(range(12))


def test_lada_7_the_first_choice_is_the_clusters_and_not_the_networks():
    own = filter_of(settings(share=0.25))
    at = candidates(40)
    state = begun(own)
    other = {**state, "exploit": begun(own, seed=2)["exploit"], "explore": begun(own, seed=3)["explore"]}
    first, after = own.choose(state, at, Rng(9))
    second, _ = own.choose(other, at, Rng(9))
    assert first.tolist() == second.tolist()
    clusters = k_means(after["last"]["contexts"], 3, Rng(9).child("clusters"))
    assert len(clusters.unique()) == 3
    sizes = torch.bincount(clusters)
    assert torch.bincount(clusters[first], minlength=3).tolist() == [num_of_share(0.25, int(size)) for size in sizes]
    third, _ = own.choose(after, at, Rng(9))
    assert third.tolist() == taken(own.score(after, at, Rng(9)), settings(share=0.25)).tolist()


PRIORS = [{"prior": "confidence"}, {"prior": "confidence", "explore_input": "gradient"}]


@pytest.mark.parametrize("more", PRIORS)
def test_with_a_prior_and_no_labels_the_choice_is_the_teachers_confidence(more):
    for rule in ({"share": 0.25}, {"share": 0.5}):
        own, sure = filter_of(settings(**rule, **more)), filter_of(settings("confidence", **rule))
        state = begun(own)
        for seed in range(4):  # also the first one, which is by clusters without a prior
            at = candidates(40, seed=seed)
            positions, state = own.choose(state, at, Rng(seed))
            assert positions.tolist() == sure.choose({}, at, Rng(seed))[0].tolist()


def test_with_a_prior_the_networks_learn_what_it_leaves_by_hand():
    of = settings(prior="confidence", share=0.5)
    own, at = filter_of(of), candidates(4)._replace(teacher=torch.tensor([-1.0, -4.0, -3.0, -2.0]))
    positions, state = own.choose(begun(own), at, Rng(0))
    assert positions.tolist() == [0, 3]
    # standardised, -1 to -4 are 3, -3, -1 and 1 over the root of 5; a label is 1/4 and half of their sigmoid
    squashed = [0.25 + 0.5 / (1 + math.exp(-z / 5**0.5)) for z in (3, -3, -1, 1)]
    assert own.score(state, at, Rng(0)).tolist() == pytest.approx(squashed)
    assert own.predicted(state).tolist() == pytest.approx(squashed)
    learned = own.learn(state, positions, torch.tensor([0.9, 0.2]), 1)
    # over those two alone, -1 and -2 are 1 and -1
    two = [0.25 + 0.5 / (1 + math.exp(-z)) for z in (1, -1)]
    assert learned["replay"]["labels"].tolist() == pytest.approx([0.9 - two[0], 0.2 - two[1]])
    assert learned["replay"]["predicted"].tolist() == [0.0, 0.0]
    far = own.score(learned, at, Rng(0)) - torch.tensor(squashed)
    assert far.abs().max() > 1e-4
    weighted = filter_of(settings(prior="confidence", prior_weight=1.0)).score(state, at, Rng(0))
    assert weighted.tolist() == pytest.approx([2 * (value - 0.25) for value in squashed])


@pytest.mark.parametrize("more", PRIORS)
def test_a_filter_with_a_prior_learns_survives_a_checkpoint_and_an_empty_offer(more):
    own, plain = filter_of(settings(**more)), filter_of(settings("confidence"))
    whole, end = rounds(own, 4)
    first, half = rounds(own, 2)
    rest, resumed = rounds(own, 2, state=tree_from_bytes(tree_to_bytes(half)), first=2)
    assert [each.tolist() for each in whole] == [each.tolist() for each in [*first, *rest]]
    assert same(end, resumed)
    nothing, after = own.choose(end, candidates(0), Rng(0))
    assert nothing.tolist() == []
    assert same(own.learn(after, nothing, torch.zeros(0), 3), end)
    deviating = filter_of(settings(**more, epochs=300))
    assert [each.tolist() for each in rounds(deviating, 4)[0]] != [each.tolist() for each in rounds(plain, 4)[0]]


def test_clusters_are_found_and_no_more_of_them_than_there_are_rows():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = centres.repeat(5, 1) + 0.1 * torch.randn(15, 2, generator=Rng(0).torch())
    for seed in range(5):
        own = k_means(rows, 3, Rng(seed))
        assert all(len(own[kind::3].unique()) == 1 for kind in range(3))
        assert sorted(own.unique().tolist()) == [0, 1, 2]
    assert k_means(rows[:2], 5, Rng(0)).unique().tolist() == [0, 1]
    assert k_means(torch.ones(4, 2), 3, Rng(0)).tolist() == [0] * 4
    line = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    assert cover(line, 0.3, 1, Rng(0)).tolist() == [1, 2]  # nearest to the mean, 2


def test_lada_5_the_second_network_learns_what_the_first_missed_when_it_chose():
    own = filter_of(settings())
    at, state = candidates(), begun(own)
    positions, state = own.choose(state, at, Rng(0))
    predicted = scored(state, state["last"]["contexts"], settings()).predicted[positions]
    learned = own.learn(state, positions, torch.full((len(positions),), 0.9), 4)
    torch.testing.assert_close(learned["replay"]["predicted"], predicted)
    torch.testing.assert_close(residual(learned["replay"]), 0.9 - predicted)
    assert learned["replay"]["versions"].tolist() == [4] * len(positions)
    now = scored(learned, state["last"]["contexts"], settings()).predicted[positions]
    assert (now - predicted).abs().max() > 1e-4  # the stored prediction is the one from before


def test_lada_5_the_first_network_learns_the_same_whatever_the_second_is():
    own = filter_of(settings())
    positions, state = own.choose(begun(own), candidates(), Rng(0))
    other = {**state, "explore": begun(own, seed=8)["explore"]}
    target = torch.full((len(positions),), 0.9)
    one, two = (own.learn(start, positions, target, 0) for start in (state, other))
    assert same(one["exploit"], two["exploit"])
    assert not same(one["explore"], two["explore"])


def test_lada_5_where_the_first_network_is_exact_the_second_says_nothing():
    own = filter_of(settings(epochs=600, learning_rate=0.01, weight_decay=0.0))
    positions, state = own.choose(begun(own), candidates(), Rng(0))
    learned = own.learn(state, positions, state["last"]["predicted"][positions], 0)
    second = nets.forward(learned["explore"], learned["replay"]["features"]).value
    before = nets.forward(state["explore"], learned["replay"]["features"]).value
    assert second.abs().max() < 0.1 * before.abs().max()


def test_lada_6_two_filters_share_nothing():
    own = filter_of(settings())
    _, alone = rounds(own, 3)
    first, second = begun(own), begun(own)
    for step in range(3):
        at = candidates(seed=5 + step)
        positions, first = own.choose(first, at, Rng(7).child(step))
        positions_two, second = own.choose(second, at, Rng(8).child(step))
        second = own.learn(second, positions_two, torch.rand(len(positions_two), generator=Rng(step).torch()), step)
        first = own.learn(first, positions, torch.sigmoid(at.contexts[positions, 0]), step)
    assert same(first, alone)
    assert not same(second, alone)


def test_contexts_are_standardised_as_the_first_ones_and_clipped():
    own = filter_of(settings())
    at = candidates(30)
    at = at._replace(contexts=torch.cat([at.contexts[:, :3], torch.full((30, 1), 7.0)], 1))
    _, state = own.choose(begun(own), at, Rng(0))
    torch.testing.assert_close(state["last"]["contexts"].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(state["last"]["contexts"][:, :3].std(0, unbiased=False), torch.ones(3))
    far = at._replace(contexts=at.contexts + 1000)
    _, later = own.choose(state, far, Rng(0))
    assert torch.equal(later["mean"], state["mean"])
    assert later["last"]["contexts"].tolist() == [[CLIP] * 4] * 30


def test_the_replay_keeps_the_last_samples_and_those_of_young_versions():
    own = filter_of(settings(share=0.5, remembered=10))
    _, state = rounds(own, 3)
    assert state["replay"]["versions"].tolist() == [1] * 4 + [2] * 6
    assert {len(column) for column in state["replay"].values()} == {10}
    own = filter_of(settings(share=0.5, oldest=1))
    assert rounds(own, 4)[1]["replay"]["versions"].tolist() == [2] * 6 + [3] * 6
    chosen, state = rounds(filter_of(settings(share=0.5)), 4)
    assert len(state["replay"]["labels"]) == sum(map(len, chosen))


@pytest.mark.parametrize("explore_input", ["hidden", "gradient"])
def test_the_score_is_the_prediction_plus_exploration(explore_input):
    of = settings(explore_input=explore_input, explore=0.3)
    own = filter_of(of)
    _, state = rounds(own, 2)
    contexts = state["last"]["contexts"]
    found = scored(state, contexts, of)
    second = nets.forward(state["explore"], found.features).value
    torch.testing.assert_close(found.score, found.predicted + 0.3 * second)
    assert torch.equal(own.choose(state, candidates(seed=6), Rng(0))[1]["last"]["features"], found.features)
    assert not found.score.requires_grad


def test_gradient_features_are_the_block_means_of_autograd():
    net = nets.network(3, 4, 2, Rng(0))
    rows = torch.randn(5, 3, generator=Rng(1).torch())
    found = nets.gradients(net, rows, 6)
    assert found.shape == (5, nets.num_blocks(net, 6))
    for row, own in zip(rows, found, strict=True):
        tracked = {name: tensor.clone().requires_grad_(True) for name, tensor in net.items()}
        nets.forward(tracked, row[None]).value.sum().backward()
        flat = torch.cat([tensor.grad.flatten() for tensor in tracked.values()])
        means = torch.stack([torch.cat([part, torch.zeros(6 - len(part))]).mean() for part in flat.split(6)])
        torch.testing.assert_close(own, means / means.norm())


def test_a_network_is_torchs_own():
    net = nets.network(3, 4, 2, Rng(0), start=0.5)
    layers = [torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)]
    model = torch.nn.Sequential(*layers)
    for number, layer in enumerate(layers[::2]):
        layer.load_state_dict({part: net[f"{number}.{part}"] for part in ("weight", "bias")})
    rows = torch.randn(6, 3, generator=Rng(1).torch())
    found = nets.forward(net, rows)
    torch.testing.assert_close(found.value, model(rows).squeeze(1))
    torch.testing.assert_close(found.hidden, torch.cat([model[:2](rows), model[:4](rows)], 1))
    assert net["2.bias"].tolist() == [0.5]
    net, goal = nets.network(3, 32, 2, Rng(0)), rows.sum(1)
    for absolute in (False, True):
        fitted = nets.regressed(net, rows, goal, epochs=300, learning_rate=0.02, weight_decay=0, absolute=absolute)
        assert (nets.forward(fitted, rows).value - goal).abs().mean() < 0.1


def test_linear_ucb_is_the_textbooks():
    contexts, seen = (torch.randn(count, 3, generator=Rng(count).torch()) for count in (5, 9))
    y = torch.rand(9, generator=Rng(1).torch())
    x, past = (torch.cat([rows, torch.ones(len(rows), 1)], 1).double() for rows in (contexts, seen))
    matrix = 2.0 * torch.eye(4).double() + past.T @ past
    theta = torch.linalg.solve(matrix, past.T @ y.double())
    width = (x @ torch.linalg.inv(matrix) * x).sum(1).sqrt()
    torch.testing.assert_close(upper_bound(contexts, seen, y, 2.0, 0.7), (x @ theta + 0.7 * width).float())
    nothing = upper_bound(contexts, seen[:0], y[:0], 4.0, 1.0)
    torch.testing.assert_close(nothing, (x.norm(dim=1) / 2).float())


def test_controls_take_what_they_say():
    at = candidates(8)
    tops = {"confidence": at.teacher, "loss": -at.student, "oracle": at.gain}
    for name, values in tops.items():
        for more in ({"share": 0.5}, {"choice": "threshold"}):
            positions, _ = filter_of(settings(name, **more)).choose({}, at, Rng(0))
            assert positions.tolist() == values.topk(4).indices.sort().values.tolist(), name
    assert filter_of(settings("all")).choose({}, at, Rng(0))[0].tolist() == list(range(8))
    right = at.right.nonzero().squeeze(1).tolist()
    assert filter_of(settings("verified")).choose({}, at, Rng(0))[0].tolist() == right
    assert 0 < len(right) < 8


def test_random_choices_differ_by_stream_and_all_candidates_have_their_turn():
    own = filter_of(settings("random"))
    drawn = [own.choose({}, candidates(8), Rng(seed))[0].tolist() for seed in range(40)]
    assert len({tuple(each) for each in drawn}) > 20
    assert {place for each in drawn for place in each} == set(range(8))
    assert ranks(torch.tensor([3.0, 1.0, 2.0])).tolist() == pytest.approx([5 / 6, 1 / 6, 1 / 2])


@given(st.integers(0, 1000))
def test_only_right_paths_pass_and_the_filter_remembers_all(seed):
    own = filter_of(settings(epochs=1))
    strict, at = only_right(own), candidates(seed=seed)
    everything, state = own.choose(begun(own), at, Rng(0))
    positions, other = strict.choose(begun(own), at, Rng(0))
    assert positions.tolist() == [place for place in everything.tolist() if at.right[place]]
    assert same(state, other)


@pytest.mark.parametrize("name", ["learnability", "linear-ucb"])
def test_a_label_that_is_not_finite_is_not_learned(name):
    own = filter_of(settings(name))
    positions, state = own.choose(begun(own), candidates(), Rng(0))
    with pytest.raises(TrainingError, match="label is not finite"):
        own.learn(state, positions, torch.full((len(positions),), torch.nan), 0)


def test_what_a_control_cannot_know_is_an_error():
    at = candidates()._replace(right=None, gain=None)
    for name, text in (("verified", "no answers"), ("oracle", "known rewards")):
        with pytest.raises(TrainingError, match=text):
            filter_of(settings(name)).choose({}, at, Rng(0))


def test_settings_are_bounded():
    assert problems_of(FilterSettings(), "filter") == []
    wrong = FilterSettings(name="lada", share=0.0, threshold=2.0, width=10**6, oldest=-1, explore=float("nan"))
    assert len(problems_of(wrong, "filter")) == 6
