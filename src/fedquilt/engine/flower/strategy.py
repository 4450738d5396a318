"""A fedquilt method as a Flower Strategy, for use in any ServerApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from logging import INFO
from typing import Any, NoReturn

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedquilt.core.checks import Check
from fedquilt.core.errors import FedquiltError
from fedquilt.core.loop import Round, needed, rounds
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Params, Profile, Tree
from fedquilt.engine.flower.grid import Allowed, GridEngine
from fedquilt.engine.flower.handshake import Card, run_key
from fedquilt.engine.flower.packing import MAX_BYTES


class MethodStrategy(Strategy):
    """Runs a method's rounds over a Grid whose nodes run ``fedquilt.engine.flower.client.client_app``.

    After ``start``, ``state`` is the server's state and ``engine.messages`` the number of messages by type.

    Parameters
    ----------
    method
        The method.
    profiles
        The profiles of all clients.
    cards
        What each client must announce before training (``handshake.card``).
    rng
        The run's random stream.
    cohorts
        Gives the clients of round ``t``; by default all of ``profiles``.
    quorum, min_replies, check
        As for ``core.loop.rounds``.
    run, grace, allowed, max_bytes
        As for ``GridEngine``.
    wait
        Seconds to wait for the clients to join.
    """

    def __init__(
        self,
        method: Method,
        profiles: Sequence[Profile],
        cards: Mapping[ClientId, Card],
        rng: Rng,
        *,
        cohorts: Callable[[int], Sequence[Profile]] | None = None,
        quorum: float = 0.0,
        min_replies: int = 1,
        check: Check | None = None,
        run: str | None = None,
        wait: float = 300.0,
        grace: float | None = None,
        allowed: Allowed = lambda exchange, client, order: None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.method, self.profiles, self.cards, self.rng = method, tuple(profiles), cards, rng
        self.cohorts = cohorts or (lambda number: self.profiles)
        self.quorum, self.min_replies, self.check = quorum, min_replies, check
        self.run, self.wait, self.grace, self.allowed, self.max_bytes = run, wait, grace, allowed, max_bytes
        self.state: Tree = None
        self.engine: GridEngine | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds; returns the global model's tensors and, by round (from 1), the mean of the clients' metrics.

        Parameters
        ----------
        grid
            Flower's Grid.
        num_rounds
            The number of rounds.
        timeout
            Seconds that a reply may take.
        evaluate_fn
            Called before the first round (as 0) and after each.
        initial_arrays, train_config, evaluate_config
            Must be left out: a method makes its own initial tensors and gives each client its own settings.

        Raises
        ------
        FedquiltError
            if the clients do not match the run, too few replies came in a round, or an argument is given that must be
            left out.
        """
        for name, value in (
            ("initial_arrays", initial_arrays),
            ("train_config", train_config),
            ("evaluate_config", evaluate_config),
        ):
            if value:
                raise FedquiltError(f"{name} is given, but the method {self.method.name} makes its own; leave it out")
        self.summary()
        self.state = self.method.init(self.rng.child("init"))
        result = Result(arrays=self._arrays())
        self._evaluate(evaluate_fn, 0, result)
        for done in self.rounds(grid, num_rounds, timeout=timeout):
            result.arrays = self._arrays()
            metrics = _means(done)
            if metrics:
                result.train_metrics_clientapp[done.number + 1] = MetricRecord(metrics)
            dropped = {client: reason for moved in done.traffic for client, reason in moved.dropped.items()}
            log(INFO, "[ROUND %s/%s] %s; dropped: %s", done.number + 1, num_rounds, metrics, dropped or "nobody")
            self._evaluate(evaluate_fn, done.number + 1, result)
        return result

    def rounds(
        self, grid: Grid, num_rounds: int, *, timeout: float = 3600, state: Tree = None, start: int = 0
    ) -> Iterator[Round]:
        """Yield the finished rounds, as ``core.loop.rounds`` does, from ``state`` or the current one.

        Parameters
        ----------
        grid
            Flower's Grid.
        num_rounds
            Run the rounds from ``start`` up to this number.
        timeout
            Seconds that a reply may take.
        state
            The server's state to start from; by default the current one.
        start
            The first round.

        Raises
        ------
        FedquiltError
            if the clients do not match the run, or too few replies came in a round.
        """
        self.state = self.state if state is None else state
        self.engine = GridEngine(
            grid,
            self.cards,
            self.run or run_key(),
            timeout=timeout,
            grace=self.grace,
            enough=lambda orders: needed(orders, self.quorum, self.min_replies),
            allowed=self.allowed,
            max_bytes=self.max_bytes,
        )
        self.engine.hello(self.wait)
        for done in rounds(
            self.method,
            self.cohorts,
            self.engine.send,
            self.rng,
            num_rounds=num_rounds,
            state=self.state,
            start=start,
            quorum=self.quorum,
            min_replies=self.min_replies,
            check=self.check,
        ):
            self.state = done.state
            yield done

    def summary(self) -> None:
        """Log the method, its exchanges and the number of clients."""
        names = ", ".join(exchange.name for exchange in self.method.exchanges)
        log(INFO, "fedquilt method %s, exchanges: %s, clients: %s", self.method.name, names, len(self.profiles))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raise FedquiltError: the method determines the exchanges of a round, so ``start`` sends and merges itself."""
        self._refuse("configure_train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raise FedquiltError, like ``configure_train``."""
        self._refuse("aggregate_train")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raise FedquiltError, like ``configure_train``: clients evaluate within their training replies."""
        self._refuse("configure_evaluate")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Raise FedquiltError, like ``configure_train``."""
        self._refuse("aggregate_evaluate")

    def _refuse(self, name: str) -> NoReturn:
        raise FedquiltError(
            f"{name} was called on fedquilt's strategy, which runs whole rounds itself: call start(grid). A strategy "
            "that wraps another one (such as Flower's differential privacy) cannot wrap this one"
        )

    def _arrays(self) -> ArrayRecord:
        """Return the tensors that the first client would be sent, as Flower's arrays."""
        params: Params = self.method.view(self.state, self.profiles[0]).params
        return ArrayRecord({name: Array(_numpy(tensor)) for name, tensor in params.items()})

    def _evaluate(self, function: Callable[..., MetricRecord | None] | None, number: int, result: Result) -> None:
        scores = function(number, result.arrays) if function is not None else None
        if scores is not None:
            result.evaluate_metrics_serverapp[number] = scores


def _numpy(tensor: torch.Tensor) -> Any:
    try:
        return tensor.detach().cpu().numpy()
    except TypeError:  # numpy has no bfloat16 or float8
        return tensor.detach().cpu().float().numpy()


def _means(done: Round) -> dict[str, MetricRecordValues]:
    """Return the mean over clients of every metric that all clients of an exchange sent."""
    means: dict[str, MetricRecordValues] = {}
    for moved in done.traffic:
        sent = [*moved.metrics.values()]
        for name in sorted(set.intersection(*(set(metrics) for metrics in sent)) if sent else ()):
            means[name] = sum(metrics[name] for metrics in sent) / len(sent)
    return means
