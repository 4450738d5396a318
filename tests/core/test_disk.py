"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat

import pytest

from fedquilt.core.disk import append_bytes, cut_bytes, private_folder, sync_tree, write_bytes


def test_bytes_are_put_appended_and_cut(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"one")
    append_bytes(path, b"two")
    assert path.read_bytes() == b"onetwo"
    cut_bytes(path, 4)
    assert path.read_bytes() == b"onet"
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="other rights there")
def test_what_is_private_is_so_from_its_first_byte_on(tmp_path, monkeypatch):
    private_folder(tmp_path / "own")
    (tmp_path / "own" / "a.part").write_text("left behind by an earlier version, readable by all")
    seen = []
    sync = os.fsync

    def watched(handle):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_bytes(tmp_path / "own" / "a", b"secret", private=True)
    write_bytes(tmp_path / "own" / "b", b"public")
    assert seen[0] == 0o600
    assert seen[1] != 0o600
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700


def test_everything_in_a_folder_is_flushed(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).write_text(name)
    names = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (names.append(os.fstat(handle).st_ino), sync(handle)))
    sync_tree(tmp_path)
    everything = {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}
    assert len(everything) == 6
    assert set(names) == everything or os.name == "nt"
