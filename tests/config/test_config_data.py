"""The keys of [data] for language models, as a run file and the command line write them."""

import json
import tomllib

import pytest

from fedquilt.config.data import Data, idle_keys
from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError
from fedquilt.core.tasks import TASKS

HEAD = 'model = {name = "tiny:llama", task = "causal-lm"}\n[data]\nsource = "rows.jsonl"\n'
IMAGES, WORDS = "image-classification", "sequence-classification"


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


@pytest.mark.parametrize(
    ("tasks", "scheme", "keys", "said"),
    [
        (
            {IMAGES},
            "iid",
            {"text": "t"},
            ["data.text = 't': is for models of text, and model.task = 'image-classification' is not one"],
        ),
        ({IMAGES}, "iid", {"pair": "t"}, ["data.pair = 't': is for models of text"]),
        ({IMAGES}, "iid", {"format": "messages"}, ["data.format = 'messages': is for models of text"]),
        ({WORDS}, "iid", {"format": "messages"}, ["data.format = 'messages': says where completions are"]),
        ({WORDS}, "iid", {"format": "plain"}, []),
        (
            {WORDS},
            "iid",
            {"target": "t"},
            ["data.target = 't': is for language models, and model.task = 'sequence-"],
        ),
        ({WORDS, "causal-lm"}, "iid", {"target": "t", "classes": ["a", "b"]}, []),
        ({WORDS}, "iid", {"image": "t"}, ["data.image = 't': is for models of images"]),
        ({WORDS}, "iid", {"prompt": "{text}"}, ["data.prompt = '{text}': is for language models"]),
        ({WORDS}, "iid", {"new_tokens": 3}, ["data.new_tokens = 3: nothing is written without data.answers"]),
        ({"causal-lm"}, "iid", {"new_tokens": 3, "answers": "exact"}, []),
        ({"causal-lm"}, "iid", {"classes": ["a", "b"]}, ["data.classes = ('a', 'b'): of a language model's answers"]),
        ({"causal-lm"}, "iid", {"classes": ["a", "b"], "answers": "label"}, []),
        (
            {"causal-lm"},
            "iid",
            {"words": {"0": "no"}, "target": "t"},
            ["data.words = {'0': 'no'}: are written for classes"],
        ),
        ({WORDS}, "dirichlet", {"group": "t"}, ["data.group = 't': only partition.scheme = 'natural' asks for it"]),
        ({WORDS}, "natural", {"group": "t"}, []),
        (
            {"causal-lm"},
            "iid",
            {"source": "arithmetic:blank", "target": "t"},
            ["data.target = 't': rows that are made"],
        ),
        ({"causal-lm"}, "iid", {"source": "arithmetic:blank", "test": "x.csv", "target": "t"}, []),
        ({WORDS}, "iid", {"image": "t", "target": "u"}, ["data.target = 'u'", "data.image = 't'"]),
    ],
)
def test_a_key_that_would_change_nothing_is_refused(tasks, scheme, keys, said):
    problems = idle_keys(Data.model_validate_json(json.dumps({"source": "x", **keys})), tasks, scheme)
    assert len(problems) == len(said)
    for problem, start in zip(problems, said, strict=True):
        assert problem.startswith(start)
        assert problem.endswith("leave it out")


def test_every_key_is_read_by_some_task_and_scheme():
    values = {"words": {"a": "b"}, "classes": ["a", "b"], "answers": "label", "format": "plain", "on_missing": "drop"}
    values |= {"columns": ["a"], "categorical": ["a"], "ranges": {"a": [0, 1]}, "categories": {"a": ["b"]}}
    for name, field in Data.model_fields.items():
        value = values.get(name, 7 if "int" in str(field.annotation) else "{text}")
        keys = {"source": "x", name: value, **({"answers": "label"} if name in ("classes", "new_tokens") else {})}
        data = Data.model_validate_json(json.dumps(keys))
        idle = [idle_keys(data, {task}, "natural") for task in TASKS]
        assert [] in idle, name
