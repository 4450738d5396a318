"""Clients evaluated together: the same scores as one by one, from as few passes as there are models."""

from dataclasses import replace

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, several, small

from fedquilt.client.generation import Answering
from fedquilt.client.together import evaluated
from fedquilt.core.types import Order


def passes(bench):
    """The number of rows of each forward pass from now on."""
    seen = []
    bench.model.register_forward_hook(lambda _model, _args, output: seen.append(len(output.logits)))
    return seen


@pytest.mark.parametrize("model", [VIT, LLAMA, BERT, GPT2])
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_the_scores_are_those_of_each_client_alone(model, batch_size):
    scene = small(model)
    clients = [replace(client, batch_size=batch_size) for client in scene.clients.values()]
    own = {"params": {name: torch.full_like(tensor, 0.1) for name, tensor in clients[0].initial.items()}}
    memories = [{}, own, {"visits": 3}]
    asked = [(client, Order({}), memory) for client, memory in zip(clients, memories, strict=True)]
    together = evaluated(asked)
    assert [*together] == [0, 1, 2]
    for client, order, memory in asked:
        alone = client.evaluate(order, memory)
        assert together[client.id] == pytest.approx(alone, rel=1e-5)
        assert together[client.id]["accuracy"] == alone["accuracy"]


def test_answers_are_counted_for_the_client_that_was_asked():
    scene = small(LLAMA)
    answering = Answering("exact", lambda ids: " ".join(map(str, ids)), 4)
    clients = [replace(client, answering=answering) for client in scene.clients.values()]
    # the second client's rows ask for what the model writes, so that its answers alone are right
    first = clients[1].splits["test"]
    ids, labels = first["input_ids"].clone(), torch.full_like(first["labels"], -100)
    bench = scene.bench
    bench.load(clients[1].initial)
    with torch.no_grad():
        for row in range(len(ids)):
            ids[row, 2] = bench.model(input_ids=ids[row : row + 1, :2].long()).logits[0, -1].argmax()
    labels[:, 2] = ids[:, 2].long()
    mask = (torch.arange(ids.shape[1]) < 3).int().repeat(len(ids), 1)
    rows = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    clients[1] = replace(clients[1], splits={"test": rows}, answering=replace(answering, new_tokens=1))
    clients[0] = replace(clients[0], answering=clients[1].answering)
    together = evaluated((client, Order({}), {}) for client in clients)
    assert together[1]["accuracy"] == 1.0
    assert together[0]["accuracy"] == clients[0].evaluate(Order({}))["accuracy"] < 1.0
    assert together[2] == pytest.approx(clients[2].evaluate(Order({})), rel=1e-5)


def test_one_model_is_one_pass_and_each_other_model_one_more():
    scene = small()
    seen = passes(scene.bench)
    plain = [(client, Order({}), {}) for client in scene.clients.values()]
    evaluated(plain)
    assert seen == [18]
    seen.clear()
    other = {name: tensor.clone() for name, tensor in scene.clients[0].initial.items()}  # equal, and not the same
    evaluated([*plain[:2], (plain[2][0], Order(other), {})])
    assert sorted(seen) == [6, 12]


def test_batches_are_full_and_texts_are_padded_as_little_as_can_be():
    scene = small(BERT)
    widths = []
    scene.bench.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    evaluated((replace(client, batch_size=6), Order({}), {}) for client in scene.clients.values())
    lengths = torch.cat([client.splits["test"]["attention_mask"].sum(1) for client in scene.clients.values()])
    assert widths == [(6, int(lengths.sort().values[last])) for last in (5, 11, 17)]


def test_architectures_and_tasks_do_not_mix_and_clients_keep_their_order():
    scene = several((VIT, BERT, LLAMA), mixed=True)
    together = evaluated((client, Order({}), {}) for client in scene.clients.values())
    assert [*together] == [*scene.clients]
    for id, client in scene.clients.items():
        assert together[id] == pytest.approx(client.evaluate(Order({})), rel=1e-5)


def test_clients_without_such_rows_are_left_out():
    clients = [*small().clients.values()]
    none = {name: column[:0] for name, column in clients[1].splits["test"].items()}
    asked = [clients[0], replace(clients[1], splits={"test": none}), replace(clients[2], splits={})]
    assert [*evaluated((client, Order({}), {}) for client in asked)] == [0]
    assert evaluated(((client, Order({}), {}) for client in asked), "validation") == {}


def test_with_many_models_the_first_do_not_wait_for_the_last():
    scene = small()
    seen = passes(scene.bench)
    held = []

    def asked():
        for number in range(40):
            held.append(len(seen))
            other = {name: tensor.clone() for name, tensor in scene.clients[0].initial.items()}
            yield replace(scene.clients[0], profile=replace(scene.clients[0].profile, id=number)), Order(other), {}

    together = evaluated(asked())
    assert [*together] == [*range(40)]
    assert len({scores["loss"] for scores in together.values()}) == 1
    assert held[-1] == 40 - 1 - 16
