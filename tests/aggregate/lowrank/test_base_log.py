"""A base that methods change: whoever was away ends with the bits of those who were there."""

from weakref import ref

import pytest
import torch
from drawn_factors import laws, product_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedquilt.adapters.lora.module import LoraLinear, merged_weights
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.aggregate.lowrank.base_log import (
    advanced,
    caught_up,
    empty_log,
    first_base,
    forgotten,
    incoming,
    logged,
    missed,
    outgoing,
    shifts,
)
from fedquilt.aggregate.lowrank.kernel import dense, stacked
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng


def change_of(number):
    """What round ``number`` merges: into q always, into v (kept as Conv1D) every other round; single precision."""
    change = {"q": product_of(5, 2, 7, seed=number, dtype=torch.float32)}
    return change | ({"v": product_of(6, 2, 4, seed=100 + number, dtype=torch.float32)} if number % 2 else {})


def start():
    return {
        "q": torch.randn(5, 7, generator=Rng(1).torch()),
        "v": torch.randn(4, 6, generator=Rng(2).torch()),
        "k": torch.zeros(1),
    }


def over_a_wire(order):
    """The same numbers in other memory."""
    return {name: tensor.clone() for name, tensor in order.items()}


@laws
@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=8), st.booleans())
def test_t34_whoever_was_away_ends_with_the_same_bits(cohorts, trimmed):
    """T34: four clients, of which each round asks some; all are brought up to date as they come, and at the end."""
    log, bases = empty_log(), {client: (0, start()) for client in range(4)}
    always = start()

    def update(client):
        version, weights = bases[client]
        changes = missed(log, version)
        assert len(changes) == log["version"] - version
        bases[client] = log["version"], caught_up(weights, changes, transposed=("v",))

    for number, cohort in enumerate(cohorts):
        for client in cohort:
            update(client)
        log = logged(log, change_of(number))
        always = caught_up(always, [change_of(number)], transposed=("v",))
        if trimmed:
            log = forgotten(log, min(version for version, _ in bases.values()))
    for client in range(4):
        update(client)
        assert all(torch.equal(bases[client][1][name], always[name]) for name in always)
        assert bases[client][1]["k"] is not None
    assert log["version"] == len(cohorts)


def test_t34_one_sum_of_what_was_missed_would_not_give_the_same_bits():
    """T34: why the log keeps each change by itself."""
    changes = [change_of(number) for number in range(6)]
    replayed = caught_up(start(), changes, transposed=("v",))["q"]
    at_once = start()["q"] + sum(dense(change["q"]) for change in changes)
    torch.testing.assert_close(replayed, at_once)
    assert not torch.equal(replayed, at_once)


def test_the_log_is_a_tree_and_is_not_changed():
    log = empty_log()
    longer = logged(log, change_of(1))
    assert log == {"version": 0, "oldest": 0, "changes": []}
    assert longer["version"] == 1
    (entry,) = longer["changes"]
    assert {module: set(factors) for module, factors in entry.items()} == {"q": {"B", "A"}, "v": {"B", "A"}}
    assert all(type(factors) is dict for factors in entry.values())
    assert missed(longer, 1) == []
    short = forgotten(longer, 1)
    assert (short["oldest"], short["changes"], len(longer["changes"])) == (1, [], 1)
    assert forgotten(short, 0) == short  # what is gone is gone


def test_a_base_that_the_log_does_not_reach_is_told():
    log = forgotten(logged(logged(empty_log(), change_of(0)), change_of(1)), 1)
    for version in (0, 3):
        with pytest.raises(RoundError, match=f"base is version {version}, but the log holds the changes from 1 to 2"):
            missed(log, version)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 9), lambda: Conv1D(9, 6)], ids=["Linear", "Conv1D"])
def test_t28_a_merged_base_computes_what_the_adapters_did(make):
    """T28: base plus the stack merged in, and a fresh adapter over it, give the logits of the mean of all adapters."""
    settings = LoraSettings(rank=2, alpha=4.0)
    with Rng(4, ("merge",)).scope():
        base, x = make(), torch.randn(11, 6)
        nn.init.normal_(base.weight)
        made = [Factors(torch.randn(9, 2), torch.randn(2, 6), 2.0, weight) for weight in (1, 3)]
    plain, outputs = base(x).detach(), []
    layer = LoraLinear(base, settings)
    for client in made:
        with torch.no_grad():
            layer.lora_A.copy_(client.A)
            layer.lora_B.copy_(client.B)
        outputs.append(layer(x).detach())
        # one adapter: merged by the adapter itself, or as a stack of one
        alone = caught_up({"q": base.weight.detach()}, [{"q": stacked([client])}], transposed("q", layer))
        torch.testing.assert_close(alone["q"], merged_weights({"q": layer})["q.weight"], rtol=1e-5, atol=1e-5)
    merged = caught_up({"q": base.weight.detach()}, [{"q": stacked(made)}], transposed("q", layer))["q"]
    with torch.no_grad():
        base.weight.copy_(merged)
        layer.lora_B.zero_()  # a fresh adapter
    torch.testing.assert_close(layer(x).detach(), 0.25 * outputs[0] + 0.75 * outputs[1], rtol=1e-4, atol=1e-4)
    assert float((layer(x).detach() - plain).abs().max()) > 0.1


def transposed(name, layer):
    return (name,) if layer.fan_in_fan_out else ()


def test_the_dtype_of_the_base_stays_and_half_precision_forgets_small_changes():
    small = Product(torch.full((2, 1), 1e-3), torch.ones(1, 2))
    half, full = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2)
    changes = [{"q": small}] * 10
    assert torch.equal(caught_up({"q": half}, changes)["q"], half)
    assert caught_up({"q": half}, changes)["q"].dtype == torch.bfloat16
    torch.testing.assert_close(caught_up({"q": full}, changes)["q"], torch.full((2, 2), 1.01))


# The base of a federation ------------------------------------------------------------


def test_what_a_client_lacks_is_sent_by_version_and_module():
    base = first_base()
    for number in range(3):
        base = advanced(base, change_of(number), answered=[0], everyone=[0, 1])
    assert base["confirmed"] == {"0": 2}  # what the order of the last round brought it to
    assert sorted(outgoing(base, 0)) == ["q.change.3.A", "q.change.3.B"]
    everything = [f"q.change.{v}.{part}" for v in (1, 2, 3) for part in "AB"] + ["v.change.2.A", "v.change.2.B"]
    assert sorted(outgoing(base, 1)) == sorted(everything)


def test_a_client_keeps_the_dense_sum_by_module_and_passes_on_what_is_no_change():
    base = advanced(first_base(), change_of(1), [], [0])
    head = torch.ones(2)
    rest, own = incoming({"head": head, **outgoing(base, 0)})
    assert rest.keys() == {"head"}
    assert rest["head"] is head
    assert own["version"] == 1
    assert torch.equal(own["shift"]["q"], dense(change_of(1)["q"]))
    assert own["shift"]["v"].shape == (6, 4)  # (d_out, d_in) whatever the base's own way
    assert shifts(own).keys() == {"q.shift", "v.shift"}
    assert incoming({"head": head}, own) == ({"head": head}, own)


@laws
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_t34_one_by_one_or_all_at_once_and_again_are_the_same_bits(asked):
    """T34: a client that is asked in some rounds, against the server's own sum; orders may come twice."""
    base, own = first_base(), None
    for number, now in enumerate([*asked, True]):
        if now:
            order = over_a_wire(outgoing(base, 7))
            _, own = incoming(order, own)
            _, again = incoming(order, own)
            assert again == own
        base = advanced(base, change_of(number), [7] if now else [], [7])
    _, own = incoming(over_a_wire(outgoing(base, 7)), own)
    assert own["version"] == base["log"]["version"]
    assert own["shift"].keys() == base["shift"].keys()
    assert all(torch.equal(own["shift"][module], base["shift"][module]) for module in own["shift"])


def test_no_version_is_made_of_nothing_and_what_all_have_is_forgotten():
    base = advanced(first_base(), {}, [0, 1], [0, 1])
    assert base["log"]["version"] == 0
    assert base["shift"] == {}
    base = advanced(base, change_of(0), [0, 1], [0, 1])
    base = advanced(base, {}, [0, 1], [0, 1])
    assert base["log"] == {"version": 1, "oldest": 1, "changes": []}
    assert base["shift"].keys() == {"q"}
    assert outgoing(base, 1) == {}


def test_a_change_that_is_longer_than_its_matrix_travels_as_the_matrix():
    """Rank 3 of a 5 x 7 weight has 36 numbers, and the matrix 35; merged, both have the same bits."""
    long, short = product_of(5, 3, 7, dtype=torch.float32), product_of(5, 2, 7, dtype=torch.float32)
    base = advanced(first_base(), {"q": long, "v": short}, [], [0])
    order = outgoing(base, 0)
    assert {name: tuple(tensor.shape) for name, tensor in order.items()} == {
        "q.change.1.D": (5, 7),
        "v.change.1.B": (5, 2),
        "v.change.1.A": (2, 7),
    }
    _, own = incoming(over_a_wire(order))
    assert torch.equal(own["shift"]["q"], dense(long))
    (change,) = missed(base["log"], 0)
    merged = caught_up({"q": torch.zeros(7, 5), "v": torch.zeros(5, 7)}, [change], transposed=("q",))
    assert torch.equal(merged["q"], dense(long).T)
    assert torch.equal(merged["v"], dense(short))


def test_clients_of_one_process_share_the_sum_of_a_version():
    base = first_base()
    for number in range(3):
        base = advanced(base, change_of(number), [0] if number == 2 else [], [0, 1, 2])
    first, second = (incoming(outgoing(base, client))[1] for client in (1, 2))
    assert first["version"] == second["version"] == 3
    assert all(first["shift"][module] is base["shift"][module] is second["shift"][module] for module in ("q", "v"))
    late = incoming(outgoing(base, 0), incoming(over_a_wire(outgoing(base, 1)))[1])[1]
    assert all(torch.equal(late["shift"][module], base["shift"][module]) for module in ("q", "v"))
    wired = over_a_wire(outgoing(base, 1))
    third, fourth = incoming(wired)[1], incoming(wired)[1]
    assert third["shift"]["q"] is fourth["shift"]["q"] is not base["shift"]["q"]
    assert torch.equal(third["shift"]["q"], base["shift"]["q"])


def test_a_sum_that_nobody_holds_is_not_kept():
    wired = over_a_wire(outgoing(advanced(first_base(), change_of(1), [], [0]), 0))
    own = incoming(wired)[1]
    kept = ref(own["shift"]["q"])
    assert incoming(wired)[1]["shift"]["q"] is kept()
    del own
    assert kept() is None
    assert torch.equal(incoming(wired)[1]["shift"]["q"], dense(change_of(1)["q"]))
