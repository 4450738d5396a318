"""The kinds of arithmetic calculations, with the templates of their word problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NAMES = (
    "Ana",
    "Ben",
    "Chloe",
    "Deniz",
    "Elif",
    "Femi",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kim",
    "Lea",
    "Milo",
    "Noor",
)
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "stones", "tickets")
"""Fill the placeholders ``{name}`` and ``{things}`` of the templates."""

NUM_STORIES = 3
"""Templates of each kind that occur in training; one more is held out."""


@dataclass(frozen=True)
class Kind:
    """One kind of calculation.

    Attributes
    ----------
    draw
        Draws operands.
    steps
        The lines of the program after the assignments of the operands.
    answer
        Computes the answer from the operands.
    alike
        How many of the first operands may be exchanged without changing the calculation.
    templates
        The word problems; the last one is held out.
    says
        The calculation as a line of plain arithmetic.
    worked
        The lines of the calculation step by step; ``d`` is the result of the first step of two.
    parts
        The kinds of the two steps, for a calculation of two.
    """

    draw: Callable[[np.random.Generator], tuple[int, ...]]
    steps: tuple[str, ...]
    answer: Callable[..., int]
    alike: int
    templates: tuple[str, ...]
    says: str
    worked: tuple[str, ...]
    parts: tuple[str, ...] = ()


def _from(low: int, high: int, count: int) -> Callable[[np.random.Generator], tuple[int, ...]]:
    return lambda draws: tuple(int(n) for n in draws.integers(low, high + 1, count))


def _falling(draws: np.random.Generator) -> tuple[int, int]:
    small, rest = _from(2, 20, 2)(draws)
    return small + rest, small


def _divisible(draws: np.random.Generator) -> tuple[int, int]:
    quotient, divisor = _from(2, 9, 2)(draws)
    return quotient * divisor, divisor


def _sum_less(draws: np.random.Generator) -> tuple[int, int, int]:
    first, second = _from(3, 12, 2)(draws)
    return first, second, int(draws.integers(2, first + second))


def _product_more(draws: np.random.Generator) -> tuple[int, int, int]:
    first, second = _from(2, 9, 2)(draws)
    return first, second, int(draws.integers(2, 10))


KINDS: dict[str, Kind] = {
    "add": Kind(
        _from(2, 30, 2),
        ("answer = a + b",),
        lambda a, b: a + b,
        2,
        (
            "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
            "There are {a} {things} on the table and {b} in the box. How many {things} are there in all?",
            "{name} found {a} {things} yesterday and {b} today. How many {things} did {name} find?",
            "A shop sold {a} {things} in the morning and {b} after noon. How many {things} did it sell that day?",
        ),
        "{a} + {b} = {answer}",
        ("{a} + {b} = {answer}",),
    ),
    "subtract": Kind(
        _falling,
        ("answer = a - b",),
        lambda a, b: a - b,
        1,
        (
            "{name} has {a} {things} and gives away {b}. How many {things} does {name} have left?",
            "Of {a} {things} in the box, {b} are taken out. How many {things} stay in the box?",
            "{name} wants {a} {things} and has {b} so far. How many {things} does {name} still need?",
            "A shop had {a} {things} and sold {b} of them. How many {things} did it not sell?",
        ),
        "{a} - {b} = {answer}",
        ("{a} - {b} = {answer}",),
    ),
    "multiply": Kind(
        _from(2, 9, 2),
        ("answer = a * b",),
        lambda a, b: a * b,
        2,
        (
            "{name} has {a} bags with {b} {things} in each. How many {things} does {name} have?",
            "There are {a} rows of {b} {things}. How many {things} are there?",
            "{name} buys {b} {things} on each of {a} days. How many {things} does {name} buy?",
            "A shop gets {a} crates, and every crate holds {b} {things}. How many {things} does the shop get?",
        ),
        "{a} * {b} = {answer}",
        ("{a} * {b} = {answer}",),
    ),
    "divide": Kind(
        _divisible,
        ("answer = a // b",),
        lambda a, b: a // b,
        1,
        (
            "{name} shares {a} {things} fairly among {b} friends. How many {things} does each friend get?",
            "There are {a} {things} in {b} equal piles. How many {things} are in one pile?",
            "{name} puts {a} {things} into bags of {b}. How many bags does {name} fill?",
            "A shop packs {a} {things} into {b} crates, the same number in each. How many {things} are in a crate?",
        ),
        "{a} / {b} = {answer}",
        ("{a} / {b} = {answer}",),
    ),
    "sum-less": Kind(
        _sum_less,
        ("d = a + b", "answer = d - c"),
        lambda a, b, c: a + b - c,
        2,
        (
            "{name} has {a} {things}, gets {b} more and loses {c}. How many {things} does {name} have now?",
            "A box holds {a} {things} and another {b}. If {c} are taken out, how many {things} are left in both?",
            "{name} found {a} {things} yesterday and {b} today, and gave {c} away. How many {things} are left?",
            "A shop had {a} {things}, got {b} and sold {c}. How many {things} does it have now?",
        ),
        "{a} + {b} - {c} = {answer}",
        ("{a} + {b} = {d}", "{d} - {c} = {answer}"),
        ("add", "subtract"),
    ),
    "product-more": Kind(
        _product_more,
        ("d = a * b", "answer = d + c"),
        lambda a, b, c: a * b + c,
        2,
        (
            "{name} has {a} bags with {b} {things} in each, and {c} loose {things}. How many {things} are there?",
            "There are {a} rows of {b} {things} and {c} more at the side. How many {things} are there in all?",
            "{name} buys {b} {things} on each of {a} days and gets {c} as a gift. How many {things} is that?",
            "A shop gets {a} crates of {b} {things} and already has {c}. How many {things} does it have then?",
        ),
        "{a} * {b} + {c} = {answer}",
        ("{a} * {b} = {d}", "{d} + {c} = {answer}"),
        ("multiply", "add"),
    ),
}


def quantities(kind: str, operands: tuple[int, ...]) -> dict[str, int]:
    """The numbers for a sentence: the operands by letter, ``answer``, and for two steps the intermediate ``d``."""
    sort = KINDS[kind]
    known = dict(zip("abc", operands, strict=False)) | {"answer": sort.answer(*operands)}
    if sort.parts:
        known["d"] = KINDS[sort.parts[0]].answer(*operands[:2])
    return known


def single_steps(kind: str, operands: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """The steps of a calculation of two, each as its kind and operands; none for a calculation of one step."""
    if not KINDS[kind].parts:
        return []
    first, second = KINDS[kind].parts
    return [(first, operands[:2]), (second, (quantities(kind, operands)["d"], operands[2]))]
