"""TOML within limits: what is too large, too deep or of no key's kind is refused, and at once."""

from __future__ import annotations

import time

import pytest

from fedquilt.config.toml import MOST_BYTES, WRONG, parsed_toml, read_toml, within_limits
from fedquilt.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 2000 + "]" * 2000, "nest deeper than 16 levels"),
        ("a = " + "{a = " * 2000 + "1" + "}" * 2000, "nest deeper than 16 levels"),
        ("a." * 100_000 + "a = 1", "nest deeper than 16 levels"),
        ("[" + '"a" . ' * 50_000 + "a]", "nest deeper than 16 levels"),
        ("a = " + "9" * 5000, "a whole number has thousands of digits"),
        ('a = "' + "x" * MOST_BYTES + '"', "is larger than 1,048,576 bytes"),
        ("a = [" + "1," * 60_000 + "]", "more than 50,000 values"),
        ("a" * 500_000, "not valid TOML"),
        ('"""\\' * 200_000, "not valid TOML"),
    ],
)
def test_what_no_run_file_holds_is_refused_within_seconds(tmp_path, text, words):
    path = tmp_path / "odd.toml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=words):
        within_limits(read_toml(path))
    assert time.process_time() - began < 10


def test_a_run_folder_and_data_in_place_of_a_run_file_are_known(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"rows.csv: is data, not a run file; .* init .*rows.csv"):
        read_toml(tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); give a TOML file"):
        read_toml(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is the folder of a run, not a run file; .* run --resume "):
        read_toml(tmp_path)


def test_brackets_and_dots_in_texts_and_comments_nest_nothing():
    dots = ".".join("a" * 40)
    text = f"a = \"{dots}\" # {'[' * 40}\nb = '''{'[' * 40}\n\"'''\nc = \"\\\"{'{' * 40}\"\n"
    assert parsed_toml(text) == {"a": dots, "b": "[" * 40 + '\n"', "c": '"' + "{" * 40}
    with pytest.raises(ValueError, match="nest deeper"):
        parsed_toml(f'a = "x" \nb = {"[" * 17}{"]" * 17}')


def test_values_beyond_64_bits_and_dates_are_named_by_their_keys_and_taken_out():
    tables = {
        "rounds": 2**63,
        "seed": -(2**63),
        "clients": {"budgets": [1, 10**30]},
        "groups": [{"label": parsed_toml("a = 1979-05-27")["a"]}],
        "k" * 300: 1,
    }
    taken = within_limits(tables)
    assert taken.tables == {
        "rounds": WRONG,
        "seed": -(2**63),
        "clients": {"budgets": [1, WRONG]},
        "groups": [{"label": WRONG}],
    }
    assert [problem.partition(":")[0] for problem in taken.problems[1:]] == [
        "rounds",
        "clients.budgets[1]",
        "groups[0].label",
    ]
    assert "a key of 300 characters" in taken.problems[0]
    assert "1979-05-27 is a date" in taken.problems[3]
    assert tables["rounds"] == 2**63
