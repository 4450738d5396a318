"""HeteroTune among clients that really train: transformers of unlike type, width and depth with mixtures in them."""

from dataclasses import replace

import pytest
import torch
from promises import Setup, copied, play, same
from small_federation import BERT, GPT2, LLAMA, VIT, WIDE, mixtures, rows, several, task_of

from fedquilt.adapters.mixture.inject import branch_of
from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.alignment.pseudo_gradients import Gathered
from fedquilt.aggregate.robust import aggregate_rule
from fedquilt.aggregate.settings import RuleSettings
from fedquilt.client import Training
from fedquilt.core.errors import ConfigError
from fedquilt.core.params import num_bytes
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.methods.fedit import fedit
from fedquilt.methods.heterotune import heterotune
from fedquilt.models.weights_digest import digest

SGD = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.1, optimizer="sgd")


def setup(models=(VIT, WIDE), *, method=heterotune, scene=None, make=None, **settings) -> Setup:
    """HeteroTune (or another method) among clients with mixtures; ``make`` are the federation's own settings."""
    scene = scene or mixtures(models, **(make or {}))
    return Setup(method(scene.federation, **settings), scene.federation.profiles, scene.clients)


def of(state, architecture):
    """An architecture's own tensors in the server's state."""
    prefix = f"{architecture}/"
    return {name[len(prefix) :]: value for name, value in state["params"].items() if name.startswith(prefix)}


def bank(state):
    return {name: value for name, value in state["params"].items() if is_shared(name)}


def architectures(scene):
    return [*scene.federation.layouts]


def sent(built):
    """The orders and the replies of the first round."""
    found = []
    (fit,) = built.method.exchanges

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        found.append((order, reply))
        return reply, memory

    played = play(built._replace(method=built.method._replace(exchanges=(fit._replace(work=work),))), num_rounds=1)
    return found, played


@pytest.mark.parametrize("trained", ["own", "all"])
def test_the_server_keeps_each_branch_once_and_all_else_for_each_architecture(trained):
    built = setup((VIT, LLAMA), make={"trained": trained})
    state = built.method.init(Rng(5).child("init"))
    federation = mixtures((VIT, LLAMA), trained=trained).federation
    assert len(bank(state)) == 2 * 3 * 2  # parts, slots (the shallower model's blocks), branches
    for name, layout in federation.layouts.items():
        own = of(state, name)
        assert own.keys() == {one for one in layout.depth if not is_shared(one)}
        for profile in built.profiles:
            if profile.architecture == name:
                assert built.method.view(state, profile).params.keys() == layout.depth.keys()
    zero = {bool((value == 0).all()) for value in bank(state).values()}
    assert zero == {trained == "own"}, "the first form's branches begin at zero, the second's unlike"


def test_ht_6_one_architecture_with_uniform_gates_and_equal_steps_is_fedavg():
    def make():
        return mixtures((VIT,), budgets=(4, 4, 4), training=SGD, gate="uniform")

    ours = play(setup(scene=make()), num_rounds=3)
    plain = play(setup(scene=make(), method=fedit), num_rounds=3)
    names = plain.states[-1]["params"]
    assert len(names) > 10
    for name, expected in names.items():
        kept = name if is_shared(name) else f"vit-4x8/{name}"
        torch.testing.assert_close(ours.states[-1]["params"][kept], expected, rtol=0, atol=1e-6)
        assert not torch.equal(ours.states[-1]["params"][kept], ours.states[0]["params"][kept])


def test_ht_2_in_the_first_step_only_up_and_the_head_move_and_in_the_second_everything():
    first, later = (
        play(setup(make={"training": replace(SGD, steps=steps), "budgets": (3, 3)}), num_rounds=1) for steps in (1, 2)
    )

    def moved(played):
        before, after = (state["params"] for state in played.states)
        return {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}

    assert moved(first) == {"up", "weight", "bias"}
    assert {"up", "down", "0", "1"} <= moved(later)


def test_ht_3_in_the_first_form_foreign_branches_rest_and_do_not_travel_up():
    training = replace(SGD, optimizer="adamw", weight_decay=0.1)
    built = setup((VIT, LLAMA), make={"trained": "own", "training": training, "deviation": 0.3})
    found, played = sent(built)
    frozen = mixtures((VIT, LLAMA), trained="own").federation.frozen
    for order, reply in found:
        own = order.settings["architecture"]
        place = ["vit-4x8", "llama-3x8"].index(own)
        travelled = {branch_of(name) for name in reply.params if is_shared(name)}
        assert travelled <= {place}
        assert not frozen[own] & reply.params.keys()
        assert {branch_of(name) for name in order.params if is_shared(name)} == {0, 1}, "all are sent down"
        # what the client's model now holds of foreign branches is what it was sent, weight decay or not
        bench = built.clients[reply.client].bench
        for name in frozen[own]:
            assert torch.equal(bench.parameters[name].detach(), played.states[0]["params"][name])
    assert any(
        not torch.equal(value, played.states[0]["params"][name]) for name, value in bank(played.states[1]).items()
    )


def test_ht_4_the_backbone_stays_to_the_bit_over_rounds():
    built = setup((BERT, GPT2))
    benches = {client.profile.architecture: client.bench for client in built.clients.values()}

    def frozen(bench):
        return {name: value for name, value in bench.model.state_dict().items() if name not in bench.parameters}

    before = {name: copied(frozen(bench)) for name, bench in benches.items()}
    played = play(built, num_rounds=3)
    assert not same(played.states[0], played.states[-1])
    assert len(before) == 2
    assert all(same(frozen(bench), before[name]) for name, bench in benches.items())
    assert all(digest(bench.model) for bench in benches.values())


def test_ht_5_unlike_ranks_cannot_be_shared_and_say_so():
    one, other = mixtures((VIT,), rank=3), mixtures((LLAMA,), rank=4)
    federation = replace(
        one.federation,
        layouts=one.federation.layouts | other.federation.layouts,
        initial={**one.federation.initial, **other.federation.initial},
    )
    with pytest.raises(ConfigError, match=r"branch 'mixture.attention.0.0' is \(4, 4\) in llama-3x8 and \(3, 3\) in"):
        heterotune(federation)


@pytest.mark.parametrize("trained", ["own", "all"])
def test_ht_7_other_data_of_one_architecture_reach_the_ends_of_another_through_the_branches_alone(trained):
    def played(other, num_rounds):
        scene = mixtures((VIT, LLAMA), trained=trained, training=SGD)
        first, second = architectures(scene)
        if other:
            changed = {
                id: replace(client, train=rows(task_of(VIT), len(client.train["labels"]), f"other {id}"))
                for id, client in scene.clients.items()
                if client.profile.architecture == first
            }
            scene = scene._replace(clients={**scene.clients, **changed})
        return play(setup(scene=scene), num_rounds=num_rounds).states[-1], first, second

    (ours, first, second), (theirs, _, _) = played(False, 1), played(True, 1)
    assert not same(of(ours, first), of(theirs, first))
    assert same(of(ours, second), of(theirs, second)), "not in the same round"
    assert not same(bank(ours), bank(theirs))
    later, others = played(False, 3)[0], played(True, 3)[0]
    assert not same(of(later, second), of(others, second)), "in a later round, through the branches"


def test_without_sharing_nothing_of_one_architecture_reaches_another():
    def played(other):
        scene = mixtures((VIT, LLAMA), training=SGD)
        changed = {
            id: replace(client, train=rows(task_of(VIT), len(client.train["labels"]), f"other {id}"))
            for id, client in scene.clients.items()
            if other and "vit" in client.profile.architecture
        }
        scene = scene._replace(clients={**scene.clients, **changed})
        return play(setup(scene=scene, share=False), num_rounds=3).states[-1]

    ours, theirs = played(False), played(True)
    assert not bank(ours)
    assert same(of(ours, "llama-3x8"), of(theirs, "llama-3x8"))
    assert not same(of(ours, "vit-4x8"), of(theirs, "vit-4x8"))


def test_without_sharing_and_with_full_budgets_it_is_fedit_in_each_architecture():
    """The control: the same adapters averaged in each group alone, from the same start."""

    def make():
        return mixtures((VIT, WIDE), budgets=(3, 3), training=SGD)

    scene = make()
    full = {name: layout.num_layers for name, layout in scene.federation.layouts.items()}

    def whole(scene):
        clients = {
            id: replace(one, profile=replace(one.profile, budget=replace(one.profile.budget, layers=full[name])))
            for id, one in scene.clients.items()
            for name in [one.profile.architecture]
        }
        profiles = tuple(client.profile for client in clients.values())
        return scene._replace(federation=replace(scene.federation, profiles=profiles), clients=clients)

    ours = play(setup(scene=whole(make()), share=False), num_rounds=1)
    apart = whole(make())
    method = by_architecture(fedit, apart.federation)
    state = {"apart": {name: {"params": of(ours.states[0], name)} for name in full}}
    theirs = play(Setup(method, apart.federation.profiles, apart.clients), state=state, num_rounds=1)
    for name in full:
        assert same(of(ours.states[-1], name), theirs.states[-1]["apart"][name]["params"])


@pytest.mark.parametrize("trained", ["own", "all"])
def test_ht_8_each_tensor_is_the_mean_by_examples_over_those_who_may_share_it(trained):
    built = setup((VIT, WIDE), align="none", make={"trained": trained, "budgets": (3, 4)[:1] * 2})
    found, played = sent(built)
    owner = {profile.id: profile.architecture for profile in built.profiles}
    checked = 0
    for name, value in played.states[1]["params"].items():
        architecture, _, bare = name.rpartition("/")
        holders = [reply for _, reply in found if bare in reply.params and architecture in ("", owner[reply.client])]
        if not holders:
            assert torch.equal(value, played.states[0]["params"][name])
            continue
        total = sum(reply.weight for reply in holders)
        expected = sum(reply.weight / total * reply.params[bare].double() for reply in holders)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(("trained", "align"), [("own", None), ("all", "none"), ("all", "projection"), ("all", "soft")])
def test_ht_10_clients_that_train_at_rate_zero_leave_every_bit(trained, align):
    training = replace(SGD, learning_rate=0.0)
    played = play(setup((VIT, BERT), make={"trained": trained, "training": training}, align=align), num_rounds=2)
    assert same(played.states[0]["params"], played.states[-1]["params"])


@pytest.mark.parametrize("trained", ["own", "all"])
def test_ht_11_bytes_are_two_r_d_a_site_and_the_bank(trained):
    rank, models = 3, (VIT, WIDE, LLAMA)
    found, _ = sent(setup(models, make={"trained": trained, "gate": "uniform", "budgets": (3, 3)}))
    widths, depths, heads = {"vit-4x8": 8, "vit-3x16": 16, "llama-3x8": 8}, {"vit-4x8": 4}, {"vit": 3}
    slots, parts = 3, 2
    assert len(found) == 6
    for order, reply in found:
        name = order.settings["architecture"]
        width, depth = widths[name], depths.get(name, 3)
        head = heads["vit"] * (width + 1) if "vit" in name else 0
        whole_bank = parts * slots * 3 * rank**2
        assert num_bytes(order.params) == 4 * (depth * parts * 2 * rank * width + whole_bank + head)
        layers = order.settings["layers"]
        # four blocks have the slots 0, 1, 1, 2, and the deepest three of them are trained
        trained_slots = 2 if name == "vit-4x8" else 3
        up = len(layers) * parts * 2 * rank * width
        up += parts * trained_slots * (1 if trained == "own" else 3) * rank**2 + head
        assert num_bytes(reply.params) == 4 * up


def test_ht_14_an_architecture_that_is_away_keeps_its_tensors_and_the_others_go_on():
    for trained in ("own", "all"):
        scene = mixtures((VIT, LLAMA), trained=trained)
        gone = architectures(scene)[1]
        away = {profile.id for profile in scene.federation.profiles if profile.architecture == gone}
        played = play(setup(scene=scene), num_rounds=2, away=lambda client, name, number, away=away: client in away)
        first, last = played.states[0], played.states[-1]
        assert same(of(first, gone), of(last, gone))
        assert not same(of(first, architectures(scene)[0]), of(last, architectures(scene)[0]))
        moved = {branch_of(n) for n, value in bank(last).items() if not torch.equal(value, first["params"][n])}
        assert moved == ({0} if trained == "own" else {0, 1})
        assert all(bool(torch.isfinite(value).all()) for value in last["params"].values())


def test_a_client_trains_the_deepest_blocks_it_affords_and_the_branches_that_these_alone_use():
    built = setup((VIT, WIDE), make={"budgets": (1, 2), "num_slots": 2})
    found, _ = sent(built)
    for order, reply in found:
        layout = mixtures((VIT, WIDE), num_slots=2).federation.layouts[order.settings["architecture"]]
        layers = order.settings["layers"]
        assert layers == list(range(layout.num_layers))[-len(layers) :]
        assert reply.params.keys() == {*layout.names(layers), *layout.head}
        assert order.params.keys() == layout.depth.keys()
    by_architecture = {(len(order.settings["layers"]), order.settings["architecture"]): reply for order, reply in found}
    # four blocks in two slots: the upper slot is trained by whoever affords both of its blocks, and by nobody else
    assert not any(is_shared(name) for name in by_architecture[1, "vit-4x8"].params)
    assert {name.split(".")[2] for name in by_architecture[2, "vit-4x8"].params if is_shared(name)} == {"1"}


def test_alignment_moves_the_branches_and_nothing_else_and_leaves_a_record():
    plain, ours = (play(setup((VIT, BERT, GPT2), align=rule), num_rounds=1) for rule in ("none", "projection"))
    assert "conflicts" not in plain.states[-1]
    end = ours.states[-1]
    assert isinstance(end["conflicts"], int)
    assert len(end["cosines"]) == 9
    assert end["cosines"][0] == pytest.approx(1.0)
    assert all(-1 <= value <= 1 for value in end["cosines"])
    for name, value in plain.states[-1]["params"].items():
        if not is_shared(name):
            assert torch.equal(value, end["params"][name])
    assert not same(bank(plain.states[-1]), bank(end))


def test_the_mean_of_gradients_counts_architectures_with_few_steps_as_much():
    """What ``align = "mean"`` does: only the division by local steps, checked against the formula."""
    built = setup((VIT, WIDE), align="mean", make={"budgets": (3, 3)})
    found, played = sent(built)
    base = played.states[0]["params"]
    gathered = Gathered(bank(played.states[0]))
    owner = {profile.id: profile.architecture for profile in built.profiles}
    for _, reply in found:
        shared = {name: value for name, value in reply.params.items() if is_shared(name)}
        gathered.add(owner[reply.client], Reply(reply.client, shared, reply.weight), reply.metrics["steps"])
    gradients = gathered.gradients()
    total = sum(one.weight for one in gradients.values())
    for name, value in bank(played.states[1]).items():
        holders = [one for one in gradients.values() if name in one.gradient]
        weight = sum(one.weight for one in holders)
        if not holders:
            continue
        mean = sum(one.weight / weight * one.gradient[name] for one in holders)
        steps = sum(one.weight * one.steps for one in gradients.values()) / total
        torch.testing.assert_close(value.double(), base[name].double() - steps * mean, rtol=0, atol=1e-6)


def test_the_penalty_holds_the_branches_near_what_was_sent():
    def far(mu):
        played = play(setup(mu=mu, make={"training": SGD, "budgets": (3, 3)}), num_rounds=3)
        first, last = bank(played.states[0]), bank(played.states[-1])
        return sum(float((last[name] - first[name]).square().sum()) for name in first)

    assert 0 < far(20.0) < far(0.0)


def test_a_robust_rule_takes_the_place_of_the_mean_where_nothing_is_aligned():
    scene = mixtures((VIT,), budgets=(4, 4, 4))
    federation = replace(scene.federation, aggregate=aggregate_rule(RuleSettings("median")))
    built = Setup(heterotune(federation, align="none"), federation.profiles, scene.clients)
    found, played = sent(built)
    for name, value in bank(played.states[1]).items():
        middle = torch.stack([reply.params[name] for _, reply in found]).median(0).values
        torch.testing.assert_close(value, middle)


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (
            {},
            {"share": False, "align": "mean"},
            r"method.align = 'mean': with method.share = false no tensors are shared",
        ),
        ({"trained": "own"}, {"align": "projection"}, r"method.align = 'projection': with adapter.trained = 'own'"),
        (
            {"trained": "own"},
            {"per": "tensor", "equalise": True},
            r"method.per = 'tensor': has no effect .* adapter.trained = 'own'.*\nmethod.equalise = true: has no effect",
        ),
        ({"trained": "own"}, {"server_learning_rate": 0.5}, r"method.server_learning_rate = 0.5: has no effect"),
        ({}, {"mu": -1.0}, r"method.mu = -1.0: must be at least 0"),
        ({}, {"decay": float("inf")}, r"method.decay = inf: must be at least 0 and finite"),
        ({}, {"server_learning_rate": 0.0}, r"the server's learning rate is 0.0; it must be a finite number above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make, settings, told):
    with pytest.raises(ConfigError, match=told):
        setup(make=make, **settings)


def test_low_rank_adapters_are_refused():
    with pytest.raises(ConfigError, match=r"vit-4x8 has no mixture of adapters .* set adapter.kind = 'mixture'"):
        heterotune(several((VIT, WIDE)).federation)
