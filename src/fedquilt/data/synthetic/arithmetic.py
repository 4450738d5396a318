"""Arithmetic word problems in three task formats, and plain arithmetic text; all drawn, nothing is stored.

A problem has a template (its words) and operands (its numbers). Both are split: of every kind one template, and about a
quarter of all operands, never appear in training. So a test tells whether a model can do the sum in words, or with
numbers, that it has not seen. Which operands are held out is fixed for good and depends on no seed, so that text for
pretraining, clients and tests made by different people never overlap.

    blank     the answer is a number to fill in
    choice    the answer is the letter of one of four numbers
    program   the answer is a short program that leaves the number in ``answer``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.table import Table

FORMATS = ("blank", "choice", "program")
SPLITS = ("train", "new-numbers", "new-words", "test")
"""What is held out: nothing, the operands, the template, or both (``test``)."""

LETTERS = "ABCD"
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
_HELD_OUT_SHARE = 4  # one set of operands in four
_PATIENCE = 500  # draws in a row that bring nothing new


@dataclass(frozen=True)
class Kind:
    """One sort of sum: how operands are drawn, the program's steps, and which operands make the same sum.

    ``alike`` is how many of the first operands may change places; the last template is held out; ``says`` is the sum
    as a line of plain arithmetic.
    """

    draw: Callable[[np.random.Generator], tuple[int, ...]]
    steps: tuple[str, ...]
    answer: Callable[..., int]
    alike: int
    templates: tuple[str, ...]
    says: str


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
    ),
}


@dataclass(frozen=True)
class Problem:
    """One word problem: its ``kind``, the number of its ``template``, its ``operands``, words and right answer."""

    kind: str
    template: int
    operands: tuple[int, ...]
    question: str
    answer: int

    @property
    def program(self) -> str:
        """A program that leaves the answer in ``answer``, one assignment a line."""
        given = [f"{letter} = {value}" for letter, value in zip("abc", self.operands, strict=False)]
        return "\n".join([*given, *KINDS[self.kind].steps])


def is_held_out(kind: str, operands: tuple[int, ...]) -> bool:
    """Whether these operands of this kind are kept for tests; operands that may change places are held out together."""
    alike = KINDS[kind].alike
    same = *sorted(operands[:alike]), *operands[alike:]
    return Rng(0, ("arithmetic", kind, *same)).integer() % _HELD_OUT_SHARE == 0


def problems(count: int, split: str, rng: Rng) -> list[Problem]:
    """``count`` problems of unlike words or numbers, as many of each kind as can be; the same for the same stream.

    Raises
    ------
    DataError
        if there is no such split, or not so many problems.
    """
    if split not in SPLITS:
        raise DataError(f"split '{split}' is unknown{suggestion(split, SPLITS)}; allowed: {', '.join(SPLITS)}")
    draws = rng.numpy()
    kinds = list(KINDS)
    found: dict[tuple[str, int, tuple[int, ...]], Problem] = {}
    misses = 0
    while len(found) < count:
        if not kinds:
            raise DataError(f"there are only about {len(found)} problems of split '{split}'; {count} were asked for")
        kind = kinds[len(found) % len(kinds)]
        made = _drawn(kind, split, draws)
        misses = misses + 1 if (kind, made.template, made.operands) in found else 0
        if misses == _PATIENCE:  # as good as all of this kind are there
            kinds.remove(kind)
            misses = 0
        found.setdefault((kind, made.template, made.operands), made)
    return list(found.values())


def posed(problem: Problem, format: str, rng: Rng) -> tuple[str, str]:
    """The prompt and the completion of a problem in a format; the stream draws the choices.

    Raises
    ------
    DataError
        if there is no such format.
    """
    if format == "blank":
        return f"{problem.question}\nThe answer is ____.\nAnswer: ", str(problem.answer)
    if format == "choice":
        choices = _choices(problem.answer, rng.numpy())
        listed = " ".join(f"{letter}) {value}" for letter, value in zip(LETTERS, choices, strict=True))
        return f"{problem.question}\n{listed}\nAnswer: ", LETTERS[choices.index(problem.answer)]
    if format == "program":
        return f"{problem.question}\nWrite a program.\nProgram:\n", problem.program
    raise DataError(f"format '{format}' is unknown{suggestion(format, FORMATS)}; allowed: {', '.join(FORMATS)}")


def arithmetic_table(format: str, count: int, split: str, rng: Rng) -> Table:
    """``count`` problems of a split in a format, as prompts and completions for a causal language model.

    Raises
    ------
    DataError
        as ``problems`` and ``posed``.
    """
    drawn = problems(count, split, rng.child("problems"))
    pairs = [posed(problem, format, rng.child("posed", row)) for row, problem in enumerate(drawn)]
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    return Table("text", prompts, None, (), targets=answers, columns=("prompt", "completion"))


def statements(count: int, rng: Rng) -> list[str]:
    """Lines of plain arithmetic, such as ``7 + 5 = 12``, for pretraining: no words, no questions, nothing held out."""
    draws = rng.numpy()
    kinds = list(KINDS)
    lines: list[str] = []
    while len(lines) < count:
        kind = kinds[len(lines) % len(kinds)]
        operands = KINDS[kind].draw(draws)
        if not is_held_out(kind, operands):
            lines.append(KINDS[kind].says.format(**_values(operands), answer=KINDS[kind].answer(*operands)))
    return lines


def _drawn(kind: str, split: str, draws: np.random.Generator) -> Problem:
    sort = KINDS[kind]
    known = len(sort.templates) - 1
    template = known if split in ("new-words", "test") else int(draws.integers(known))
    operands = sort.draw(draws)
    while is_held_out(kind, operands) != (split in ("new-numbers", "test")):
        operands = sort.draw(draws)
    name, things = (words[int(draws.integers(len(words)))] for words in (NAMES, THINGS))
    question = sort.templates[template].format(name=name, things=things, **_values(operands))
    return Problem(kind, template, operands, question, sort.answer(*operands))


def _values(operands: tuple[int, ...]) -> dict[str, int]:
    return dict(zip("abc", operands, strict=False))


def _choices(answer: int, draws: np.random.Generator) -> list[int]:
    """Four numbers in random order, one of them the answer; the others are near it and not below 0."""
    near = [answer + step for step in (-20, -10, -3, -2, -1, 1, 2, 3, 10, 20) if answer + step >= 0]
    wrong = [near[place] for place in draws.permutation(len(near))[: len(LETTERS) - 1]]
    choices = [answer, *wrong]
    return [choices[place] for place in draws.permutation(len(choices))]
