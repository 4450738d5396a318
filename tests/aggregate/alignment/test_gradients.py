import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.alignment.gradients import (
    aligned,
    aligned_step,
    cosines,
    equalised,
    projected,
    soft_shares,
    towards_reference,
)
from fedquilt.aggregate.alignment.pseudo_gradients import Gathered, GroupGradient
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.settings import Align, AlignPer, AlignSettings
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply

laws = settings(deadline=None)
RULES = tuple(rule for rule in get_args(Align) if rule != "none")
PARTS = get_args(AlignPer)
every_rule = pytest.mark.parametrize("rule", RULES)
every_setting = st.builds(AlignSettings, st.sampled_from(RULES), st.sampled_from(PARTS), st.booleans())
NAMES = ("mixture.attention.0.0", "mixture.attention.0.1", "mixture.feed-forward.1.0")


def vectors_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def one_name(rows):
    return {f"g{place}": {"m.a": torch.tensor(row, dtype=torch.float64)} for place, row in enumerate(rows)}


@st.composite
def gradients(draw, least=1, most=4, orthant=False):
    """Gradients of some groups, and weights; in one orthant (no conflicts anywhere) if asked."""
    generator = Rng(draw(st.integers(0, 2**32)), ("align",)).torch()
    groups = [f"g{place}" for place in range(draw(st.integers(least, most)))]

    def tensor(name):
        drawn = torch.randn(2, 2, generator=generator, dtype=torch.float64) * draw(st.sampled_from((1.0, 1e-3, 50.0)))
        return drawn.abs() if orthant else drawn

    found = {group: {name: tensor(name) for name in NAMES} for group in groups}
    return found, {group: float(draw(st.integers(1, 100))) for group in groups}


def flat(params):
    return torch.cat([params[name].reshape(-1) for name in sorted(params)])


def group_gradients(base, replies):
    """What groups want after ``replies``: triples of group, reply and local steps."""
    gathered = Gathered(base)
    for group, reply, steps in replies:
        gathered.add(group, reply, steps)
    return gathered.gradients()


# numbers worked by hand


def test_projection_by_hand():
    """(2, 0) and (-1, 1): the first loses its part along the second, and the other way round."""
    found = projected(vectors_of((2.0, 0.0), (-1.0, 1.0)), Rng(0))
    # <g1, g2> = -2; g1 + 2/2 g2 = (1, 1); g2 + 2/4 g1 = (0, 1)
    torch.testing.assert_close(found, vectors_of((1.0, 1.0), (0.0, 1.0)))


def test_projections_follow_one_another_in_an_order_that_the_stream_draws():
    """(-2, -1) less (1, 0) is (0, -1), less (1, 1) is (1/2, -1/2); the other way round (-1/2, 1/2), then (0, 1/2)."""
    vectors = vectors_of((-2.0, -1.0), (1.0, 0.0), (1.0, 1.0))
    results = {tuple((projected(vectors, Rng(seed))[0] * 1e6).round().div(1e6).tolist()) for seed in range(20)}
    assert results == {(0.5, -0.5), (0.0, 0.5)}


def test_reference_by_hand():
    """Directions (1, 0) and (-3/5, 4/5) at 3/4 and 1/4: u = (3/5, 1/5); the second goes against it and is turned."""
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    found = towards_reference(vectors_of((7.0, 0.0), (-3.0, 4.0)), shares)
    # <g2, u> = -9/5 + 4/5 = -1, ||u||^2 = 2/5; g2 + 5/2 u = (-3/2, 9/2)
    torch.testing.assert_close(found, vectors_of((7.0, 0.0), (-1.5, 4.5)))


def test_soft_weights_by_hand():
    """Equal shares and cosines weigh the same; a group that goes against the consensus weighs nothing."""
    half = torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(soft_shares(vectors_of((3.0, 0.0), (0.0, 1.0)), half, 2.0), half)
    # directions (1, 0), (3/5, 4/5), (-1, 0) at 2/5, 2/5, 1/5: u = (11/25, 8/25), cosines as 11, 13 (6.6 + 6.4), -11
    shares = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    found = soft_shares(vectors_of((2.0, 0.0), (6.0, 8.0), (-1.0, 0.0)), shares, 1.0)
    torch.testing.assert_close(found, torch.tensor([11 / 24, 13 / 24, 0.0], dtype=torch.float64))
    squared = soft_shares(vectors_of((2.0, 0.0), (6.0, 8.0), (-1.0, 0.0)), shares, 2.0)
    torch.testing.assert_close(squared, torch.tensor([121 / 290, 169 / 290, 0.0], dtype=torch.float64))


def test_equalised_by_hand():
    found = equalised(vectors_of((3.0, 4.0), (0.0, 0.0), (0.0, 1.0), (10.0, 0.0)))  # lengths 5, 0, 1, 10: median 5
    torch.testing.assert_close(found, vectors_of((3.0, 4.0), (0.0, 0.0), (0.0, 5.0), (5.0, 0.0)))
    assert not equalised(torch.zeros(2, 3)).any()


def test_conflicts_and_cosines_by_hand():
    """One conflict in the first module, none in the second; all tensors together are 90 degrees apart."""
    found = {
        "a": {"m.x": torch.tensor([1.0, 0.0]), "n.x": torch.tensor([1.0])},
        "b": {"m.x": torch.tensor([-1.0, 0.0]), "n.x": torch.tensor([1.0])},
    }
    told = aligned(found, {"a": 1.0, "b": 1.0}, AlignSettings("projection", align_per="module"), Rng(0))
    assert (told.groups, told.conflicts) == (("a", "b"), 1)
    torch.testing.assert_close(told.cosines, torch.eye(2, dtype=torch.float64))
    assert aligned(found, {"a": 1.0, "b": 1.0}, AlignSettings("projection", align_per="global"), Rng(0)).conflicts == 0
    assert float(told.gradient["n.x"]) == 1.0


def test_pseudo_gradients_by_hand():
    """(10 - 4) / 2 steps at 1/4 and (10 - 7) / 3 steps at 3/4 make 3/2; mean steps 11/4."""
    base = {"m.a": torch.tensor([10.0])}
    replies = [
        ("vit", Reply(0, {"m.a": torch.tensor([4.0])}, 1), 2),
        ("vit", Reply(1, {"m.a": torch.tensor([7.0])}, 3), 3),
    ]
    found = group_gradients(base, iter(replies))
    assert float(found["vit"].gradient["m.a"]) == 1.5
    assert (found["vit"].weight, found["vit"].steps) == (4.0, 2.75)
    moved, _ = aligned_step(base, found, AlignSettings("projection"), Rng(0))
    assert float(moved["m.a"]) == 10 - 2.75 * 1.5
    half, _ = aligned_step(base, found, AlignSettings("projection"), Rng(0), learning_rate=0.5)
    assert float(half["m.a"]) == 10 - 0.5 * 2.75 * 1.5


# HT-9, (a) to (h)


@pytest.mark.parametrize("rule", ["projection", "reference", "mean"])
@pytest.mark.parametrize("per", PARTS)
@laws
@given(data=st.data())
def test_ht_9a_without_conflict_the_result_is_the_plain_mean_to_the_bit(rule, per, data):
    found, weights = data.draw(gradients(orthant=True))
    told = aligned(found, weights, AlignSettings(rule, per), Rng(0))
    plain = aligned(found, weights, AlignSettings("mean", per), Rng(0))
    assert told.conflicts == 0
    total = sum(weights.values())
    for name in NAMES:
        assert torch.equal(told.gradient[name], plain.gradient[name])
        expected = sum(weights[group] / total * found[group][name] for group in found)
        torch.testing.assert_close(told.gradient[name], expected)


@laws
@given(every_setting, gradients(most=1))
def test_ht_9b_one_group_alone_gets_what_it_wants(options, drawn):
    found, weights = drawn
    told = aligned(found, weights, options, Rng(0))
    torch.testing.assert_close(flat(told.gradient), flat(found["g0"]))
    torch.testing.assert_close(told.cosines, torch.ones(1, 1, dtype=torch.float64))


@laws
@given(gradients(least=2, most=2), st.sampled_from(PARTS), st.booleans())
def test_ht_9c_of_two_groups_neither_is_gone_against(drawn, per, equalise):
    found, weights = drawn
    told = aligned(found, weights, AlignSettings("projection", per, equalise), Rng(0))
    for group in found:
        for names in [[name] for name in NAMES] if per == "tensor" else [NAMES]:
            inner = sum((told.gradient[name] * found[group][name]).sum() for name in names)
            lengths = [
                math.sqrt(sum(one[name].square().sum() for name in names)) for one in (told.gradient, found[group])
            ]
            assert inner >= -1e-12 * lengths[0] * lengths[1]


@every_rule
def test_ht_9d_opposite_gradients_of_equal_weight_cancel(rule):
    told = aligned(one_name([(1.0, -2.0), (-1.0, 2.0)]), {"g0": 3.0, "g1": 3.0}, AlignSettings(rule), Rng(0))
    torch.testing.assert_close(told.gradient["m.a"], torch.zeros(2, dtype=torch.float64))
    assert told.conflicts == 1


def test_ht_9e_three_groups_may_keep_a_conflict_after_projection():
    """Nothing more is promised; this holds the limit of what may be said."""
    kept = 0
    for seed in range(200):
        vectors = torch.randn(3, 3, generator=Rng(seed).torch(), dtype=torch.float64)
        found = projected(vectors, Rng(seed))
        kept += bool((torch.triu(found @ found.T, 1) < -1e-9).any())
    assert 0 < kept < 200


@laws
@given(gradients())
def test_ht_9f_after_reference_nobody_goes_against_the_consensus_nor_does_the_result(drawn):
    found, weights = drawn
    vectors = torch.stack([flat(one) for one in found.values()])
    shares = torch.tensor([weights[group] for group in found], dtype=torch.float64)
    shares = shares / shares.sum()
    consensus = shares @ torch.nn.functional.normalize(vectors)
    left = towards_reference(vectors, shares)
    assert bool((left @ consensus >= -1e-9 * vectors.norm(dim=1)).all())
    assert (shares @ left) @ consensus >= -1e-9 * vectors.norm()


@laws
@given(gradients(), st.integers(0, 2**32))
def test_ht_9g_no_vector_gets_longer(drawn, seed):
    found, weights = drawn
    vectors = torch.stack([flat(one) for one in found.values()])
    lengths = vectors.norm(dim=1) * (1 + 1e-12)
    assert bool((projected(vectors, Rng(seed)).norm(dim=1) <= lengths).all())
    shares = torch.tensor([weights[group] for group in found], dtype=torch.float64)
    assert bool((towards_reference(vectors, shares).norm(dim=1) <= lengths).all())


@laws
@given(every_setting, gradients(), st.sampled_from((2.0**-20, 0.5, 4.0, 2.0**20)))
def test_ht_9h_twice_the_gradients_is_twice_the_result(options, drawn, factor):
    found, weights = drawn
    scaled = {group: {name: factor * one for name, one in tensors.items()} for group, tensors in found.items()}
    once, more = aligned(found, weights, options, Rng(0)), aligned(scaled, weights, options, Rng(0))
    torch.testing.assert_close(flat(more.gradient), factor * flat(once.gradient), rtol=1e-9, atol=1e-12 * factor)
    assert once.conflicts == more.conflicts


def test_ht_9_the_same_stream_gives_the_same_bits_and_another_may_give_others():
    found = one_name([tuple(torch.randn(4, generator=Rng(1, (place,)).torch()).tolist()) for place in range(6)])
    weights = dict.fromkeys(found, 1.0)
    results = [
        aligned(found, weights, AlignSettings("projection"), Rng(seed)).gradient["m.a"] for seed in (0, 0, *range(1, 9))
    ]
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])


@every_rule
@pytest.mark.parametrize("equalise", [False, True])
def test_ht_9_a_zero_gradient_is_never_nan_and_a_nan_is_refused(rule, equalise):
    options = AlignSettings(rule, align_equalise=equalise)
    told = aligned(
        one_name([(0.0, 0.0), (1.0, -1.0), (-1.0, 0.0)]), dict.fromkeys(("g0", "g1", "g2"), 1.0), options, Rng(0)
    )
    assert torch.isfinite(told.gradient["m.a"]).all()
    assert not told.cosines[0].any()
    nothing = aligned(one_name([(0.0, 0.0), (0.0, 0.0)]), {"g0": 1.0, "g1": 1.0}, options, Rng(0))
    assert not nothing.gradient["m.a"].any()
    with pytest.raises(RoundError, match=r"the gradient of group g1 is not finite in tensor 'm.a'"):
        aligned(one_name([(0.0, 0.0), (math.nan, 0.0)]), {"g0": 1.0, "g1": 1.0}, options, Rng(0))


# laws


@laws
@given(every_setting, gradients(least=2), st.randoms(use_true_random=False))
def test_the_order_in_which_groups_come_changes_no_bit(options, drawn, shuffle):
    found, weights = drawn
    order = list(found)
    shuffle.shuffle(order)
    one = aligned(found, weights, options, Rng(0))
    other = aligned({group: found[group] for group in order}, weights, options, Rng(0))
    assert torch.equal(flat(one.gradient), flat(other.gradient))
    assert one.groups == other.groups
    assert torch.equal(one.cosines, other.cosines)


@laws
@given(
    st.sampled_from(("reference", "soft", "mean")),
    st.sampled_from(PARTS),
    gradients(least=2),
    st.randoms(use_true_random=False),
)
def test_whose_name_a_gradient_bears_does_not_matter_where_the_rule_is_symmetric(rule, per, drawn, shuffle):
    found, weights = drawn
    names = list(found)
    shuffle.shuffle(names)
    renamed = dict(zip(names, found.values(), strict=True))
    again = dict(zip(names, weights.values(), strict=True))
    one, other = (aligned(g, w, AlignSettings(rule, per), Rng(0)) for g, w in ((found, weights), (renamed, again)))
    torch.testing.assert_close(flat(one.gradient), flat(other.gradient), rtol=1e-9, atol=1e-9)
    assert one.conflicts == other.conflicts


@laws
@given(every_setting, gradients(most=1), st.integers(1, 4))
def test_equal_gradients_are_a_fixed_point(options, drawn, num_groups):
    (same, _) = drawn
    found = {f"g{place}": same["g0"] for place in range(num_groups)}
    told = aligned(found, {group: 1.0 + place for place, group in enumerate(found)}, options, Rng(0))
    torch.testing.assert_close(flat(told.gradient), flat(same["g0"]))
    assert told.conflicts == 0


@laws
@given(every_setting, gradients())
def test_inputs_are_left_as_they_were_and_weights_count_by_their_ratios(options, drawn):
    found, weights = drawn
    before = {group: flat(one).clone() for group, one in found.items()}
    once = aligned(found, weights, options, Rng(0))
    again = aligned(found, {group: 8 * weight for group, weight in weights.items()}, options, Rng(0))
    for group, one in found.items():
        assert torch.equal(flat(one), before[group])
    torch.testing.assert_close(flat(once.gradient), flat(again.gradient))


@laws
@given(gradients(least=2), st.sampled_from(PARTS), st.sampled_from(RULES))
def test_equal_lengths_make_the_result_blind_to_how_long_a_gradient_is(drawn, per, rule):
    """With an odd number of groups and the longest made longer, the median stays, and so does the result."""
    found, weights = drawn
    names = sorted(found)[:3] if len(found) > 2 else sorted(found)[:1]
    found = {group: {NAMES[0]: found[group][NAMES[0]]} for group in names}
    longest = max(found, key=lambda group: float(flat(found[group]).norm()))
    longer = found | {longest: {NAMES[0]: 1000 * found[longest][NAMES[0]]}} if len(names) == 3 else found
    one, other = (aligned(given_, weights, AlignSettings(rule, per, True), Rng(0)) for given_ in (found, longer))
    torch.testing.assert_close(flat(one.gradient), flat(other.gradient), rtol=1e-9, atol=1e-12)


def test_a_group_takes_part_where_it_has_tensors_and_nowhere_else():
    found = {
        "a": {"m.x": torch.tensor([1.0]), "m.y": torch.tensor([2.0])},
        "b": {"m.x": torch.tensor([3.0])},
    }
    told = aligned(found, {"a": 1.0, "b": 1.0}, AlignSettings("projection", align_per="global"), Rng(0))
    assert {name: float(one) for name, one in told.gradient.items()} == {"m.x": 2.0, "m.y": 2.0}
    assert float(cosines(found, ("a", "b"))[0, 1]) == 1.0


# the step of the server


def round_of(num_clients, groups, steps, seed=0):
    generator = Rng(seed).torch()
    base = {name: torch.randn(2, 2, generator=generator) for name in NAMES}
    replies = [
        (
            groups[client % len(groups)],
            Reply(client, {name: torch.randn(2, 2, generator=generator) for name in NAMES}, 10 + client),
            steps,
        )
        for client in range(num_clients)
    ]
    return base, replies


@every_rule
def test_ht_6_one_group_with_equal_steps_is_fedavg(rule):
    base, replies = round_of(5, ["vit"], 7)
    moved, _ = aligned_step(base, group_gradients(base, replies), AlignSettings(rule), Rng(0))
    for name, expected in layerwise_mean(base, [reply for _, reply, _ in replies]).items():
        torch.testing.assert_close(moved[name], expected, rtol=0, atol=1e-6)


def test_ht_9a_many_groups_with_equal_steps_and_no_alignment_are_fedavg():
    base, replies = round_of(6, ["a", "b", "c"], 4)
    moved, _ = aligned_step(base, group_gradients(base, replies), AlignSettings("mean"), Rng(0))
    for name, expected in layerwise_mean(base, [reply for _, reply, _ in replies]).items():
        torch.testing.assert_close(moved[name], expected, rtol=0, atol=1e-6)


def test_ht_8_the_order_of_clients_inside_a_group_moves_nothing_but_rounding():
    base, replies = round_of(6, ["a", "b"], 4)
    one = aligned_step(base, group_gradients(base, replies), AlignSettings("projection"), Rng(0))[0]
    again = aligned_step(base, group_gradients(base, replies), AlignSettings("projection"), Rng(0))[0]
    other = aligned_step(base, group_gradients(base, reversed(replies)), AlignSettings("projection"), Rng(0))[0]
    for name in NAMES:
        assert torch.equal(one[name], again[name])
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


@every_rule
@pytest.mark.parametrize("steps", [0, 5])
def test_ht_10_when_all_return_what_they_received_every_bit_stays(rule, steps):
    base, replies = round_of(4, ["a", "b"], steps)
    base[NAMES[0]] = torch.tensor([[-0.0, 0.0], [1.0, -1.0]])
    still = [(group, Reply(reply.client, dict(base), reply.weight), steps) for group, reply, _ in replies]
    moved, told = aligned_step(base, group_gradients(base, still), AlignSettings(rule), Rng(0))
    for name in NAMES:
        assert torch.equal(moved[name].view(torch.int32), base[name].view(torch.int32))
    assert told.conflicts == 0


@every_rule
def test_ht_14_a_group_that_is_absent_weighs_nothing_and_tensors_nobody_sent_are_the_same_objects(rule):
    base, replies = round_of(6, ["a", "b", "c"], 4)
    present = [one for one in replies if one[0] != "c"]
    base["mixture.attention.9.2"] = torch.ones(2, 2)
    found = group_gradients(base, present)
    assert sorted(found) == ["a", "b"]
    moved, told = aligned_step(base, found, AlignSettings(rule), Rng(0))
    assert moved["mixture.attention.9.2"] is base["mixture.attention.9.2"]
    assert told.groups == ("a", "b")
    assert told.cosines.shape == (2, 2)
    assert all(torch.isfinite(one).all() for one in moved.values())


def test_first_form_each_group_averages_its_own_branch_and_an_absent_ones_stays():
    """The bank of the first form is the layer-wise mean over those who sent a branch: its own group."""
    base = {f"mixture.attention.0.{branch}": torch.zeros(1, 1) for branch in range(3)}
    replies = [
        Reply(0, {"mixture.attention.0.0": torch.full((1, 1), 3.0)}, 1),
        Reply(1, {"mixture.attention.0.0": torch.full((1, 1), 7.0)}, 3),
        Reply(2, {"mixture.attention.0.1": torch.full((1, 1), 5.0)}, 4),
    ]
    moved = layerwise_mean(base, replies)
    assert [float(one) for one in moved.values()] == [6.0, 5.0, 0.0]
    assert moved["mixture.attention.0.2"] is base["mixture.attention.0.2"]
    # the other reading: all branches are averaged over all clients, the frozen copies too: damped by n_j / n
    whole = [Reply(reply.client, base | reply.params, reply.weight) for reply in replies]
    assert [float(one) for one in layerwise_mean(base, whole).values()] == [3.0, 2.5, 0.0]


def test_a_client_that_took_no_step_counts_and_one_that_lies_is_refused():
    base = {"m.a": torch.tensor([1.0])}
    still = ("vit", Reply(0, {"m.a": torch.tensor([1.0])}, 1), 0)
    found = group_gradients(base, [still, ("vit", Reply(1, {"m.a": torch.tensor([-1.0])}, 1), 2)])
    assert (float(found["vit"].gradient["m.a"]), found["vit"].steps) == (0.5, 1.0)
    with pytest.raises(RoundError, match=r"client 3 of vit took no step, yet tensor 'm.a' has changed"):
        group_gradients(base, [("vit", Reply(3, {"m.a": torch.tensor([2.0])}, 1), 0)])
    with pytest.raises(RoundError, match="client 3 of vit reports -1 local steps; it must be at least 0"):
        group_gradients(base, [("vit", Reply(3, {"m.a": torch.tensor([2.0])}, 1), -1)])
    with pytest.raises(RoundError, match=r"client 3 of vit sent tensor 'm.a' with values that are not finite"):
        group_gradients(base, [("vit", Reply(3, {"m.a": torch.tensor([math.inf])}, 1), 1)])


def test_ht_5_a_branch_of_another_rank_is_refused_by_client_and_shape():
    base = {"mixture.attention.0.0": torch.zeros(4, 4)}
    with pytest.raises(
        RoundError, match=r"client 2 sent tensor 'mixture.attention.0.0' with shape \(8, 8\); the server"
    ):
        group_gradients(base, [("vit", Reply(2, {"mixture.attention.0.0": torch.zeros(8, 8)}, 1), 1)])


def test_an_empty_round_and_odd_weights_are_refused():
    with pytest.raises(RoundError, match="no replies to align"):
        group_gradients({}, [])
    with pytest.raises(RoundError, match="no groups to align"):
        aligned_step({}, {}, AlignSettings("projection"), Rng(0))
    with pytest.raises(RoundError, match=r"group a has weight 0.0; it must be a number above 0"):
        aligned_step({}, {"a": GroupGradient({}, 0.0, 1.0)}, AlignSettings("projection"), Rng(0))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"align": "project"},
            r"align is 'project' \(did you mean 'projection'\?\); it must be one of none, mean, pro",
        ),
        ({"align_per": "layer"}, "align_per is 'layer'; it must be one of module, tensor, global"),
        ({"align_equalise": 1}, "align_equalise is 1; it must be True or False"),
        ({"align_sharpness": -1.0}, "align_sharpness is -1.0; it must be a finite number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(values, told):
    with pytest.raises(ConfigError, match=f"aggregation.{told}"):
        AlignSettings(**values)
