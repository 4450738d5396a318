"""The run file on the report page: it is read as any other, and means the run that it was written for."""

import json
import tomllib
from pathlib import Path

import pytest

import fedquilt
from fedquilt.config.load import load, parse, resolved, variants
from fedquilt.report.run_file import run_file

ASSETS = Path(fedquilt.__file__).parent / "assets"
FILES = sorted([*ASSETS.glob("demo*.toml"), *ASSETS.glob("examples/*.toml")])


def test_there_are_run_files_of_many_kinds():
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_run_file_of_a_run_means_the_same_run(path, tmp_path):
    raw = load(path)[1]
    for _, own in variants(raw):
        ran = parse(own)
        recorded = json.loads(json.dumps(resolved(ran)))
        written = tmp_path / "again.toml"
        written.write_text(run_file(recorded), encoding="utf-8")
        assert resolved(load(written)[0]) == recorded
        changed = load(written, ["seed=7"])[0]
        assert resolved(changed) == {**recorded, "seed": 7}


def test_awkward_texts_and_tables_are_written_as_they_were():
    awkward = {
        "name": 'a "b" \\ \x7f\u00e9\n',
        "method": {"name": "x", "nothing": None, "odd key": [1, 2.5, True]},
        "groups": [{"label": "one", "model": {"name": "m", "empty": {}}}, {"label": "two", "model": {"name": "n"}}],
        "seeds": [],
    }
    wanted = json.loads(json.dumps(awkward))
    del wanted["method"]["nothing"]
    assert tomllib.loads(run_file(awkward)) == wanted
