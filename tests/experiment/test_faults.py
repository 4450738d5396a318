"""Real processes through every failure: the short form; ``-m slow`` plays the long one over TLS, 20 rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr")

from faults import LONG, SHORT, Play, check

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Flower's processes in /proc")


def test_a_killed_node_a_cut_off_node_and_a_killed_server_lose_no_round(tmp_path):
    told: list[str] = []
    play = Play(tmp_path, 3, 3, secure=False, said=told.append)
    play.play(SHORT)
    check(play)
    assert play.killed == [1]
    assert [*play.away] == [2]
    assert play.broken == [2]


@pytest.mark.slow
def test_twenty_rounds_over_tls_through_every_failure(tmp_path):
    play = Play(tmp_path, 20, 4, secure=True)
    play.play(LONG)
    check(play)
    assert play.killed == [1]
    assert [*play.away] == [2]
    assert len(play.broken) == 2
    assert play.codes == [1, 1, 0]  # the operator's command tells of both losses
