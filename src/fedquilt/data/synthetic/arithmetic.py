"""Generated arithmetic word problems in four task formats, and plain arithmetic text.

A problem has a template (its words) and operands (its numbers). Of every kind, one template and about a quarter of all
operands never occur in training, so that tests measure generalisation to unseen words and unseen numbers. The choice of
held-out operands is fixed and independent of any seed, so that text for pretraining, clients and tests never overlaps.

The formats:

    blank     the answer is a number to fill in
    choice    the answer is the letter of one of four numbers
    program   the answer is a short program that assigns the number to ``answer``
    steps     the answer is the calculation, each step on a line of its own; the number is the last one
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic_kinds import (
    KINDS,
    NAMES,
    NUM_STORIES,
    THINGS,
    quantities,
    single_steps,
)
from fedquilt.data.table import Table

FORMATS = ("blank", "choice", "program", "steps")
SPLITS = ("train", "new-numbers", "new-words", "test")
"""The splits: held out are nothing, the operands, the template, or both (``test``)."""

LETTERS = "ABCD"
_HELD_OUT_SHARE = 4  # one tuple of operands in four
_PATIENCE = 500  # consecutive draws without a new problem before a kind counts as exhausted
_TRIES = 5000  # consecutive draws of operands without any that fit before a kind counts as having none


@dataclass(frozen=True)
class Domain:
    """Which problems are drawn.

    Attributes
    ----------
    kinds
        Keys of ``KINDS``.
    smallest, largest
        Bounds of the operands, inclusive, in addition to those of the kind.
    stories
        Indices of templates for known words; every kind has ``NUM_STORIES`` of them and one that is held out.
    in_steps
        Whether no step of a problem for training may be held out as a calculation of its own.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    smallest: int = 0
    largest: int = 1_000_000
    stories: tuple[int, ...] = tuple(range(NUM_STORIES))
    in_steps: bool = False


EVERYTHING = Domain()
"""All problems that there are."""


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes
    ----------
    kind
        A key of ``KINDS``.
    template
        The index of its template.
    operands
        Its numbers.
    question
        Its text.
    answer
        The right answer.
    """

    kind: str
    template: int
    operands: tuple[int, ...]
    question: str
    answer: int

    @property
    def program(self) -> str:
        """A program that assigns the answer to ``answer``, one assignment per line."""
        given = [f"{letter} = {value}" for letter, value in zip("abc", self.operands, strict=False)]
        return "\n".join([*given, *KINDS[self.kind].steps])

    @property
    def worked(self) -> str:
        """The steps of the calculation, one per line; the answer is the last number."""
        return "\n".join(KINDS[self.kind].worked).format(**quantities(self.kind, self.operands))


def is_held_out(kind: str, operands: tuple[int, ...]) -> bool:
    """Whether these operands are held out for tests; operands that may be exchanged are held out together."""
    alike = KINDS[kind].alike
    same = *sorted(operands[:alike]), *operands[alike:]
    return Rng(0, ("arithmetic", kind, *same)).integer() % _HELD_OUT_SHARE == 0


def tells_held_out(kind: str, operands: tuple[int, ...]) -> bool:
    """Whether this calculation, written in steps, holds one that is held out."""
    return is_held_out(kind, operands) or any(is_held_out(*step) for step in single_steps(kind, operands))


def problems(count: int, split: str, rng: Rng, domain: Domain = EVERYTHING) -> list[Problem]:
    """Draw ``count`` distinct problems of a domain, evenly over its kinds as far as possible.

    Raises
    ------
    DataError
        if there is no such split, or it has too few problems.
    """
    if split not in SPLITS:
        raise DataError(f"split '{split}' is unknown{suggestion(split, SPLITS)}; allowed: {', '.join(SPLITS)}")
    draws = rng.numpy()
    kinds = list(domain.kinds)
    found: dict[tuple[str, int, tuple[int, ...]], Problem] = {}
    misses = 0
    while len(found) < count:
        if not kinds:
            raise DataError(f"there are only about {len(found)} problems of split '{split}'; {count} were asked for")
        kind = kinds[len(found) % len(kinds)]
        made = _drawn(kind, split, draws, domain)
        misses = misses + 1 if (kind, made.template, made.operands) in found else 0
        if misses == _PATIENCE:  # practically all of this kind have been drawn
            kinds.remove(kind)
            misses = 0
        found.setdefault((kind, made.template, made.operands), made)
    return list(found.values())


def posed(problem: Problem, format: str, rng: Rng) -> tuple[str, str]:
    """The prompt and the completion of a problem in a format; ``rng`` draws the choices.

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
    if format == "steps":
        return f"{problem.question}\n", problem.worked
    raise DataError(f"format '{format}' is unknown{suggestion(format, FORMATS)}; allowed: {', '.join(FORMATS)}")


def arithmetic_table(format: str, count: int, split: str, rng: Rng, domain: Domain = EVERYTHING) -> Table:
    """``count`` problems of a domain in a format, as prompts and completions for a causal language model.

    Parameters
    ----------
    format
        One of ``FORMATS``.
    count
        Number of rows.
    split
        One of ``SPLITS``.
    rng
        The random stream of problems and choices.
    domain
        Which problems are drawn.

    Raises
    ------
    DataError
        as in ``problems`` and ``posed``.
    """
    drawn = problems(count, split, rng.child("problems"), replace(domain, in_steps=format == "steps"))
    pairs = [posed(problem, format, rng.child("posed", row)) for row, problem in enumerate(drawn)]
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    return Table("text", prompts, None, (), targets=answers, columns=("prompt", "completion"))


def worked(count: int, rng: Rng, domain: Domain) -> list[str]:
    """Problems of a domain with their steps, for pretraining; without held-out operands, and some more than once."""
    draws, told = rng.numpy(), replace(domain, in_steps=True)
    drawn = (_drawn(domain.kinds[number % len(domain.kinds)], "train", draws, told) for number in range(count))
    return ["".join(posed(problem, "steps", rng)) for problem in drawn]


def _drawn(kind: str, split: str, draws: np.random.Generator, domain: Domain) -> Problem:
    sort, stories = KINDS[kind], domain.stories
    template = NUM_STORIES if split in ("new-words", "test") else stories[int(draws.integers(len(stories)))]
    for _ in range(_TRIES):
        operands = sort.draw(draws)
        if domain.smallest <= min(operands) and max(operands) <= domain.largest and _of(split, kind, operands, domain):
            break
    else:
        raise DataError(
            f"there is no problem of kind '{kind}' and split '{split}' with all numbers from {domain.smallest} to "
            f"{domain.largest}; allow more numbers"
        )
    name, things = (words[int(draws.integers(len(words)))] for words in (NAMES, THINGS))
    question = sort.templates[template].format(name=name, things=things, **quantities(kind, operands))
    return Problem(kind, template, operands, question, sort.answer(*operands))


def _of(split: str, kind: str, operands: tuple[int, ...], domain: Domain) -> bool:
    """Whether a split has these operands."""
    if split in ("new-numbers", "test"):
        return is_held_out(kind, operands)
    return not (tells_held_out if domain.in_steps else is_held_out)(kind, operands)


def _choices(answer: int, draws: np.random.Generator) -> list[int]:
    """Four numbers in random order: the answer, and three near it that are not negative."""
    near = [answer + step for step in (-20, -10, -3, -2, -1, 1, 2, 3, 10, 20) if answer + step >= 0]
    wrong = [near[index] for index in draws.permutation(len(near))[: len(LETTERS) - 1]]
    choices = [answer, *wrong]
    return [choices[index] for index in draws.permutation(len(choices))]
