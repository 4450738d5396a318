"""Changes of one behaviour of a method."""

from dataclasses import replace

import torch

from fedquilt.core.closing import closed
from fedquilt.core.loop import rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Failure, Order, Profile, Reply
from fedquilt.core.wrap import with_local, with_received_scores
from fedquilt.engine.local import LocalEngine

PROFILES = tuple(Profile(k, 1, "toy", Budget(1), "toy") for k in range(3))
START = {"body": torch.zeros(2), "head": torch.zeros(3)}


def adding() -> Method:
    """Client k adds k + 1 to every tensor it uses; the server keeps the mean of what comes."""

    def ask(state, turn):
        return {p.id: Order(state["params"], {"step": 1}) for p in turn.cohort}

    def work(client, order, memory):
        used = {**START, **order.params, **memory.get("params", {})}
        done = {**memory, "rounds": memory.get("rounds", 0) + 1}
        return Reply(client, {name: tensor + client + 1 for name, tensor in used.items()}, 1.0, {"loss": 0.5}), done

    def merge(state, replies):
        sent = [reply.params for reply in replies]
        means = {name: sum(p[name] for p in sent) / len(sent) for name in sent[0]}
        return {"params": {**state["params"], **means}}

    return Method("adding", lambda rng: {"params": START}, (Exchange("fit", ask, work, merge),), _view)


def _view(state, profile):
    return Order(state["params"], {"for": profile.id})


def played(method, num_rounds=2, cohort=PROFILES):
    engine, sent = LocalEngine({k: k for k in range(3)}), []

    def send(exchange, orders):
        for reply in engine.send(exchange, orders):
            sent.append((orders[reply.client], reply))
            yield reply

    done = list(rounds(method, lambda number: cohort, send, Rng(0), num_rounds=num_rounds))
    return done, sent, engine.memories


def test_local_tensors_never_travel_and_the_others_do_as_before():
    done, sent, _ = played(with_local(adding(), ["head"]))
    plain, unwrapped, _ = played(adding())
    assert len(sent) == 6
    for (order, reply), (whole, answer) in zip(sent, unwrapped, strict=True):
        assert order.params.keys() == reply.params.keys() == {"body"}
        assert torch.equal(reply.params["body"], answer.params["body"])
        assert torch.equal(order.params["body"], whole.params["body"])
        assert (order.settings, order.round, order.rng) == (whole.settings, whole.round, whole.rng)
        assert (reply.client, reply.weight, reply.metrics) == (answer.client, answer.weight, answer.metrics)
    assert torch.equal(done[-1].state["params"]["body"], plain[-1].state["params"]["body"])
    assert torch.equal(done[-1].state["params"]["head"], START["head"])  # the server's copy is never touched
    (traffic,) = done[0].traffic
    assert traffic.bytes_up == traffic.bytes_down == dict.fromkeys(range(3), 8)


def test_a_client_starts_from_the_initial_tensor_and_goes_on_with_its_own():
    for num_rounds in (1, 2, 3):
        _, _, memories = played(with_local(adding(), ["head"]), num_rounds)
        assert {k: m["params"]["head"].tolist() for k, m in memories.items()} == {
            k: [num_rounds * (k + 1.0)] * 3 for k in range(3)
        }
        assert all(
            memory.keys() == {"params", "rounds"} and memory["rounds"] == num_rounds for memory in memories.values()
        )


def test_a_client_that_sat_out_keeps_what_it_had():
    _, _, memories = played(with_local(adding(), ["head"]), cohort=PROFILES[:2])
    assert memories.keys() == {0, 1}


def test_what_was_trained_in_an_earlier_round_is_kept_when_another_tensor_is_trained():
    """As with layers that are drawn anew each round: round 0 trains the body alone, round 1 the head alone."""
    method = adding()
    fit = method.exchanges[0]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        name = ("body", "head")[order.round]
        return replace(reply, params={name: reply.params[name]}), memory

    def keep(state, replies):
        list(replies)
        return state

    turns = method._replace(exchanges=(fit._replace(work=work, merge=keep),))
    _, _, memories = played(with_local(turns, START))
    for client, memory in memories.items():
        assert {name: tensor.tolist() for name, tensor in memory["params"].items()} == {
            "body": [client + 1.0] * 2,
            "head": [client + 1.0] * 3,
        }


def test_view_holds_what_the_server_may_send_and_nothing_else_changes():
    method = with_local(adding(), ["head"])
    view = method.view({"params": START}, PROFILES[1])
    assert view.params.keys() == {"body"}
    assert view.settings == {"for": 1}
    assert method.name == "adding"
    assert [exchange.name for exchange in method.exchanges] == ["fit"]


def test_names_that_are_not_there_and_no_names_at_all_change_nothing():
    plain, _, _ = played(adding())
    for names in ([], ["stranger"]):
        done, _, memories = played(with_local(adding(), names))
        assert all(torch.equal(done[-1].state["params"][n], t) for n, t in plain[-1].state["params"].items())
        assert all(memory["params"] == {} for memory in memories.values())


def test_with_everything_local_nothing_travels_and_two_wraps_are_one():
    for method in (with_local(adding(), START), with_local(with_local(adding(), ["head"]), ["body"])):
        _, sent, memories = played(method._replace(exchanges=tuple(e._replace(merge=_keep) for e in method.exchanges)))
        assert all(not order.params and not reply.params for order, reply in sent)
        assert {k: m["params"]["body"].tolist() for k, m in memories.items()} == {
            k: [2 * (k + 1.0)] * 2 for k in range(3)
        }


def _keep(state, replies):
    assert [reply.client for reply in replies] == [0, 1, 2]
    return state


class Scored(int):
    """A client of ``adding`` that scores the first number of the body it is given."""

    def evaluate(self, order, memory):
        used = {**order.params, **memory.get("params", {})}
        return {"accuracy": float(used["body"][0]), "examples": 1.0}

    @property
    def id(self):
        return int(self)


def scored(method):
    engine, profiles = LocalEngine({k: Scored(k) for k in range(3)}), PROFILES
    done = list(rounds(method, lambda number: profiles[:2], engine.send, Rng(0), num_rounds=2))
    return done, closed(method, done[-1].state, profiles, engine.send, Rng(0), num_rounds=2)


def test_clients_score_what_they_receive_and_all_of_them_what_the_run_ends_with():
    done, (closing,) = scored(with_received_scores(adding()))
    received = [one.traffic[0].metrics[1]["received_accuracy"] for one in done]
    assert received == [0.0, 1.5]  # the mean of 1 and 2 after the first round
    assert closing.exchange == "score"
    assert {k: own["accuracy"] for k, own in closing.metrics.items()} == {0: 3.0, 1: 3.0, 2: 3.0}
    assert (closing.bytes_up, closing.dropped) == ({0: 0, 1: 0, 2: 0}, {})


def test_an_order_that_is_a_part_of_a_model_is_not_scored():
    method = adding()
    method = method._replace(exchanges=(method.exchanges[0]._replace(partial=True),))
    done, (closing,) = scored(with_received_scores(method))
    assert all(own == {"loss": 0.5} for one in done for own in one.traffic[0].metrics.values())
    assert {own["accuracy"] for own in closing.metrics.values()} == {3.0}


def test_a_client_that_is_gone_at_the_end_is_missed_and_nothing_else():
    method = with_received_scores(adding())

    def send(exchange, orders):
        return [Failure(0, "is away"), Reply(1, {}, 1.0, {"accuracy": 0.5})]

    (closing,) = closed(method, {"params": START}, PROFILES, send, Rng(0), num_rounds=2)
    assert closing.metrics == {1: {"accuracy": 0.5}}
    assert closing.dropped == {0: "is away", 2: "sent no reply"}
