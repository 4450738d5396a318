"""Word problems: right by a small calculator of the test's own, split without a leak, the same for the same stream."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import (
    FORMATS,
    LETTERS,
    SPLITS,
    Domain,
    arithmetic_table,
    is_held_out,
    posed,
    problems,
    tells_held_out,
    worked,
)
from fedquilt.data.synthetic.arithmetic_kinds import KINDS

laws = settings(max_examples=40, deadline=None)


# A calculator that knows nothing of how problems are made ------------------------------------------------------------


def tokens(text):
    found = re.findall(r"\d+|[a-z]+|//|[-+*/()]", text)
    assert "".join(found) == text.replace(" ", ""), text
    return found


def value(text, known):
    """The value of a sum with + - * / // and brackets, by recursive descent."""
    rest = tokens(text)

    def atom():
        token = rest.pop(0)
        if token == "(":
            inside = total()
            assert rest.pop(0) == ")"
            return inside
        return int(token) if token.isdecimal() else known[token]

    def product():
        result = atom()
        while rest and rest[0] in ("*", "/", "//"):
            sign, right = rest.pop(0), atom()
            assert sign == "*" or result % right == 0, f"{text} leaves a rest"
            result = result * right if sign == "*" else result // right
        return result

    def total():
        result = product()
        while rest and rest[0] in "+-":
            result = result + product() if rest.pop(0) == "+" else result - product()
        return result

    result = total()
    assert not rest, text
    return result


def run(program):
    known = {}
    for line in program.splitlines():
        name, _, expression = line.partition(" = ")
        known[name] = value(expression, known)
    return known["answer"]


def test_the_calculator_can_do_sums():
    assert value("2 + 3 * (7 - 4) - 8 // 2", {}) == 7
    assert run("a = 6\nb = a * 7\nanswer = b - 2") == 40


# Answers ------------------------------------------------------------


@laws
@given(st.sampled_from(SPLITS), st.integers(0, 2**32))
def test_the_answer_is_what_the_program_leaves_and_the_program_uses_the_questions_numbers(split, seed):
    for problem in problems(30, split, Rng(seed)):
        assert run(problem.program) == problem.answer >= 0
        assert sorted(map(int, re.findall(r"\d+", problem.question))) == sorted(problem.operands)
        assert re.findall(r"(?m)^[abc] = (\d+)$", problem.program) == list(map(str, problem.operands))
        assert "{" not in problem.question


@laws
@given(st.integers(0, 2**32))
def test_all_formats_have_the_same_right_answer(seed):
    for row, problem in enumerate(problems(30, "train", Rng(seed))):
        rng = Rng(seed).child(row)
        prompts, answers = zip(*(posed(problem, format, rng) for format in FORMATS), strict=True)
        assert all(prompt.startswith(problem.question) for prompt in prompts)
        assert answers[0] == str(problem.answer)
        choices = dict(re.findall(r"([ABCD])\) (\d+)", prompts[1]))
        assert list(choices) == list(LETTERS)
        assert len(set(choices.values())) == 4
        assert choices[answers[1]] == answers[0]
        assert str(run(answers[2])) == answers[0]
        assert answers[3].endswith(f"= {answers[0]}")


@laws
@given(st.sampled_from(SPLITS), st.integers(0, 2**32))
def test_every_worked_step_is_right_and_goes_on_from_the_one_before(split, seed):
    for problem in problems(30, split, Rng(seed)):
        lines = [line.split(" = ") for line in problem.worked.splitlines()]
        assert [value(left, {}) for left, _ in lines] == [int(right) for _, right in lines]
        numbers = [int(number) for left, _ in lines for number in re.findall(r"\d+", left)]
        if len(lines) == 2:
            assert numbers.pop(2) == int(lines[0][1])
        assert numbers == list(problem.operands)


def test_the_letter_of_the_answer_is_as_often_each_of_the_four():
    answers = arithmetic_table("choice", 2000, "train", Rng(0)).targets
    counts = [answers.count(letter) for letter in LETTERS]
    assert sum(counts) == 2000
    assert min(counts) > 430  # 500 expected; its deviation is 19


# Splits ------------------------------------------------------------


def same(problem):
    """What is the same sum: operands that may change places, in order."""
    ordered = sorted(problem.operands[:2]) if problem.kind not in ("subtract", "divide") else problem.operands[:2]
    return problem.kind, *ordered, *problem.operands[2:]


def test_no_words_and_no_numbers_of_the_test_are_in_training():
    train = problems(3000, "train", Rng(0))
    test = problems(300, "test", Rng(1))
    words = {(problem.kind, problem.template) for problem in train}
    sums = {same(problem) for problem in train}
    assert len(words) == 3 * len(KINDS)
    assert not words & {(problem.kind, problem.template) for problem in test}
    assert not sums & {same(problem) for problem in test}
    assert not {problem.question for problem in train} & {problem.question for problem in test}


@pytest.mark.parametrize(
    ("split", "new_words", "new_numbers"), [("new-words", True, False), ("new-numbers", False, True)]
)
def test_one_thing_at_a_time_can_be_held_out(split, new_words, new_numbers):
    drawn = problems(200, split, Rng(0))
    assert all((problem.template == 3) == new_words for problem in drawn)
    assert all(is_held_out(problem.kind, problem.operands) == new_numbers for problem in drawn)


def test_about_a_quarter_is_held_out_and_a_change_of_places_hides_nothing():
    pairs = [(a, b) for a in range(2, 61) for b in range(2, 61)]
    share = sum(is_held_out("add", pair) for pair in pairs) / len(pairs)
    assert share == pytest.approx(0.25, abs=0.03)
    assert all(is_held_out("add", (a, b)) == is_held_out("add", (b, a)) for a, b in pairs)
    assert any(is_held_out("subtract", (a, b)) != is_held_out("subtract", (b, a)) for a, b in pairs)


def test_worked_steps_for_training_tell_nothing_that_is_held_out():
    signs = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
    table = arithmetic_table("steps", 1500, "train", Rng(0))
    told = [
        re.fullmatch(r"(\d+) (.) (\d+)", line.split(" = ")[0]) for text in table.targets for line in text.split("\n")
    ]
    assert len(told) > 1500
    assert not any(is_held_out(signs[step[2]], (int(step[1]), int(step[3]))) for step in told)
    assert any(tells_held_out(made.kind, made.operands) for made in problems(300, "train", Rng(0)))


@laws
@given(
    st.lists(st.sampled_from(["add", "subtract", "sum-less", "product-more"]), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True),
    st.sampled_from(("train", "new-numbers")),
    st.integers(0, 2**32),
)
def test_a_domain_has_its_kinds_numbers_and_stories_and_nothing_else(kinds, stories, split, seed):
    domain = Domain(tuple(kinds), 2, 24, tuple(stories))
    drawn = problems(12, split, Rng(seed), domain)
    assert {problem.kind for problem in drawn} <= set(kinds)
    assert {problem.template for problem in drawn} <= set(stories)
    assert all(2 <= number <= 24 for problem in drawn for number in problem.operands)
    assert problems(12, split, Rng(seed), Domain()) == problems(12, split, Rng(seed))


def test_pretraining_draws_as_many_problems_as_are_wanted():
    domain = Domain(("multiply",))
    texts = worked(1000, Rng(0), domain)
    assert len(texts) == 1000
    assert all(re.search(r"\?\n\d+ \* \d+ = \d+$", text) for text in texts)


# Draws ------------------------------------------------------------


def test_a_table_is_the_streams_own_and_holds_each_problem_once():
    first, again, other = (arithmetic_table("blank", 200, "train", Rng(seed)) for seed in (1, 1, 2))
    assert (first.inputs, first.targets) == (again.inputs, again.targets)
    assert first.inputs != other.inputs
    assert (first.kind, len(first), first.labels, first.classes) == ("text", 200, None, ())
    drawn = problems(600, "train", Rng(0))
    assert len({(problem.kind, problem.template, problem.operands) for problem in drawn}) == 600
    assert {kind: sum(problem.kind == kind for problem in drawn) for kind in KINDS} == dict.fromkeys(KINDS, 100)


def test_more_rows_begin_with_the_same_rows():
    assert problems(20, "test", Rng(3)) == problems(50, "test", Rng(3))[:20]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: problems(1, "tests", Rng(0)),
            r"split 'tests' is unknown \(did you mean 'test'\?\); allowed: train, new-n",
        ),
        (
            lambda: arithmetic_table("blanks", 1, "test", Rng(0)),
            r"format 'blanks' is unknown \(did you mean 'blank'\?\)",
        ),
        (
            lambda: problems(1, "train", Rng(0), Domain(("add",), 50, 60)),
            r"no problem of kind 'add' and split 'train' with all numbers from 50 to 60; allow more numbers",
        ),
        (lambda: problems(100_000, "test", Rng(0)), r"there are only about \d+ problems of split 'test'; 100000 were"),
    ],
)
def test_what_cannot_be_had_is_told(call, words):
    with pytest.raises(DataError, match=words):
        call()
