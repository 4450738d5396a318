"""The demonstrations: their run files are whole, and an unknown one is refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

import fedquilt
from fedquilt.cli.demo import DEMOS
from fedquilt.experiment.compare import jobs

ASSETS = Path(str(resources.files(fedquilt) / "assets"))


@pytest.mark.parametrize("name", DEMOS)
def test_a_demos_run_file_is_valid_and_downloads_nothing(name):
    for job in jobs(DEMOS[name], []):
        sources = [job.config.data.source, *(group.data.source for group in job.config.groups if group.data)]
        assert all(source.startswith(("sklearn:", "arithmetic:")) for source in sources)
        models = [job.config.model.name, *(group.model.name for group in job.config.groups if group.model)]
        assert all((ASSETS / model).is_dir() for model in models)


def test_an_unknown_demo_is_refused(command):
    said = command("demo", "ladder")
    assert said.code == 1
    assert "there is no demo 'ladder' (did you mean 'lada'?); allowed: digits, lada" in said.err
