"""The keys of [data] for language models, as a run file and the command line write them."""

import tomllib

import pytest

from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError

HEAD = 'model = {name = "tiny:llama", task = "causal-lm"}\n[data]\nsource = "rows.jsonl"\n'


def test_what_is_left_out_poses_rows_as_they_are_and_judges_by_tokens():
    data = parse(tomllib.loads(HEAD)).data
    assert (data.format, data.prompt, data.words, data.answers, data.new_tokens) == ("auto", None, None, None, 64)


def test_a_prompt_its_words_and_its_answers_are_read():
    more = 'prompt = "{text}\\nSentiment:\\n"\nanswers = "label"\nwords = {0 = "negative", "not so" = "positive"}\n'
    data = parse(tomllib.loads(HEAD + more)).data
    assert data.prompt == "{text}\nSentiment:\n"
    assert data.words == {"0": "negative", "not so": "positive"}
    assert data.answers == "label"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('format = "chat"', r"data\.format = 'chat': not one of the choices; allowed: 'auto', 'plain', 'instruction'"),
        ('answers = "numbers"', r"data\.answers = 'numbers': .*\(did you mean 'number'\?\); allowed: 'exact'"),
        ("new_tokens = 0", r"data\.new_tokens = 0: "),
        ("words = {0 = 1}", r"data\.words\.0 = 1: "),
        ('words = {0 = ""}', r"data\.words\.0 = '': "),
        ('prompt = ""', r"data\.prompt = '': "),
        ('promt = "{text}"', r"data\.promt = '\{text\}': unknown key \(did you mean 'prompt'\?\)"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(line, message):
    with pytest.raises(ConfigError, match=message):
        parse(tomllib.loads(HEAD + line))
