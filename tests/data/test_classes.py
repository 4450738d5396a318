import pytest

from fedquilt.data.classes import matched, numbered


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (("ant", "bee", "cow"), ("cow", "bee", "ant"), [2, 1, 0]),
        (("negative", "positive"), ("POSITIVE", "NEGATIVE"), [1, 0]),
        ((" a  b", "c"), ("C ", "A b"), [1, 0]),
        (("us", "US"), ("US", "us"), [1, 0]),
        (("us", "Us"), ("US", "us"), [1, 0]),
        (("False", "True"), ("true", "false"), [1, 0]),
        (("0", "1"), ("True", "False"), [1, 0]),
        (("0", "1", "2"), ("LABEL_2", "LABEL_0", "LABEL_1"), [1, 2, 0]),
        (("10", "9"), ("9", "10"), [1, 0]),
        (("01", "1"), ("1",), [None, 0]),
        (("Ant", "ANT"), ("ant", "bee"), [None, None]),
        (("ant", "dog"), ("dog", "cow"), [None, 0]),
        ((), ("ant",), []),
    ],
)
def test_names_are_joined_to_the_letter_first_and_never_by_a_guess(names, classes, expected):
    assert matched(names, classes) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("LABEL_0", "LABEL_1"), True),
        (("0", "1", "2"), True),
        (("1", "0"), False),
        (("False", "True"), False),
        (("a", "b"), False),
        (("0", "one"), False),
    ],
)
def test_numbers_that_are_their_own_place_are_no_names(names, expected):
    assert numbered(names) is expected
