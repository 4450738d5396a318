"""What a text answers: by hand, and laws that hold for every number, letter and word."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.metrics.answers import (
    KINDS,
    answer_start,
    folded,
    is_right,
    label,
    letter,
    number,
    program,
    same_number,
    says_something,
)

wholes = st.integers(-(10**15), 10**15)
words = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("7.0", 7),
        (" -3 ", -3),
        ("about $1,200.50.", Fraction(2401, 2)),
        ("12kg", 12),
        ("He had 5 and then 8", 8),
        ("The answer is 12. I had 5 apples.", 12),
        ("The answer is: 12\nQuestion: 5", 12),
        ("the answer is 3 + 4 = 7", 7),
        ("The answer is 3. No, the answer is 4", 4),
        ("The answer is twelve, so 12", 12),
        ("10-3", 3),
        ("10 - 3 = -7", -7),
        ("x=-7", -7),
        (".5", Fraction(1, 2)),
        ("2.5e3", 2500),
        ("1,2,3", 3),
        ("in b12", None),
        ("none", None),
        ("", None),
        ("1e999999999", 1),
        ("9" * 400, None),
    ],
)
def test_the_number_of_a_text(text, value):
    assert number(text) == value


@given(wholes, words, words)
def test_a_number_that_was_written_is_read_however_it_was_written(value, before, behind):
    for written in (str(value), f"{value:,}", f"{value}.0", f"{value:+}"):
        assert number(written) == value
        assert number(f"{before} 17 {before}. The answer is {written}. {behind}") == value
        assert number(f"{before} {written} {behind}") == value


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_float_is_read_as_it_prints(value):
    assert number(repr(value)) == Fraction(repr(value))


@given(wholes, wholes)
def test_whole_numbers_are_the_same_only_if_they_are_equal(left, right):
    assert same_number(Fraction(left), Fraction(right)) == (left == right)


def test_other_numbers_are_the_same_up_to_the_rounding_of_floats():
    assert same_number(Fraction(0.1 + 0.2), Fraction("0.3"))
    assert same_number(Fraction(7.0), Fraction(7))
    assert not same_number(Fraction("0.3333"), Fraction(1, 3))
    assert not same_number(None, None)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        (" b. ", "B"),
        ("(c)", "C"),
        ("a", "A"),
        ("The answer is D.", "D"),
        ("The answer is A because a dog is one", "A"),
        ("the answer is (b)", "B"),
        ("Answer: E", "E"),
        ("Option C is right", "C"),
        ("I think B) 12", "B"),
        ("b) 12", "B"),
        ("A", "A"),
        ("A is right", "A"),
        ("A dog has four legs", None),
        ("A dog has four legs, so C", "C"),
        ("A dog, and the answer is C", "C"),
        ("the answer is a dog", None),
        ("a dog", None),
        ("A $150 bill", None),
        ("A - the first", "A"),
        ("Dog", None),
        ("f(a) = 3", None),
        ("F", None),
        ("", None),
        ("Because", None),
        ("I'D say so", None),
        ("B - since it is", "B"),
    ],
)
def test_the_option_of_a_text(text, option):
    assert letter(text) == option


@given(st.sampled_from("ABCDE"), words)
def test_an_option_that_stands_alone_is_read_and_one_inside_a_word_is_not(option, word):
    for written in (option, f"({option})", f"{option}.", f"The answer is {option}.", f"{option}) {word}"):
        assert letter(written) == option
    assert letter(f"{option}{word}") is letter(f"the {option}{word}") is None


@pytest.mark.parametrize(
    ("text", "classes", "found"),
    [
        ("no", ["no", "yes"], "no"),
        ("No, it is not.", ["no", "yes"], "no"),
        ("not at all", ["no", "yes"], None),
        ("I know", ["no", "yes"], None),
        ("another", ["no", "other"], None),
        ("no-one", ["no"], None),
        ("'Positive'", ["negative", "positive"], "positive"),
        ("not_entailment", ["entailment", "not_entailment", "not"], "not_entailment"),
        ("not  entailment here", ["not", "not entailment"], "not entailment"),
        ("it is positive", ["positive"], None),
        ("", ["positive"], None),
    ],
)
def test_the_class_of_a_text(text, classes, found):
    assert label(text, classes) == found


@given(words, words)
def test_a_class_is_never_read_inside_a_word(name, rest):
    assert label(f"{name}{rest}", [name]) is None
    assert label(f"{name} {rest}", [name]) == label(f"{name}, {rest}", [name]) == label(name, [name]) == name
    assert label(f"{rest}{name}", [name]) is None or rest.startswith(name) or f"{rest}{name}" == name


@given(st.text(), st.sampled_from([kind for kind in KINDS if kind != "program"]))
def test_the_right_text_is_right_by_every_kind_and_white_space_does_not_matter(text, kind):
    assert is_right(kind, text, text)
    assert is_right(kind, f"  {text}\n", text)
    assert isinstance(says_something(kind, text), bool)


@pytest.mark.parametrize(
    ("kind", "said", "gold", "right"),
    [
        ("exact", "the  cat\n", "the cat", True),
        ("exact", "The cat", "the cat", False),
        ("number", "It is 42 now", "42.0", True),
        ("number", "It is 43", "42", False),
        ("number", "none", "42", False),
        ("number", "42", "no number", False),
        ("letter", "The answer is B", "B", True),
        ("letter", "A bee", "A", False),
        ("label", "Positive, I guess", "positive", True),
        ("label", "no idea", "no", False),
        ("label", "negative", "positive", False),
    ],
)
def test_whether_an_answer_is_right(kind, said, gold, right):
    assert is_right(kind, said, gold, ["no", "no idea", "positive", "negative"]) is right


def test_what_right_answers_must_say():
    assert says_something("number", "it is 5")
    assert not says_something("number", "five")
    assert says_something("letter", "C")
    assert not says_something("letter", "dog")
    assert says_something("exact", "x")
    assert not says_something("label", "  ")
    with pytest.raises(ValueError, match="'program' cannot be compared as text"):
        is_right("program", "a", "b")


def test_a_program_is_what_stands_in_a_fence_or_all():
    assert program("Sure:\n```python\nanswer = 1\n```\nDone") == "answer = 1\n"
    assert program("answer = 1") == "answer = 1"
    assert folded(program("```\nanswer = 2")) == "answer = 2"


def test_where_an_answer_begins() -> None:
    assert answer_start("number", "3 + 4 = 7, so 12.") == 14
    assert answer_start("number", "nothing") == 7
    assert answer_start(None, "first\nsecond\n") == 6
    assert answer_start("exact", "yes") == 0
