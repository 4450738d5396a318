"""Adapter folders with mistakes in them are refused in words, soon, and without taking memory."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedquilt.adapters.lora.peft_files import PEFT_CONFIG, PEFT_TENSORS, load_peft
from fedquilt.adapters.lora.settings import LoraSettings, pattern_problem
from fedquilt.core.errors import ConfigError, ModelError

GOOD = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "target_modules": ["q"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
}
ODD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        10**30,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "x",
        "(",
        "[",
        "*",
        "q" * 9999,
    ),
    *([], [1], ["q", 1], [[]], ["a"] * 9999, {}, {"q": 2}, {"q": "x"}, {"q": True}, {"q": 10**400}, {"(": 2}),
    *({"(a+)+$": 2}, {"(.*)*q": 2}, {"(a|aa)+b": 2}, {".*.*.*.*x": 2}, {"q": {"q": 1}}, {"x" * 9999: 2}),
)


def made(folder: Path, config: object = GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [f"base_model.model.{'a' * 60}.{layer}.q" for layer in range(3)]
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 4) for path in paths}
    tensors |= {f"{path}.lora_B.weight": torch.ones(4, 2) for path in paths}
    save_file(tensors, folder / PEFT_TENSORS)
    (folder / PEFT_CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in ("rank_pattern", "alpha_pattern")
            for value in ([], ["q"], "q", 3, {"(": 2}, {"[": 2})
        ),
        ("rank_pattern", {"(a+)+$": 2}),
        ("rank_pattern", {"q": 10**30}),
        ("alpha_pattern", {"q": 10**400}),
        ("target_modules", [1]),
        ("target_modules", {"q": 1}),
        ("lora_alpha", 10**400),
        ("lora_dropout", "much"),
        ("r", 10**30),
        ("r", "2"),
        ("modules_to_save", "classifier"),
    ],
)
def test_what_peft_never_writes_is_refused_with_the_key(tmp_path, key, value):
    folder = made(tmp_path / "odd", {**GOOD, key: value})
    if value == []:  # says nothing
        with pytest.raises(ModelError, match=key):
            load_peft(folder)
        return
    with pytest.raises(ModelError, match=r"adapter_config.json is wrong: "):
        load_peft(folder)


@pytest.mark.parametrize("config", ["[" * 100_000, "[]", "", "{", "3", "\x00", '{"r": ' + "9" * 5000 + "}"])
def test_json_that_is_no_table_is_refused(tmp_path, config):
    folder = made(tmp_path / "odd")
    (folder / PEFT_CONFIG).write_text(config)
    with pytest.raises(ModelError, match=PEFT_CONFIG):
        load_peft(folder)


@pytest.mark.parametrize(
    "key", ["q", "layers.1.q_proj", r"layers\.[0-9]+\.q", "^h.(1|2).attn$", r"model\.layers\.\d+\.q"]
)
def test_patterns_that_peft_users_write_are_taken(key):
    assert pattern_problem(key) == ""


@pytest.mark.parametrize("key", ["(a+)+", "(a|b)*", ".*.*.*", "(?=a)", "a{1,9}", "(", "[", "a**", r"\1", "x" * 400])
def test_patterns_that_may_take_long_or_are_none_are_refused(key):
    with pytest.raises(ConfigError, match="rank_pattern"):
        LoraSettings(2, 4, rank_pattern={key: 2})


def test_a_pattern_that_is_taken_matches_the_longest_path_soon():
    settings = LoraSettings(2, 4, rank_pattern={".*a.*b": 3})
    began = time.process_time()
    assert settings.rank_of("a" * 300) == 2
    assert time.process_time() - began < 2


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_no_mutated_folder_ends_in_a_traceback_or_takes_long(tmp_path, count):
    outcomes = {"ok": 0, "refused": 0}
    for number in range(count):
        rng, folder = random.Random(number), made(tmp_path / "folder")
        config: dict[str, object] = dict(GOOD)
        for _ in range(rng.randint(0, 2)):
            config[rng.choice([*GOOD, "bias", "modules_to_save", "init_lora_weights"])] = rng.choice(ODD)
        for key in rng.sample([*GOOD], rng.randint(0, 1)):
            config.pop(key, None)
        (folder / PEFT_CONFIG).write_text(json.dumps(config)[: rng.choice((None, None, None, 40))])
        _damaged(folder / PEFT_TENSORS, rng)
        began = time.process_time()
        try:
            load_peft(folder)
            outcomes["ok"] += 1
        except ModelError:
            outcomes["refused"] += 1
        assert time.process_time() - began < 10, number
    assert sum(outcomes.values()) == count
    assert outcomes["refused"] > count // 3


def _damaged(file: Path, rng: random.Random) -> None:
    """The file cut, with a byte changed, with other names or of other kinds; or as it was."""
    kind, content = rng.randrange(6), bytearray(file.read_bytes())
    if kind == 0:
        file.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 1:
        content[rng.randrange(200)] = rng.randrange(256)
        file.write_bytes(content)
    elif kind == 2:
        tensors = load_file(file)
        name = rng.choice(sorted(tensors))
        tensor = tensors.pop(name)
        tensors[rng.choice((name[:-3], "", "base_model.model.", name + ".x", name.replace("lora_A", "lora_C")))] = (
            rng.choice((tensor, tensor.long(), tensor[0], tensor[:0]))
        )
        save_file(tensors, file)
