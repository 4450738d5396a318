"""Capability groups: the budget of every client."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget


def fractions(text: str) -> tuple[Fraction, ...]:
    """The groups' exact shares of the clients, which sum to 1: ``"6-3-1"`` is ``(3/5, 3/10, 1/10)``.

    Raises
    ------
    ConfigError
        if ``text`` is not whole numbers above 0 joined by hyphens.
    """
    parts = [part.strip() for part in text.split("-")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"clients.shares is '{text}'; it must be whole numbers above 0 joined by hyphens, one for each group of "
            "clients, such as '1-1-1' or '6-3-1'"
        )
    total = sum(int(part) for part in parts)
    return tuple(Fraction(int(part), total) for part in parts)


def sizes(shares: Sequence[Fraction], num_clients: int) -> tuple[int, ...]:
    """The number of clients in each group: ``floor(share * num_clients)``, and the remainder in the last group.

    100 clients in three equal shares are 33, 33 and 34.

    Raises
    ------
    ConfigError
        if a group would have no client.
    """
    counts = [int(share * num_clients) for share in shares[:-1]]
    counts.append(num_clients - sum(counts))
    if min(counts) < 1:
        raise ConfigError(
            f"clients.shares puts {', '.join(map(str, counts))} of partition.num_clients = {num_clients} clients into "
            f"its {len(counts)} groups; every group needs at least one client: use more clients or fewer groups"
        )
    return tuple(counts)


def capability_groups(
    shares: Sequence[Fraction],
    budgets: Sequence[int],
    num_clients: int,
    shuffle: Rng | None = None,
    ranks: Sequence[int] | None = None,
) -> tuple[Budget, ...]:
    """The budget of every client, in client order: the first share of the clients has the first budget, and so on.

    Parameters
    ----------
    shares
        The groups' shares of the clients.
    budgets
        The number of layers of each group.
    num_clients
        The number of clients.
    shuffle
        If given, the random stream that assigns clients to groups; the sizes of the groups stay the same.
    ranks
        The rank of each group's adapters; if left out, that of the layout.

    Raises
    ------
    ConfigError
        if there is not one budget and one rank for each share, or a group would have no client.
    """
    if len(budgets) != len(shares):
        raise ConfigError(
            f"clients.budgets has {len(budgets)} numbers ({list(budgets)}) and clients.shares has {len(shares)} "
            "groups; give one budget for each group"
        )
    if ranks is not None and len(ranks) != len(shares):
        raise ConfigError(
            f"clients.ranks has {len(ranks)} numbers ({list(ranks)}) and clients.shares has {len(shares)} groups; give "
            "one rank for each group, or leave clients.ranks out"
        )
    counts = sizes(shares, num_clients)
    kinds = [Budget(layers, ranks[group] if ranks else None) for group, layers in enumerate(budgets)]
    by_index = [budget for budget, count in zip(kinds, counts, strict=True) for _ in range(count)]
    if shuffle is None:
        return tuple(by_index)
    return tuple(by_index[index] for index in shuffle.numpy().permutation(num_clients).tolist())


def layers_of(budgets: Sequence[int | str], num_layers: int) -> tuple[int, ...]:
    """The number of layers of each budget; a share of them, as ``"50%"``, is rounded, half up, and at least 1."""
    return tuple(
        max(1, int(Fraction(budget.rstrip("%")) * num_layers / 100 + Fraction(1, 2)))
        if isinstance(budget, str)
        else budget
        for budget in budgets
    )


def check_budgets(budgets: Sequence[int], num_layers: int) -> None:
    """Raise ConfigError if a budget is below 1 or above ``num_layers``, with one problem for each."""
    problems = [
        f"clients.budgets[{number}] is {budget}; the model has {num_layers} blocks, so a budget is a number of layers "
        f"from 1 to {num_layers}"
        for number, budget in enumerate(budgets)
        if not 1 <= budget <= num_layers
    ]
    if problems:
        raise ConfigError(problems)
