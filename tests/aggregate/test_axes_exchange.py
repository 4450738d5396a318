"""Finding common coordinates in a federation: what travels, who is told, and what absence changes."""

import pytest
import torch
from promises import Setup, play, same
from small_federation import VIT, WIDE, common

from fedquilt.aggregate.axes import POINT, rotation
from fedquilt.aggregate.axes_exchange import SPEAKS, agreements, poor_places, with_axes
from fedquilt.core.errors import RoundError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply, Turn
from fedquilt.methods import METHODS


def setup(models=(VIT, WIDE), *, turned=None, least=0.0, **settings) -> Setup:
    scene = common(models, **settings)
    method = with_axes(
        METHODS["heterotune"](scene.federation, align="none"), scene.federation, 3, turned=turned, least=least
    )
    return Setup(method, scene.federation.profiles, scene.clients)


def test_points_are_sent_once_and_no_message_has_the_models_width() -> None:
    scene = setup()
    orders, exchanges = [], []
    for exchange in scene.method.exchanges:

        def ask(state, turn, exchange=exchange):
            found = exchange.ask(state, turn)
            orders.append((turn.round, exchange.name, found))
            return found

        exchanges.append(exchange._replace(ask=ask))
    played = play(scene._replace(method=scene.method._replace(exchanges=tuple(exchanges))), num_rounds=2)
    points = {
        (number, name): {key for order in found.values() for key in order.params if key.startswith(POINT)}
        for number, name, found in orders
    }
    assert len(points[0, "fit"]) == 7  # three slots of two sites, and the head
    assert not points[0, "axes-bases"]
    assert not points[1, "fit"]
    assert [found for number, name, found in orders if (number, name) == (1, "axes-bases")] == [{}]
    # 40 observations, 3 coordinates, 3 classes, a basis of at most 16 columns: never 8 or 16 wide beside another width
    shapes = {tuple(t.shape) for *_, found in orders for order in found.values() for t in order.params.values()}
    assert shapes <= {(40, 3), (3, 3)}
    assert played.states[-1]["axes"]["knows"] == sorted(client.id for client in scene.profiles)


def test_two_clients_speak_for_each_architecture() -> None:
    scene, spoke = setup(budgets=(1, 2, 3)), []
    for exchange in scene.method.exchanges:
        orders = exchange.ask(scene.method.init(Rng(1)), Turn(0, scene.profiles, Rng(2)))
        spoke.append([client for client, order in orders.items() if order.settings[SPEAKS]])
        for client in orders.keys() - set(spoke[-1]):
            assert not any(name.startswith(("basis.", "seen.")) for name in exchange.expects(orders[client]))
    owners = {profile.id: profile.architecture for profile in scene.profiles}
    assert spoke[0] == spoke[1]
    assert sorted(owners[client] for client in spoke[0]) == sorted([*set(owners.values())] * 2)
    assert len(spoke[0]) < len(owners)


def test_a_client_that_joins_later_is_told_later_and_others_are_not_changed_by_it() -> None:
    late = setup().profiles[-1].id

    def played(first: int):
        def cohort(number: int):
            return tuple(profile for profile in setup().profiles if profile.id != late or number >= first)

        return play(setup(), num_rounds=2, cohort=cohort)

    without, with_late = played(9), played(1)
    assert same(without.states[1], with_late.states[1])
    assert late not in without.states[-1]["axes"]["knows"]
    assert late in with_late.states[-1]["axes"]["knows"]


def test_an_absent_architecture_does_not_change_the_coordinates_later() -> None:
    only = [profile for profile in setup().profiles if profile.architecture == setup().profiles[0].architecture]
    played = play(setup(), num_rounds=2, cohort=lambda number: tuple(only) if number == 0 else setup().profiles)
    first, last = (state["axes"]["points"] for state in (played.states[1], played.states[-1]))
    assert same(first, last)
    assert len(played.states[-1]["axes"]["seen"]) == 2


def test_the_agreement_of_equal_models_is_one() -> None:
    seen = {"attention.0": torch.randn(30, 2, generator=Rng(1).torch())}
    own = {f"seen.{name}": tensor for name, tensor in seen.items()}
    assert agreements({"a": own, "b": own})["attention.0"] == pytest.approx(1.0)
    assert agreements({"a": own}) == {}


def test_rotated_coordinates_are_as_good_for_each_model_and_mean_something_else() -> None:
    def turned(architecture: str) -> torch.Tensor:
        return rotation(3, Rng(1).child(architecture))

    plain, control = (play(setup(turned=one), num_rounds=1).states[-1] for one in (None, turned))
    assert same(plain["axes"]["points"], control["axes"]["points"])
    for architecture, seen in plain["axes"]["seen"].items():
        for name, own in seen.items():  # the same coordinates in another basis, so that they say as much of the inputs
            expected = own.double() @ turned(architecture)
            torch.testing.assert_close(
                control["axes"]["seen"][architecture][name].double(), expected, rtol=0, atol=1e-4
            )
    before, after = (agreements(state["axes"]["seen"]) for state in (plain, control))
    assert sum(after.values()) < sum(before.values()) - 1.0


def test_bases_of_different_tokens_are_refused_with_the_remedy() -> None:
    scene = setup()
    exchange = scene.method.exchanges[0]
    state = scene.method.init(Rng(1))
    assert exchange.ask(state, Turn(0, scene.profiles, Rng(2)))
    replies = [
        Reply(profile.id, {"basis.head": torch.eye(5 + n)[:, :3]}, 1.0) for n, profile in enumerate(scene.profiles)
    ]
    with pytest.raises(RoundError, match=r"axes\.rows = 'inputs'"):
        exchange.merge(state, iter(replies))


@pytest.mark.parametrize("points", [{"point.head": torch.zeros(40, 3)}, {"point.attention.0": torch.zeros(9, 3)}])
def test_points_that_do_not_fit_the_model_are_an_error_for_the_server(points) -> None:
    client = next(iter(setup().clients.values()))
    with pytest.raises(TrainingError, match=r"the common coordinates of 'attention\.0' are"):
        client.seen(points)


def test_models_that_agree_nowhere_are_refused_with_places_figures_and_the_remedy() -> None:
    rng = Rng(1).torch()

    def seen(scale):
        return {f"seen.{place}": scale * torch.randn(4000, 2, generator=rng) for place in ("attention.0", "head")}

    apart = {"a": seen(1.0), "b": seen(3.0)}
    assert poor_places(apart, 0.05) == ["attention.0", "head"]
    assert poor_places(apart, 0.0) == []
    one = {**apart, "b": {**apart["b"], "seen.head": apart["a"]["seen.head"]}}
    assert poor_places(one, 0.05) == ["attention.0"]
    with pytest.raises(
        RoundError, match=r"no more than unrelated .*attention\.0 .*axes\.source.*axes\.min_agreement = 0"
    ):
        play(setup(turned=lambda own: torch.eye(3).double() * (1 if "4" in own else -1), least=0.05), num_rounds=1)
