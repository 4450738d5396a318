"""Text for pretraining: right sums, nothing held out, and nothing of the tasks in it."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

import pytest

from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import is_held_out, posed, problems
from fedquilt.data.synthetic.arithmetic_kinds import KINDS, NAMES, THINGS, quantities
from fedquilt.data.synthetic.arithmetic_text import QUESTIONS, SAID, SENTENCES, TALK, passages

FIGURES = {
    "add": r"(\d+) \+ (\d+)",
    "subtract": r"(\d+) - (\d+)",
    "multiply": r"(\d+) \* (\d+)",
    "divide": r"(\d+) / (\d+)",
    "sum-less": r"(\d+) \+ (\d+) - (\d+)",
    "product-more": r"(\d+) \* (\d+) \+ (\d+)",
}


@cache
def text():
    return tuple(passages(12000, Rng(3)))


def pattern(template):
    """A regular expression for a sentence with its names, things and numbers open; numbers are named groups."""
    parts = re.split(r"\{(\w+)\}", template)
    seen, made = set(), ""
    for place, part in enumerate(parts):
        if place % 2 == 0:
            made += re.escape(part)
        elif part in ("name", "things", "other"):
            made += f"(?:{'|'.join(THINGS if part == 'things' else NAMES)})"
        else:
            made += f"(?P={part})" if part in seen else rf"(?P<{part}>\d+)"
            seen.add(part)
    return rf"(?m:^){made}(?!\d)" if "\n" in template else rf"(?m:(?:^|(?<=\. )){made}(?!\d))"


def with_words_of(template):
    """The passages that hold the longest words of a template, among which are all that match its pattern."""
    words = max(re.split(r"\{\w+\}", template), key=len)
    return [passage for passage in text() if words in passage]


def skeleton(words):
    words = re.sub("|".join(NAMES), "N", words)
    words = re.sub("|".join(THINGS), "T", words)
    return re.sub(r"\d+", "0", words)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_tale_is_right_and_tells_nothing_that_is_held_out(kind):
    for template in SENTENCES[kind]:
        found = [
            match.groupdict()
            for passage in with_words_of(template)
            for match in re.finditer(pattern(template), passage)
        ]
        assert len(found) >= 8, template
        for groups in found:
            numbers = {name: int(value) for name, value in groups.items()}
            operands = tuple(numbers[letter] for letter in "abc" if letter in numbers)
            assert numbers == {name: value for name, value in quantities(kind, operands).items() if name in numbers}
            assert not is_held_out(kind, operands), (template, numbers)
            if "d" in numbers:
                first, second = {"sum-less": ("add", "subtract"), "product-more": ("multiply", "add")}[kind]
                assert not is_held_out(first, operands[:2])
                assert not is_held_out(second, (numbers["d"], operands[2]))


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_said_to_a_question_is_right_and_not_held_out(kind):
    signs = {"+": "+", "-": "-", "*": "*", "//": "/"}
    told_as = dict.fromkeys(("number", "sum", "assignments", "list"), 0)
    for template in QUESTIONS[kind]:
        for passage in with_words_of(template):
            match = re.match(pattern(template), passage)
            if match is None:
                continue
            numbers = {name: int(value) for name, value in match.groupdict().items()}
            operands = tuple(numbers[letter] for letter in "abc" if letter in numbers)
            answer, rest = KINDS[kind].answer(*operands), passage[match.end() :]
            assert not is_held_out(kind, operands), passage
            if listed := re.fullmatch(r"\n(.*): it stands at (\w)\.", rest):
                told_as["list"] += 1
                pairs = dict(pair.split(" ") for pair in listed[1].split(", "))
                assert pairs[listed[2]] == str(answer)
                assert len(set(pairs.values())) == len(pairs) == 4
            elif "=" not in rest:
                told_as["number"] += 1
                assert re.search(r"(\d+)\.?$", rest)[1] == str(answer)
            elif rest.count("\n") == 1:
                told_as["sum"] += 1
                says = KINDS[kind].says.format(**quantities(kind, operands))
                assert rest == f"\n{says}"
            else:
                told_as["assignments"] += 1
                *steps, result = rest.strip().split("\n")
                known = {}
                for variable, meaning in (step.split(" = ") for step in steps):
                    parts = [known.get(part, part) for part in meaning.split()]
                    if len(parts) == 1:
                        known[variable] = int(parts[0])
                    else:
                        first, sign, second = parts
                        known[variable] = {
                            "+": first + second,
                            "-": first - second,
                            "*": first * second,
                            "/": first // second,
                        }[signs[sign]]
                assert known[result] == answer
    assert min(told_as.values()) > 20


def test_every_sum_in_figures_is_right_and_not_held_out():
    seen = dict.fromkeys(FIGURES, 0)
    for line in (line for passage in text() for line in passage.split("\n")):
        sides = re.fullmatch(r"([\d +*/-]*[+*/-][\d +*/-]*) = (\d+)|(\d+) = ([\d +*/-]*[+*/-][\d +*/-]*)", line)
        if sides is None:
            continue
        left, right = (sides[1], sides[2]) if sides[1] else (sides[4], sides[3])
        (kind,) = [kind for kind, shape in FIGURES.items() if re.fullmatch(shape, left)]
        operands = tuple(map(int, re.findall(r"\d+", left)))
        seen[kind] += 1
        assert KINDS[kind].answer(*operands) == int(right), line
        assert not is_held_out(kind, operands), line
    assert min(seen.values()) > 200


def test_assignments_are_right_and_not_held_out():
    kinds = {"+": "add", "-": "subtract", "*": "multiply", "//": "divide"}
    shape = r"(\w) = (\d+)\n(\w) = (\d+)\n(\w) = \1 (\S+) \3\n\5 is (\d+)"
    found = [match for passage in text() if (match := re.fullmatch(shape, passage))]
    assert len(found) > 50
    for match in found:
        kind, operands = kinds[match[6]], (int(match[2]), int(match[4]))
        assert KINDS[kind].answer(*operands) == int(match[7])
        assert not is_held_out(kind, operands)


def test_no_sentence_of_a_problem_and_no_format_of_a_task_occurs():
    whole = "\n".join(text())
    bones = skeleton(whole)
    sentences = {
        sentence
        for problem in [*problems(600, "train", Rng(0)), *problems(300, "test", Rng(0))]
        for sentence in re.split(r"(?<=[.?]) ", skeleton(problem.question))
    }
    assert len(sentences) > 40
    assert not [sentence for sentence in sentences if sentence in bones]
    for mark in ("____", "Answer:", "The answer is", ")", "Program", "Write a", "answer ="):
        assert mark not in whole
    prompts = {
        posed(problem, task, Rng(0))[0]
        for problem in problems(20, "train", Rng(0))
        for task in ("blank", "choice", "program")
    }
    assert not [prompt for prompt in prompts if prompt.split("\n", 1)[1] in whole]


def test_lists_count_compare_and_place_numbers_rightly():
    counted = most = placed = 0
    for passage in text():
        if match := re.fullmatch(r"Of (.*) the most is (\d+) and the least (\d+)\.", passage):
            numbers = [int(number) for number in match[1].split(", ")]
            assert (max(numbers), min(numbers)) == (int(match[2]), int(match[3]))
            most += 1
        elif re.fullmatch(r"\d+(, \d+){3,6}", passage):
            numbers = [int(number) for number in passage.split(", ")]
            assert len({after - before for before, after in pairwise(numbers)}) == 1
            counted += 1
        elif match := re.fullmatch(r"(.*): (\d+) stands at (\w)\.", passage):
            assert f"{match[3]} {match[2]}" in match[1].split(", ")
            placed += 1
    assert min(counted, most, placed) > 20


def test_all_words_of_quantities_occur():
    whole = "\n".join(text())
    assert all(name in whole for name in NAMES)
    assert all(re.search(pattern(template), whole) for template in TALK)
    for said in SAID:
        assert re.search(
            re.escape(said.format(answer=0, other="Ana")).replace("0", r"\d+").replace("Ana", r"\w+"), whole
        )


def test_the_same_stream_gives_the_same_text():
    assert passages(50, Rng(1)) == passages(50, Rng(1)) != passages(50, Rng(2))
