"""The benchmark of the alignment notices wrong rows and an id in a message."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("private_set_intersection")

import torch

from fedquilt.engine.flower.client import memory_folder
from fedquilt.engine.flower.memory_store import MemoryStore

FILE = Path(__file__).parents[2] / "bench" / "alignment.py"


@pytest.fixture
def bench():
    spec = spec_from_file_location("bench_alignment", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_share_what_they_should_and_wrong_rows_are_noticed(bench, tmp_path):
    bench.write_files(tmp_path, 50, 0.2)
    ids = {party: bench.ids_of(tmp_path, party) for party in bench.PARTIES}
    common = sorted(set.intersection(*map(set, ids.values())))
    assert [len(own) for own in ids.values()] == [50, 50, 50]
    assert len(common) == 10
    assert len(set(ids["active"]) & set(ids["0"])) == 30
    rows = {party: [own.index(one) for one in common] for party, own in ids.items()}
    for number in (0, 1):
        store = MemoryStore(memory_folder(tmp_path / "sites", bench.RUN, number))
        store.keep((0, 2), {"aligned": torch.tensor(rows[str(number)])})
    assert bench.wrong_rows(tmp_path, rows["active"]) == []
    assert len(bench.wrong_rows(tmp_path, rows["active"][::-1])) == 2
    assert bench.wrong_rows(tmp_path, rows["active"][:-1])[0].startswith("active: another set")


def test_an_id_in_a_message_is_counted(bench, tmp_path):
    bench.write_files(tmp_path, 20, 0.2)
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "0000").write_bytes(b"nothing")
    assert bench.audited(tmp_path, points=True) == (0, 1, 7)
    (tmp_path / "messages" / "0001").write_bytes(b"so: " + bench.ids_of(tmp_path, "1")[3].encode())
    assert bench.audited(tmp_path, points=True)[0] == 1
