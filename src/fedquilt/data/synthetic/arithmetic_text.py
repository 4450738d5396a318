"""Generated passages about quantities, for the pretraining of small language models.

Calculations in figures and in words, stories with their result, questions with answers, comparisons and lists, and a
few assignments. Names, things and numbers are those of the word problems, but no sentence and no task format of theirs
occurs, and no calculation with held-out operands.
"""

from __future__ import annotations

import numpy as np

from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import is_held_out, tells_held_out
from fedquilt.data.synthetic.arithmetic_kinds import KINDS, NAMES, THINGS, quantities

SENTENCES: dict[str, tuple[str, ...]] = {
    "add": (
        "{a} plus {b} is {answer}.",
        "{name} holds {a} {things}. Then {b} more come, which makes {answer}.",
        "{a} {things} and {b} {things} are {answer} {things}.",
        "One bag has {a} {things}, the next {b}. In all there are {answer}.",
        "In the morning {name} sold {a} {things}, after noon {b}: {answer} that day.",
        "{name} gets {a} {things} today after {b} yesterday, so {answer} now.",
        "{b} {things} were found where {a} had been found before, {answer} in all.",
    ),
    "subtract": (
        "{a} minus {b} is {answer}.",
        "From {a} {things} {name} gives {b} to a friend and has {answer} left.",
        "{a} {things} less {b} {things} are {answer} {things}.",
        "{name} needs {a} {things} and got {b}, so {answer} are still to come.",
        "A box of {a} {things} lost {b}. The other {answer} stay.",
        "The shop has sold {b} out of {a} {things}. That leaves {answer}.",
        "{name} takes {b} {things} away from {a}, and {answer} are left.",
    ),
    "multiply": (
        "{a} times {b} is {answer}.",
        "{a} bags of {b} {things} are {answer} {things}.",
        "{name} fills {a} crates, {b} {things} to a crate, {answer} in all.",
        "On each of {a} days {name} found {b} {things}; that is {answer}.",
        "{a} rows, each of {b} {things}, hold {answer}.",
        "A shop buys {a} crates with {b} {things} in each, so it gets {answer}.",
    ),
    "divide": (
        "{a} divided by {b} is {answer}.",
        "{a} {things} in {b} equal shares are {answer} each.",
        "{name} packs {a} {things} into {b} equal piles, {answer} to a pile.",
        "{b} friends fairly share {a} {things}. Each friend gets {answer}.",
        "To hold {a} {things} in bags of {b} takes {answer} bags.",
        "A shop puts {a} {things} into {b} crates, the same number of {answer} in every crate.",
    ),
    "sum-less": (
        "{a} plus {b} minus {c} is {answer}.",
        "{name} got {a} {things}, then {b}, and lost {c}. Now {name} has {answer}.",
        "Two boxes hold {a} and {b} {things}. Less {c}, that is {answer}.",
        "{name} had {a} {things} and got {b}, that is {d}. Then {c} were taken out, so {answer} stay.",
        "A shop has {a} and {b} {things}, {d} in all. It sells {c} of them, and {answer} are left.",
        "{a} + {b} = {d}\n{d} - {c} = {answer}\n{a} + {b} - {c} = {answer}",
    ),
    "product-more": (
        "{a} times {b} plus {c} is {answer}.",
        "{a} bags of {b} {things} and {c} loose ones are {answer}.",
        "{name} has {c} {things} and {a} crates of {b}, in all {answer}.",
        "{name} buys {a} bags of {b} {things}, that is {d}. With {c} more as a gift it is {answer}.",
        "{a} rows of {b} {things} are {d}. There are {c} at the side, so {answer} in all.",
        "{a} * {b} = {d}\n{d} + {c} = {answer}\n{a} * {b} + {c} = {answer}",
    ),
}
"""Stories, by kind of calculation; ``d`` is the result of the first two operands."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "add": (
        "{name} has {a} {things}. {other} gives {name} {b} more. How many is that?",
        "{a} {things} lie on the table and {b} lie in the box. How many in all?",
        "Yesterday {name} found {a} {things}, today {b}. What is the number of {things}?",
        "{name} gets {b} {things} and had {a} before. How many now?",
        "In the morning a shop sold {a} {things} and after noon {b} more. How many in the day?",
    ),
    "subtract": (
        "{name} has {a} {things}. {name} gives {b} to {other}. How many are left?",
        "{b} of the {a} {things} are taken out of the box. How many stay?",
        "{name} wants {a} {things}. So far there are {b}. How many does {name} need?",
        "Of {a} {things} the shop sold {b}. What is the number of the others?",
        "{name} had {a} {things} and lost {b}. How many now?",
    ),
    "multiply": (
        "{name} has {a} bags. Each bag has {b} {things} in it. How many is that?",
        "{a} rows, {b} {things} in each of them. How many in all?",
        "On every day {name} buys {b} {things}. What is the number after {a} days?",
        "A shop gets {a} crates. There are {b} {things} in every crate. How many is that?",
    ),
    "divide": (
        "{name} has {a} {things} for {b} friends, the same number for each. How many for one friend?",
        "{a} {things} are put into {b} equal piles. How many to a pile?",
        "{name} fills bags with {a} {things}, {b} to a bag. What is the number of bags?",
        "{b} crates are to hold {a} {things}. How many does one crate hold?",
    ),
    "sum-less": (
        "{name} has {a} {things}. {b} more come, and {c} are lost. How many now?",
        "There were {a} {things} in a box and {b} in the other. {c} are taken out. How many are left?",
        "A shop has {a} {things} and gets {b}. Then it sells {c}. What is the number now?",
        "{name} found {a} {things} and then {b}. {c} went to {other}. How many stay?",
    ),
    "product-more": (
        "{name} has {a} bags with {b} {things} each. {c} more are loose. How many is that?",
        "{a} rows of {b} {things}, and {c} at the side. How many in all?",
        "{name} buys {a} crates of {b} {things} and gets {c} as a gift. What is the number now?",
        "There are {c} {things} here. Then come {a} bags of {b}. How many now?",
    ),
}
"""Questions, by kind; answered by ``SAID``, a line of arithmetic, assignments, or a position in a list."""

SAID: tuple[str, ...] = (
    " {answer}",
    "\n{answer}",
    " It is {answer}.",
    " {other} says: {answer}.",
    "\nThat makes {answer}.",
    "\nSo: {answer}",
)

TALK: tuple[str, ...] = (
    "{name} wants to know how many {things} there are. There are {n}.",
    "How many {things} the box holds is known: it holds {n}.",
    "{name} does not need {things} yet. So far {name} has {n} of them.",
    "If the {things} are taken away, the table has none.",
    "{name} writes a program that counts {things}.",
    "The shop did sell {things} this morning, and already has {n} more.",
    "Every friend among them gave {name} a gift of {n} {things}.",
    "{name} and {other} find {n} {things} in another pile on the table. They pack them into a bag.",
    "To fill the crate, {name} puts {n} {things} in it. Then it is full.",
    "{name} loses no {things} today. There are still {n}.",
    "The right answer for {name} is {n}, for {other} it is {m}.",
    "{name} shares {things} with {other} and gets both of the other bags.",
)
"""Sentences about quantities without a calculation."""

_ODDS = {"add": 4, "subtract": 4, "multiply": 3, "divide": 2, "sum-less": 2, "product-more": 2}
_DRAWN_KINDS = tuple(kind for kind, odds in _ODDS.items() for _ in range(odds))
_VARIABLES = "klmnpqrstuvwxyz"
_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "//"}


def passages(count: int, rng: Rng) -> list[str]:
    """Draw ``count`` passages of one to six lines each."""
    draws = rng.numpy()
    return [_passage(draws) for _ in range(count)]


def _passage(draws: np.random.Generator) -> str:
    form = draws.random()
    if form < 0.45:
        return "\n".join(_figures(draws) for _ in range(draws.integers(2, 7)))
    if form < 0.55:
        tales = [_tale(draws) for _ in range(draws.integers(1, 3))]
        return ("\n" if any("\n" in tale for tale in tales) else " ").join(tales)
    if form < 0.88:
        return _asked(draws)
    if form < 0.94:
        return _ordered(draws)
    if form < 0.96:
        kind = _one(_DRAWN_KINDS, draws)
        operands = _operands(kind, draws)
        return f"{_assigned(kind, operands, draws)} is {quantities(kind, operands)['answer']}"
    return _filled(_one(TALK, draws), draws, {"n": _number(draws), "m": _number(draws)})


def _figures(draws: np.random.Generator) -> str:
    kind = _one(_DRAWN_KINDS, draws)
    line = KINDS[kind].says.format(**quantities(kind, _operands(kind, draws)))
    if draws.random() < 0.1:
        left, _, right = line.partition(" = ")
        return f"{right} = {left}"
    return line


def _tale(draws: np.random.Generator) -> str:
    kind = _one(_DRAWN_KINDS, draws)
    sentence = _one(SENTENCES[kind], draws)
    return _filled(sentence, draws, quantities(kind, _operands(kind, draws, in_steps="{d}" in sentence)))


def _ordered(draws: np.random.Generator) -> str:
    """A passage on counting, comparing, tens and ones, or the position of a number in a list."""
    form = int(draws.integers(6))
    if form == 0:
        start, step, length = _number(draws), int(draws.choice([1, 2, 5, 10])), int(draws.integers(4, 8))
        row = [str(start + step * index) for index in range(length)]
        return ", ".join(row if draws.random() < 0.7 else row[::-1])
    numbers = [_number(draws) for _ in range(4)]
    if form == 1:
        small, large = sorted(numbers[:2])
        if small == large:
            return f"{small} is as many as {large}."
        return f"{large} is more than {small}." if draws.random() < 0.5 else f"{small} is less than {large}."
    if form == 2:
        listed = ", ".join(map(str, numbers))
        return f"Of {listed} the most is {max(numbers)} and the least {min(numbers)}."
    if form == 3:
        tens, ones = divmod(numbers[0], 10)
        return f"{numbers[0]} is {tens} tens and {ones} ones."
    number = numbers[0]
    listed, label = _listed(number, draws)
    return f"{listed}: {number} stands at {label}." if form == 4 else f"{listed}: at {label} stands {number}."


def _listed(number: int, draws: np.random.Generator) -> tuple[str, str]:
    """A list of four different numbers with letters, and the letter of ``number``; the others are near it."""
    near = [number + step for step in (-20, -10, -3, -2, -1, 1, 2, 3, 10, 20) if number + step >= 0]
    numbers = [number, *(near[index] for index in draws.permutation(len(near))[:3])]
    labels = [_LABELS[index] for index in draws.permutation(len(_LABELS))[:4]]
    pairs = [f"{labels[index]} {numbers[index]}" for index in draws.permutation(4)]
    return ", ".join(pairs), labels[0]


def _asked(draws: np.random.Generator) -> str:
    """A question with its answer."""
    kind = _one(_DRAWN_KINDS, draws)
    operands = _operands(kind, draws)
    known = quantities(kind, operands)
    form = draws.random()
    if form < 0.45:
        return _filled(_one(QUESTIONS[kind], draws) + _one(SAID, draws), draws, known)
    question = _filled(_one(QUESTIONS[kind], draws), draws, known)
    if form < 0.60:
        return f"{question}\n{KINDS[kind].says.format(**known)}"
    if form < 0.80:
        return f"{question}\n{_assigned(kind, operands, draws)}"
    listed, label = _listed(known["answer"], draws)
    return f"{question}\n{listed}: it stands at {label}."


def _assigned(kind: str, operands: tuple[int, ...], draws: np.random.Generator) -> str:
    """Assignments of the operands and of the steps, then the variable of the result on a line of its own."""
    x, y, z, w, v = (_VARIABLES[index] for index in draws.permutation(len(_VARIABLES))[:5])
    lines = [f"{letter} = {operand}" for letter, operand in zip((x, y, z), operands, strict=False)]
    if KINDS[kind].parts:
        first, second = (_SIGNS[part] for part in KINDS[kind].parts)
        lines += [f"{w} = {x} {first} {y}", f"{v} = {w} {second} {z}", v]
    else:
        lines += [f"{z} = {x} {_SIGNS[kind]} {y}", z]
    return "\n".join(lines)


def _operands(kind: str, draws: np.random.Generator, in_steps: bool = False) -> tuple[int, ...]:
    """Draw operands that are not held out; with ``in_steps`` those of each single step are not held out either."""
    while True:
        operands = KINDS[kind].draw(draws)
        if not (tells_held_out if in_steps else is_held_out)(kind, operands):
            return operands


def _filled(sentence: str, draws: np.random.Generator, numbers: dict[str, int]) -> str:
    name, other, things = _one(NAMES, draws), _one(NAMES, draws), _one(THINGS, draws)
    return sentence.format(name=name, other=other, things=things, **numbers)


def _number(draws: np.random.Generator) -> int:
    return int(draws.integers(2, 200))


def _one(words: tuple[str, ...], draws: np.random.Generator) -> str:
    return words[int(draws.integers(len(words)))]
