"""The JSON schema of run files: those of the project fit it, and wrong ones do not where one value shows it."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from fedquilt.cli.app import app
from fedquilt.config.arguments import arguments
from fedquilt.config.json_schema import json_schema
from fedquilt.config.load import parse, variants
from fedquilt.config.overrides import changes_of, overlaid
from fedquilt.config.schema import SECTIONS, Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.parties import VERTICAL
from fedquilt.data.partition import settings_problems
from fedquilt.data.partition_schemes import SCHEMES
from fedquilt.data.vertical.deal import Dealing
from fedquilt.methods import METHODS

sys.path.insert(0, str(Path(__file__).parent))
from run_file_fuzz import ROOT, mutated, run_files

SCHEMES_AND_PARTIES = {**SCHEMES, VERTICAL: Dealing}
SCHEMA = json_schema(METHODS, SCHEMES_AND_PARTIES)
VALIDATOR = Draft202012Validator(SCHEMA)
SMALL = {
    "model": {"name": "tiny:vit", "task": "image-classification"},
    "data": {"source": "sklearn:digits"},
    "partition": {"scheme": "dirichlet", "alpha": 0.5},
    "method": {"name": "h2tune", "slots": 2},
}


def problems(tables: object) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(tables)]


def accepted(tables: dict) -> bool:
    """Whether the library takes the tables, as far as no data and no model are needed."""
    try:
        for _, raw in variants(tables):
            config = parse(raw)
            method = METHODS[config.method.name]
            arguments(method, config.method.settings, prefix="method")
            if settings_problems(config.partition.scheme, config.partition.settings):
                return False
        parse(tables)
    except (ConfigError, KeyError):
        return False
    return True


def test_the_schema_is_one_and_names_every_key_and_method():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"].keys() == Config.model_fields.keys()
    assert [one["title"] for one in SCHEMA["$defs"]["Method"]["oneOf"]] == [*METHODS]
    assert [one["title"] for one in SCHEMA["$defs"]["Partition"]["oneOf"]] == [*SCHEMES_AND_PARTIES]


def test_every_key_of_every_section_says_what_it_means():
    bare = [
        f"{name}.{key}"
        for name, section in SECTIONS.items()
        for key, schema in SCHEMA["$defs"][section.__name__].get("properties", {}).items()
        if not schema.get("description")
    ]
    assert bare == []
    (h2tune,) = (one for one in SCHEMA["$defs"]["Method"]["oneOf"] if one["title"] == "h2tune")
    assert h2tune["properties"]["reselect"]["maximum"] == 1_000_000
    assert "Only with selection = 'strongest'." in h2tune["properties"]["reselect"]["description"]
    assert "penalty" in h2tune["properties"]["anchor"]["description"]


def test_every_run_file_of_the_project_fits():
    texts = [*run_files(), *(path.read_text("utf-8") for path in (ROOT / "experiments").rglob("*.toml"))]
    assert len(texts) > 12
    for text in texts:
        assert problems(tomllib.loads(text)) == [], text


@pytest.mark.parametrize(
    "override",
    [
        *("training.steps='3'", "training.steps=0", "training.steps=true", "training.stepz=3", "training=3"),
        *("training.optimizer=lion", "training.momentum=1.0", "adapter.rank=20_000", "adapter.sites=[]"),
        *("method.slots=0", "method.width='wide'", "method.shape=triangle", "method.name=fedavgg", "method.align=sof"),
        *("partition.alpha=0", "partition.beta=1.0", "partition.scheme=iid2", "partition.num_clients=0"),
        *("defence.max_norm_ratio=on", "defence.max_norm_ratio=0.5", "privacy.delta=1.0", "data.source=''"),
        *("rounds=2.5", "seeds=[1, 'a']", "seed=-1", "aggregation.rule=meen", "evaluation.clients=sent"),
        *("groups=[{label='a'}]", "groups=[{label='a', budget=1, training={steps='3'}}]", "checkpoints.keep=1"),
        *("compare=[{training={stepz=3}}]", "compare=[{method={slots=2}}]", "compare=[{seed=1}]", "model.labels=['a']"),
    ],
)
def test_a_wrong_value_is_refused_by_the_schema_as_by_the_library(override):
    assert problems(SMALL) == []
    assert accepted(SMALL)
    made = overlaid(SMALL, changes_of([override])[0])
    if override.startswith("partition.scheme"):
        made["partition"] = {"scheme": "iid2"}
    assert problems(made) != []
    assert not accepted(made)


@pytest.mark.parametrize("missing", ["model", "data"])
def test_what_has_no_default_is_required(missing):
    assert problems({key: value for key, value in SMALL.items() if key != missing}) != []
    assert problems({**SMALL, "partition": {"scheme": "dirichlet"}}) != []


def test_the_schema_refuses_nothing_that_the_library_takes():
    texts, taken, refused, both = run_files(), 0, 0, 0
    for number in range(150):
        try:
            tables = tomllib.loads(mutated(texts[number % len(texts)], random.Random(number)))
        except (tomllib.TOMLDecodeError, ValueError, RecursionError):
            continue
        if accepted(tables):
            taken += 1
            assert problems(tables) == [], number
        else:
            refused += 1
            with contextlib.suppress(ValueError):  # an integer of so many digits that no message can show it
                both += bool(problems(tables))
    assert taken > 5
    assert both > 0.7 * refused


def test_the_command_prints_it_or_writes_it(tmp_path):
    printed = CliRunner().invoke(app, ["schema"])
    assert json.loads(printed.stdout) == SCHEMA
    written = CliRunner().invoke(app, ["schema", "--out", str(tmp_path / "run-file.schema.json")])
    assert json.loads((tmp_path / "run-file.schema.json").read_text("utf-8")) == SCHEMA
    assert "#:schema" in written.stdout
