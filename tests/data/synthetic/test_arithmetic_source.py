"""The source of word problems: its rows, that no seed moves them, and what it says to what it does not know."""

import hashlib
import re

import pytest
import torch

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.loaders import load_table, published_split
from fedquilt.data.synthetic.arithmetic import FORMATS
from fedquilt.data.synthetic.arithmetic_kinds import KINDS
from fedquilt.data.synthetic.arithmetic_source import HELD_OUT, arithmetic_source


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_alone_gives_the_published_split(format):
    table = load_table(f"arithmetic:{format}")
    assert table.kind == "text"
    assert len(table) == len(table.targets) == 2400
    assert int(table.is_train.sum()) == 2000
    assert bool(table.is_train[:2000].all())
    train, test = published_split(table)
    assert not set(train.inputs) & set(test.inputs)


def test_the_rows_depend_on_the_source_alone_and_fewer_are_the_first_of_more():
    torch.manual_seed(1)
    small = arithmetic_source("arithmetic:choice?train=20&test=10")
    torch.manual_seed(2)
    large = arithmetic_source("arithmetic:choice?test=30&train=50")
    assert small.inputs == large.inputs[:20] + large.inputs[50:60]
    assert small.targets == large.targets[:20] + large.targets[50:60]
    assert arithmetic_source("arithmetic:blank?train=20&test=10").inputs != small.inputs
    some = [load_table("arithmetic:blank?train=40", limit=10, rng=Rng(seed)).inputs for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]


def test_the_rows_are_what_they_have_always_been():
    """Recorded runs and pretrained models depend on them."""
    digest = {"blank": "534a4820", "choice": "6a55022f", "program": "49a1b3f6"}
    for format, start in digest.items():
        table = load_table(f"arithmetic:{format}?train=300&test=200")
        assert hashlib.sha1(repr((table.inputs, table.targets)).encode()).hexdigest().startswith(start)


def test_a_source_can_be_of_some_kinds_numbers_and_stories_and_have_several_draws():
    def lines(query):
        return arithmetic_source(f"arithmetic:steps?train=20&test=10&split=new-numbers&{query}")

    table = lines("kinds=sum-less&numbers=3-9&stories=2")
    assert all(re.fullmatch(r"\d+ \+ \d+ = \d+\n\d+ - \d+ = \d+", text) for text in table.targets)
    assert all(text.startswith("A box holds") and text.endswith("?\n") for text in table.inputs)
    assert {int(number) for text in table.inputs for number in re.findall(r"\d+", text)} <= set(range(3, 10))
    assert lines("draw=0").inputs == lines("kinds=" + ",".join(KINDS)).inputs == lines("stories=1,2,3").inputs
    assert len({tuple(lines(f"draw={number}").inputs) for number in range(3)}) == 3


def test_the_held_out_split_is_the_one_that_is_asked_for():
    last = [kind.templates[-1].split("{")[0] for kind in KINDS.values()]

    def of_last_template(split):
        table = arithmetic_source(f"arithmetic:blank?train=0&test=30&split={split}")
        assert not bool(table.is_train.any())
        return [text.startswith("A shop") for text in table.inputs]

    assert all(text.startswith("A shop") for text in last)
    assert all(of_last_template("test"))
    assert all(of_last_template("new-words"))
    assert not any(of_last_template("new-numbers"))
    texts = [arithmetic_source(f"arithmetic:blank?train=0&test=30&split={split}").inputs for split in HELD_OUT]
    assert len({tuple(text) for text in texts}) == 3


def test_either_side_of_the_split_can_be_asked_for():
    source = "arithmetic:program?train=6&test=4"
    assert len(load_table(source, split="train")) == 6
    assert len(load_table(source, split="test")) == 4
    assert len(load_table(source)) == 10
    assert bool(load_table("arithmetic:program?train=6&test=0").is_train.all())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("arithmetic:blanc", r"there is no format 'blanc' \(did you mean 'blank'\?\); allowed: arithmetic:blank"),
        ("arithmetic:", r"there is no format ''"),
        ("arithmetic:blank?trian=5", r"there is no key 'trian' \(did you mean 'train'\?\)"),
        ("arithmetic:blank?train=many", r"train = 'many' is not a number of rows"),
        ("arithmetic:blank?train=-5", r"train = '-5' is not a number of rows"),
        ("arithmetic:blank?test", r"test = '' is not a number of rows"),
        ("arithmetic:blank?split=new-word", r"no held-out split 'new-word' \(did you mean 'new-words'\?\)"),
        ("arithmetic:blank?split=train", r"no held-out split 'train'"),
        ("arithmetic:blank?train=0&test=0", r"asks for no rows"),
        ("arithmetic:steps?kinds=add,substract", r"there is no 'substract' \(did you mean 'subtract'\?\)"),
        ("arithmetic:steps?kinds=add,add", r"kinds = 'add,add' names one twice"),
        ("arithmetic:steps?stories=4", r"stories = '4': there is no '4'"),
        ("arithmetic:steps?numbers=9-2", r"numbers = '9-2' is no range such as 2-20"),
        ("arithmetic:steps?draw=-1", r"draw = '-1' is not a number"),
        ("arithmetic:steps?numbers=40-50", r"numbers=40-50': there is no problem of kind 'add'"),
    ],
)
def test_what_it_does_not_know_is_told_with_what_it_knows(source, message):
    with pytest.raises(DataError, match=message):
        load_table(source)


@pytest.mark.parametrize("keys", [{"prompt": "{text}"}, {"format": "messages"}, {"words": {"0": "no"}}])
def test_its_prompts_are_ready(keys):
    with pytest.raises(DataError, match=r"its prompts are ready; leave data\.prompt, words and format out"):
        load_table("arithmetic:blank", **keys)
