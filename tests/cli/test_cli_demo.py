"""The demonstrations: their run files are whole, and an unknown one is refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

import fedquilt
from fedquilt.cli.demo import DEMOS
from fedquilt.data.loaders import load_table
from fedquilt.experiment.compare import jobs
from fedquilt.models.locate import is_mlp

ASSETS = Path(str(resources.files(fedquilt) / "assets"))


@pytest.mark.parametrize("name", DEMOS)
def test_a_demos_run_file_is_valid_and_downloads_nothing(name):
    for job in jobs(DEMOS[name], []):
        data = [job.config.data, *(group.data for group in job.config.groups if group.data)]
        if job.config.server:
            data += [job.config.server.data, *filter(None, [job.config.server.private])]
        sources = [source for own in data for source in (own.source, own.test) if source]
        assert all(source.startswith(("sklearn:", "arithmetic:")) for source in sources)
        for source in {source for source in sources if source.startswith("arithmetic:")}:
            assert len(load_table(source)) > 0  # there are as many problems as it asks for
        models = [job.config.model.name, *(group.model.name for group in job.config.groups if group.model)]
        models += [job.config.server.model.name] if job.config.server else []
        assert all((ASSETS / model).is_dir() or is_mlp(model) for model in models)


def test_an_unknown_demo_is_refused(command):
    said = command("demo", "ladder")
    assert said.code == 1
    assert "there is no demo 'ladder' (did you mean 'lada'?); allowed: digits, lada, tables, vertical" in said.err
