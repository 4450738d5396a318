"""The disk fills up at any byte of a round: earlier files stay intact, and the repeated round is bit-identical."""

from __future__ import annotations

import builtins
import os
import shutil
import subprocess

import pytest
import torch
from run_folders import create, finish, no_space, same

from fedquilt.core import disk
from fedquilt.core.errors import RunError
from fedquilt.record import Record, read_rounds


class Quota:
    """Lets ``left`` more bytes be written, then none."""

    def __init__(self, monkeypatch, left: int) -> None:
        self.left = left
        monkeypatch.setattr(disk, "open", self.open, raising=False)

    def open(self, path, mode, opener=None):
        file = builtins.open(path, mode, opener=opener)  # noqa: SIM115 - the handle below closes it

        class Handle:
            def __enter__(inner):
                return inner

            def __exit__(inner, *error):
                file.close()

            def write(inner, content):
                fits = content[: self.left]
                self.left -= len(content)
                file.write(fits)
                file.flush()
                if self.left < 0:
                    raise no_space()

            flush, fileno, truncate = file.flush, file.fileno, file.truncate

        return Handle()


STATES = [{"t": number, "a": torch.full((3,), float(number))} for number in range(3)]
MEMORIES = [{client: {"b": torch.full((2,), 10.0 * number + client)} for client in range(2)} for number in range(3)]


def round_of(made, number):
    finish(made, {"round": number, "loss": 0.5**number}, STATES[number], MEMORIES[number], True)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def goes_on(folder, whole) -> int:
    """Takes the run up again where a full disk has stopped it, as ``resume`` does; gives the round it began with."""
    made = Record.open(folder)
    made.check()
    start, state, _ = made.load_checkpoint()
    assert same(state, STATES[start - 1])
    assert [line["round"] for line in read_rounds(folder)] == [*range(start)]
    made.truncate_rounds()
    for number in range(start, 3):
        round_of(made, number)
    assert contents(folder) == whole
    return start


def swept(tmp_path, step):
    """Fills the disk ``step`` bytes later each time; gives how often, and the rounds that runs went on with."""
    begun, straight = create(tmp_path / "begun"), create(tmp_path / "straight")
    for number in range(2):
        round_of(begun, number)
    for number in range(3):
        round_of(straight, number)
    whole, starts, left = contents(straight.folder), [], 0
    while True:
        folder = tmp_path / "full"
        shutil.copytree(begun.folder, folder)
        made = Record.open(folder)
        made.load_checkpoint()
        with pytest.MonkeyPatch.context() as patch:
            quota, message = Quota(patch, left), ""
            try:
                round_of(made, 2)
            except RunError as error:
                message = str(error)
        assert quota.left >= 0 or "cannot be written (No space left on device)" in message
        starts.append(goes_on(folder, whole))
        shutil.rmtree(folder)
        if quota.left >= 0:
            return starts
        left += step


def test_full_at_some_bytes_of_a_round(tmp_path):
    starts = swept(tmp_path, 97)
    assert len(starts) > 20
    assert starts.count(3) == 1


@pytest.mark.slow
def test_full_at_every_byte_of_a_round(tmp_path):
    starts = swept(tmp_path, 1)
    print(f"the disk was full at each of {len(starts) - 1} bytes of a round; every run went on to the same bytes")
    assert len(starts) > 1000
    assert starts.count(3) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_disk_that_is_full_at_any_page_of_a_round(tmp_path, small_disk):
    straight = create(tmp_path / "straight")
    for number in range(3):
        round_of(straight, number)
    whole, stopped = contents(straight.folder), 0
    for pages in range(40):
        folder, ballast = small_disk / "run", small_disk / "ballast"
        made = create(folder)
        for number in range(2):
            round_of(made, number)
        free = os.statvfs(small_disk)
        ballast.write_bytes(b"x" * ((free.f_bavail - pages) * free.f_frsize))
        message = ""
        try:
            round_of(made, 2)
        except RunError as error:
            message = str(error)
        ballast.unlink()
        goes_on(folder, whole)
        shutil.rmtree(folder)
        if not message:
            break
        stopped += 1
        assert "cannot be written (No space left on device)" in message
        assert "free some space, then continue with: fedquilt run --resume" in message
    assert not message
    assert stopped >= 3
