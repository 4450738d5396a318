from types import SimpleNamespace

import pytest

from fedquilt.core.errors import ConfigError
from fedquilt.models.labels import Outputs, named_by, outputs_of, refuse_foreign

DATA = ("ant", "bee", "cow")


def test_the_bases_order_and_spelling_are_kept():
    assert outputs_of(DATA, ("Cow", "BEE", "ant")) == Outputs(("cow", "bee", "ant"), ("Cow", "BEE", "ant"))


def test_data_classes_in_another_order_do_not_move_the_bases_outputs():
    assert outputs_of(("bee", "cow", "ant"), ("cow", "bee", "ant"), stated=True).classes == ("cow", "bee", "ant")


@pytest.mark.parametrize("base", [("LABEL_0", "LABEL_1"), ("0", "1"), ("False", "True")])
@pytest.mark.parametrize("data", [("0", "1"), ("False", "True"), ("false", "TRUE"), ("LABEL_0", "LABEL_1")])
def test_numbers_and_booleans_are_outputs_without_a_question(base, data):
    found = outputs_of(data, base)
    assert (found.classes, found.foreign) == (data, "")
    assert found.names == (base if base[0] == "False" else data)


def test_numbers_in_words_order_of_a_base_are_joined_by_their_number():
    assert outputs_of(("0", "1", "2"), ("2", "0", "1")).classes == ("2", "0", "1")


def test_a_base_without_names_is_in_the_order_that_the_user_gave_or_its_order_is_not_known():
    stated = outputs_of(("cow", "ant"), ("LABEL_0", "LABEL_1"), stated=True)
    assert stated == Outputs(("cow", "ant"), ("cow", "ant"))
    found = outputs_of(("cow", "ant"), ("LABEL_0", "LABEL_1"))
    assert (found.names, found.redrawn) == (("cow", "ant"), False)
    assert "its outputs have no names" in found.foreign


@pytest.mark.parametrize(
    ("base", "foreign", "redrawn"),
    [
        (("x", "y", "z"), True, True),
        (("ant", "bee", "dog"), True, True),
        (("ant", "bee", "cow", "dog"), True, False),
        (("ant", "bee"), True, False),
        (("x", "y"), False, False),
        (("ant", "ant", "cow"), True, True),
        ((), False, False),
    ],
)
def test_outputs_of_other_classes_are_the_datas_and_their_head_is_not(base, foreign, redrawn):
    found = outputs_of(DATA, base)
    assert (found.classes, found.names) == (DATA, DATA)
    assert (bool(found.foreign), found.redrawn) == (foreign, redrawn)


def test_the_run_file_says_what_the_bases_outputs_are():
    assert outputs_of(("0", "1"), ("POSITIVE", "NEGATIVE"), labels=("1", "0")) == Outputs(
        ("1", "0"), ("POSITIVE", "NEGATIVE")
    )
    with pytest.raises(ConfigError, match=r"model.labels names 2 classes \('0', '1'\), but the base has 3 outputs"):
        outputs_of(("0", "1"), ("a", "b", "c"), labels=("0", "1"))
    with pytest.raises(ConfigError, match=r"model.labels = 'good', 'bad': the data's classes are '0', '1'"):
        outputs_of(("0", "1"), ("a", "b"), labels=("good", "bad"))


def test_only_a_head_of_other_classes_is_refused():
    refuse_foreign(outputs_of(DATA, ("cow", "bee", "ant")), "base")
    with pytest.raises(ConfigError, match=r"head.policy = 'frozen': the head of model 'base' .* outputs are 'x', 'y'"):
        refuse_foreign(outputs_of(("a", "b"), ("x", "y")), "base")
    refuse_foreign(outputs_of(("a", "b"), ("x", "y")).where(has_head=False), "base")


def test_a_config_without_a_name_for_each_output_says_nothing():
    assert named_by(SimpleNamespace(id2label={1: "b", "0": "a"})) == ("a", "b")
    assert named_by(SimpleNamespace(id2label={0: "a", 2: "b"})) == ()
    assert named_by(SimpleNamespace()) == ()


def test_names_go_into_the_config_both_ways():
    config = SimpleNamespace()
    Outputs().written(config)
    assert not vars(config)
    Outputs(("b", "a"), ("B", "A")).written(config)
    assert (config.id2label, config.label2id) == ({0: "B", 1: "A"}, {"B": 0, "A": 1})
