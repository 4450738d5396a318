"""Four small federated methods on synthetic data: what the contract must be able to carry.

Each is a real method in torch, as short as its idea allows, and a ``..._setup()`` that puts it among clients:
``fedavg`` (one exchange), ``vertical`` (two exchanges, private encoders, labels on the server), ``distillation`` (the
server trains a model of its own on data of its own) and ``groups`` (tensors of unlike names and shapes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from promises import Setup
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from fedquilt.aggregate.server_optimizer import with_server_optimizer
from fedquilt.aggregate.settings import ServerOptimizer
from fedquilt.client.penalty import with_proximal
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import add, scale, select, sub, without
from fedquilt.core.rng import Rng
from fedquilt.core.server import SERVER, ServerModel, after_round, server_order, server_start
from fedquilt.core.types import Budget, Layout, Memory, Order, Params, Profile, Reply, Tree, Turn
from fedquilt.core.wire import with_wire_dtype
from fedquilt.core.wrap import with_local

DATA = Rng(2024).child("toy data")


@dataclass(frozen=True)
class Party:
    """A toy client (or the server, as a client of its own): its columns, perhaps labels, its first model."""

    id: int
    inputs: Tensor
    labels: Tensor | None = None
    initial: Params = field(default_factory=dict)
    architecture: str = "linear"


def normal(name: str, *shape: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=DATA.child(name).torch(), dtype=torch.float64)


def descended(loss: Callable[[Params], Tensor], params: Params, rate: float) -> tuple[Params, float]:
    """The parameters after one step of gradient descent, and the loss before it."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    value = loss(leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    return {name: params[name] - rate * g for name, g in zip(params, gradients, strict=True)}, value.item()


def moved(base: Params, replies: Iterable[Reply]) -> Params:
    """``base + sum_k w_k (theta_k - base) / sum_k w_k``, one reply at a time; exactly ``base`` if nobody moved."""
    total, weight = scale(base, 0.0), 0.0
    for reply in replies:
        total = add(total, scale(sub(reply.params, base), reply.weight))
        weight += reply.weight
    return add(base, scale(total, 1.0 / weight))


def profiles_of(clients: Mapping[int, Party]) -> tuple[Profile, ...]:
    return tuple(Profile(c.id, len(c.inputs), c.architecture, Budget(1), "toy") for c in clients.values())


# One exchange: federated averaging of a linear regression ------------------------------------------------------------


def predicted(params: Params, inputs: Tensor) -> Tensor:
    return inputs @ params["weight"] + params["bias"]


def whole(order: Order) -> Params:
    """What a reply holds whose client trains all that it was sent."""
    return dict(order.params)


def fedavg(dim: int, *, steps: int = 3, rate: float = 0.1, batch: int | None = None) -> Method:
    def init(rng: Rng) -> Tree:
        weight = torch.randn(dim, generator=rng.torch(), dtype=torch.float64)
        return {"params": {"weight": weight, "bias": torch.zeros((), dtype=torch.float64)}}

    def ask(state: Tree, turn: Turn) -> dict[int, Order]:
        return {profile.id: Order(state["params"], {"steps": steps}) for profile in turn.cohort}

    def work(client: Party, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        params = {**client.initial, **order.params, **memory.get("params", {})}
        shuffle = order.rng.child("rows").torch()
        for _ in range(order.settings["steps"]):
            rows = torch.randperm(len(client.inputs), generator=shuffle)[:batch]
            x, y = client.inputs[rows], client.labels[rows]
            params, loss = descended(lambda p, x=x, y=y: mse_loss(predicted(p, x), y), params, rate)
        return Reply(client.id, params, len(client.inputs), {"loss": loss}), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        return {**state, "params": moved(state["params"], replies)}

    def view(state: Tree, profile: Profile) -> Order:
        return Order(state["params"])

    return Method("toy-fedavg", init, (Exchange("fit", ask, work, merge, whole),), view)


def regression_clients() -> dict[int, Party]:
    truth, clients = normal("truth", 4), {}
    start = {"weight": normal("start", 4), "bias": torch.zeros((), dtype=torch.float64)}
    for k, rows in enumerate([8, 5, 12, 7]):
        x = normal(f"x{k}", rows, 4)
        clients[k] = Party(k, x, x @ truth + 0.5 + normal(f"noise{k}", rows, spread=0.1), start)
    return clients


def fedavg_setup() -> Setup:
    clients = regression_clients()
    return Setup(fedavg(4, batch=4), profiles_of(clients), clients)


def local_bias_setup() -> Setup:
    """The same method with the bias kept by each client: a change of one behaviour is a function Method -> Method."""
    clients = regression_clients()
    return Setup(kept_bias(fedavg(4, batch=4)), profiles_of(clients), clients)


def short(build: Callable[[], Setup], dtype: str) -> Callable[[], Setup]:
    """The same among the same clients, with tensors in fewer bits on the wire."""

    def shortened() -> Setup:
        setup = build()
        return setup._replace(method=with_wire_dtype(setup.method, dtype))

    return shortened


def changed(build: Callable[[], Setup], *, mu: float = 0.0, kind: str | None = None) -> Callable[[], Setup]:
    """The same among the same clients, held near what they receive, and with a server optimiser."""

    def made() -> Setup:
        setup = build()
        method = with_proximal(setup.method, mu)
        if kind is None:
            return setup._replace(method=method)

        def learned(state: Tree) -> Tree:  # moments fade though no client moves
            return setup.learned(without(state, ["moments"]))

        return setup._replace(method=with_server_optimizer(method, ServerOptimizer(kind)), learned=learned)

    return made


def kept_bias(method: Method) -> Method:
    def trimmed(rng: Rng) -> Tree:
        return {"params": without(method.init(rng)["params"], ["bias"])}

    return with_local(method, ["bias"])._replace(init=trimmed)


# Two exchanges: a vertical split network ------------------------------------------------------------


def embedded(encoder: Params, columns: Tensor) -> Tensor:
    return torch.tanh(columns @ encoder["encoder.weight"] + encoder["encoder.bias"])  # (rows, width)


def vertical(labels: Tensor, parties: tuple[int, ...], width: int, *, batch: int = 16, rate: float = 0.2) -> Method:
    """Parties hold other columns of the same rows: embeddings go up, their gradients come down, encoders stay home."""
    num_classes = int(labels.max()) + 1

    def init(rng: Rng) -> Tree:
        weight = torch.randn(len(parties) * width, num_classes, generator=rng.torch(), dtype=torch.float64)
        head = {"head.weight": weight, "head.bias": torch.zeros(num_classes, dtype=torch.float64)}
        return {"params": head, "labels": labels, "gradients": {}}

    def rows_of(turn: Turn) -> list[int]:  # the turn's stream is the round's, so both exchanges see the same rows
        return torch.randperm(len(labels), generator=turn.rng.child("rows").torch())[:batch].tolist()

    def ask_embed(state: Tree, turn: Turn) -> dict[int, Order]:
        return {profile.id: Order({}, {"rows": rows_of(turn)}) for profile in turn.cohort}

    def embed(client: Party, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        memory = memory or {"params": client.initial}
        rows = torch.tensor(order.settings["rows"])
        up = {"embedding": embedded(memory["params"], client.inputs[rows]), "rows": rows}
        return Reply(client.id, up, len(rows)), memory

    def merge_embeddings(state: Tree, replies: Iterable[Reply]) -> Tree:
        received = {}
        for reply in replies:
            received[reply.client], rows = reply.params["embedding"], reply.params["rows"]
        absent = torch.zeros(len(rows), width, dtype=torch.float64)
        leaves = {f"party.{k}": received.get(k, absent) for k in parties}

        def loss(params: Params) -> Tensor:
            joined = torch.cat([params[f"party.{k}"] for k in parties], dim=1)  # (rows, parties * width)
            return cross_entropy(joined @ params["head.weight"] + params["head.bias"], state["labels"][rows])

        after, _ = descended(loss, {**state["params"], **leaves}, rate)
        # a step of size `rate` on the embeddings themselves carries their gradient
        gradients = {str(k): (leaves[f"party.{k}"] - after[f"party.{k}"]) / rate for k in received}
        return {**state, "params": select(after, state["params"].keys()), "gradients": gradients}

    def ask_backprop(state: Tree, turn: Turn) -> dict[int, Order]:
        present = [profile.id for profile in turn.cohort if str(profile.id) in state["gradients"]]
        return {k: Order({"gradient": state["gradients"][str(k)]}, {"rows": rows_of(turn)}) for k in present}

    def backprop(client: Party, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        columns, down = client.inputs[torch.tensor(order.settings["rows"])], order.params["gradient"]
        encoder, _ = descended(lambda own: (embedded(own, columns) * down).sum(), memory["params"], rate)
        return Reply(client.id, {}, len(columns)), {**memory, "params": encoder}

    def merge_nothing(state: Tree, replies: Iterable[Reply]) -> Tree:
        return {**state, "gradients": {}}

    def view(state: Tree, profile: Profile) -> Order:
        return Order(state["params"])

    exchanges = (
        Exchange("embed", ask_embed, embed, merge_embeddings),
        Exchange("backprop", ask_backprop, backprop, merge_nothing),
    )
    return Method("toy-vertical", init, exchanges, view)


def vertical_setup() -> Setup:
    num_rows, widths, width = 48, (3, 5, 2), 4
    columns = [normal(f"columns{k}", num_rows, w) for k, w in enumerate(widths)]
    labels = (columns[0][:, 0] + columns[1][:, 1] * columns[2][:, 0] > 0).long()
    clients = {}
    for k, w in enumerate(widths):
        encoder = {"encoder.weight": normal(f"encoder{k}", w, width), "encoder.bias": normal(f"encoder bias{k}", width)}
        clients[k] = Party(k, columns[k], None, encoder)
    return Setup(vertical(labels, (0, 1, 2), width), profiles_of(clients), clients)


# A server with a model and data of its own: distillation ------------------------------------------------------------


def logits_of(params: Params, inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ params["hidden"]) @ params["output"]


def distillation(federation: Federation, public: Tensor, *, steps: int = 5, rate: float = 0.3) -> Method:
    """Only predictions on ``public`` rows travel; the server's model learns from their mean and from its own labels."""
    party: Party = federation.server.worker

    def init(rng: Rng) -> Tree:
        return {"server": server_start(federation.server, rng)}

    def ask(state: Tree, turn: Turn) -> dict[int, Order]:
        lesson = {"logits": logits_of(state["server"]["params"], public)}
        return {profile.id: Order(lesson) for profile in turn.cohort}

    def work(client: Party, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        own = (memory or {"params": client.initial})["params"]
        soft = order.params["logits"].softmax(1)

        def loss(params: Params) -> Tensor:
            taught = cross_entropy(logits_of(params, public), soft)
            return cross_entropy(logits_of(params, client.inputs), client.labels) + 0.2 * taught

        for _ in range(steps):
            own, value = descended(loss, own, rate)
        reply = Reply(client.id, {"logits": logits_of(own, public)}, len(client.inputs), {"loss": value})
        return reply, {**memory, "params": own}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        total, weight = torch.zeros(()), 0.0
        for reply in replies:
            total = total + reply.weight * reply.params["logits"].softmax(1)
            weight += reply.weight
        soft, own = total / weight, state["server"]
        order = server_order(own, "rows")
        params, generator = order.params, order.rng.torch()
        for _ in range(4 * steps):
            rows = torch.randperm(len(party.inputs), generator=generator)[:8]
            x, y = party.inputs[rows], party.labels[rows]

            def loss(params: Params, x: Tensor = x, y: Tensor = y) -> Tensor:
                return cross_entropy(logits_of(params, public), soft) + 0.2 * cross_entropy(logits_of(params, x), y)

            params, _ = descended(loss, params, rate)
        return {**state, "server": after_round(own, params)}

    def view(state: Tree, profile: Profile) -> Order:
        return Order(state["server"]["params"])

    exchange = Exchange("predict", ask, work, merge)
    return Method("toy-distillation", init, (exchange,), view, server=lambda state: state["server"])


def distillation_setup() -> Setup:
    def two_layers(rng: Rng, width: int) -> Params:
        hidden = torch.randn(2, width, generator=rng.child("hidden").torch(), dtype=torch.float64)
        output = torch.randn(width, 3, generator=rng.child("output").torch(), dtype=torch.float64) / width
        return {"hidden": hidden, "output": output}

    clients = {}
    for k, rows in enumerate([30, 20, 40, 25]):
        x, y = three_clusters(f"client{k}", rows)
        clients[k] = Party(k, x, y, two_layers(DATA.child("client", k), width=6 + k), "small")
    x, y = three_clusters("server", 12)
    large = Layout("large", 2, {"hidden": 0, "output": 1}, {"hidden": (2, 16), "output": (16, 3)})
    own = ServerModel(large, lambda rng: two_layers(rng, width=16), Party(SERVER, x, y, {}, "large"))
    federation = Federation(profiles=profiles_of(clients), layouts={}, initial={}, rounds=3, server=own)
    public, _ = three_clusters("public", 24)
    return Setup(distillation(federation, public), federation.profiles, clients)


def three_clusters(name: str, rows: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 3, (rows,), generator=DATA.child(name, "labels").torch())
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
    return centres[labels] + normal(name, rows, 2, spread=0.5), labels


# Unlike architectures: tensors of unlike names and shapes, one of them shared -----------------------------------------

FEATURES: dict[str, Callable[[Params, Tensor], Tensor]] = {
    "narrow": lambda p, x: x @ p["narrow.kernel"],  # (rows, 4)
    "wide": lambda p, x: torch.tanh(x @ p["wide.blocks.0.weight"]) @ p["wide.blocks.1.weight"],  # (rows, 4)
}
SHARED = ("head.weight",)


def groups(federation: Federation, *, steps: int = 2, rate: float = 0.1) -> Method:
    """Clients average with their own architecture, and the shared head with everyone."""
    architecture_of = {profile.id: profile.architecture for profile in federation.profiles}

    def init(rng: Rng) -> Tree:
        own = {name: without(make(rng.child(name)), SHARED) for name, make in federation.initial.items()}
        first = next(iter(federation.initial.values()))
        return {"groups": own, "shared": select(first(rng.child("shared")), SHARED)}

    def view(state: Tree, profile: Profile) -> Order:
        return Order({**state["groups"][profile.architecture], **state["shared"]})

    def ask(state: Tree, turn: Turn) -> dict[int, Order]:
        return {profile.id: view(state, profile) for profile in turn.cohort}

    def work(client: Party, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        features, params = FEATURES[client.architecture], order.params
        truth = one_hot(client.labels, 2).double()
        for _ in range(steps):
            params, loss = descended(
                lambda p: mse_loss(features(p, client.inputs) @ p["head.weight"], truth), params, rate
            )
        return Reply(client.id, params, len(client.inputs), {"loss": loss}), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        base = {**state["groups"], "": state["shared"]}
        total, weight = {name: scale(params, 0.0) for name, params in base.items()}, dict.fromkeys(base, 0.0)
        for reply in replies:
            for name, part in ((architecture_of[reply.client], without(reply.params, SHARED)), ("", reply.params)):
                change = sub(select(part, base[name].keys()), base[name])
                total[name], weight[name] = add(total[name], scale(change, reply.weight)), weight[name] + reply.weight
        merged = {n: add(base[n], scale(total[n], 1 / weight[n])) if weight[n] else base[n] for n in base}
        return {**state, "groups": {n: merged[n] for n in state["groups"]}, "shared": merged[""]}

    return Method("toy-groups", init, (Exchange("fit", ask, work, merge, whole),), view)


def groups_federation(clients: Mapping[int, Party]) -> Federation:
    shapes = {
        "narrow": {"narrow.kernel": (3, 4), "head.weight": (4, 2)},
        "wide": {"wide.blocks.0.weight": (3, 7), "wide.blocks.1.weight": (7, 4), "head.weight": (4, 2)},
    }
    depths = {"narrow.kernel": 0, "wide.blocks.0.weight": 0, "wide.blocks.1.weight": 1, "head.weight": None}

    def maker(own: Mapping[str, tuple[int, ...]]) -> Callable[[Rng], Params]:
        def make(rng: Rng) -> Params:
            return {n: torch.randn(s, generator=rng.child(n).torch(), dtype=torch.float64) / 2 for n, s in own.items()}

        return make

    return Federation(
        profiles=profiles_of(clients),
        layouts={a: Layout(a, len(s) - 1, {n: depths[n] for n in s}, s) for a, s in shapes.items()},
        initial={architecture: maker(own) for architecture, own in shapes.items()},
        rounds=3,
    )


def groups_clients() -> dict[int, Party]:
    clients = {}
    for k, (rows, architecture) in enumerate([(9, "narrow"), (6, "wide"), (11, "wide"), (7, "narrow"), (5, "wide")]):
        x = normal(f"group inputs{k}", rows, 3)
        clients[k] = Party(k, x, (x[:, 0] > 0).long(), {}, architecture)
    return clients


def groups_setup() -> Setup:
    clients = groups_clients()
    return Setup(groups(groups_federation(clients)), profiles_of(clients), clients)
