"""The offset for classes that nobody has learned, chosen on aligned rows: by hand, and in runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from parties import FILE
from torch import Tensor

from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import Failure
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import build, run
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.record import Record, read_rounds
from fedquilt.vertical.calibration import offset_of
from fedquilt.vertical.joint import Views


def views(knows: Tensor, seen: Tensor) -> Views:
    """Views of which only what is known and seen matters."""
    return Views(torch.zeros(1, 4, 2), torch.zeros(1, 3, 2), torch.ones(4, 1, dtype=torch.bool), knows, seen)


def test_proto_9_the_offset_by_hand() -> None:
    """Classes 0 and 1 are aligned, and nobody knows 2. A class that nobody knows has the score 0.

    Without class 0 its rows are right if 0 is not below 2 - offset and 3 - offset, and those of class 1 if 8 - offset
    and 5 - offset are above 0: all are from 3 to below 5. Without class 1: 1 - offset and 4 - offset are below 0, and
    9 - offset and 6 - offset are not: above 4, up to 6. Of 0, 0.5, 1, ... only 4.5 is right for both.
    """
    scores = torch.tensor([[9.0, 2.0, 7.0], [6.0, 3.0, 7.0], [1.0, 8.0, 7.0], [4.0, 5.0, 7.0]])

    def fused(views: Views) -> Tensor:
        return torch.where(views.knows.any(0), scores, 0.0)

    labels, some = torch.tensor([0, 0, 1, 1]), torch.tensor([[True, True, False]])
    assert offset_of(fused, views(some, some[0]), labels, 10.0) == 4.5
    everyone = torch.ones(1, 3, dtype=torch.bool)
    assert offset_of(fused, views(everyone, some[0]), labels, 10.0) == 0.0


def ended(folder: Path, offset: Any, **partition: Any) -> dict[str, Any]:
    raw = tomllib.loads(FILE) | {"method": {"name": "proto-evfl", "offset": offset}}
    raw["partition"] |= {"aligned": 40, "unaligned": 30, **partition}
    raw["training"] |= {"steps": 4}
    return dict(read_rounds(run(parse(raw), folder))[-1])


def test_the_offset_that_a_run_chose_gives_the_same_scores_when_it_is_set(tmp_path: Path) -> None:
    found = ended(tmp_path / "auto", "auto", unseen=["7"])
    chosen = found["state"]["offset"]
    assert 0 < chosen <= 10
    (_, state, _) = Record.open(tmp_path / "auto").load_checkpoint()
    assert float(state["calibration"]["offset"]) == pytest.approx(chosen)
    fixed = ended(tmp_path / "fixed", chosen, unseen=["7"])
    assert found["evaluation"] == fixed["evaluation"]
    assert "offset" not in fixed["state"]
    assert ended(tmp_path / "all", "auto")["state"]["offset"] == 0


def test_a_class_that_only_a_missing_party_has_learned_is_no_unknown_one(tmp_path: Path) -> None:
    """Only the party on the left has rows of class 7, and its reply of the last round is lost."""

    class Lost(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            for reply in super().send(exchange, orders):
                lost = reply.client == 0 and exchange.name == "embed" and orders[0].round == 2
                yield Failure(0, "lost on the way") if lost else reply

    raw = tomllib.loads(FILE) | {"method": {"name": "proto-evfl", "offset": "auto"}}
    raw["partition"] |= {"aligned": 40, "unaligned": 30, "aligned_classes": list("012345689")}
    raw["training"] |= {"steps": 4}
    for party in raw["parties"][1:]:
        party["classes"] = list("012345689")
    connect = EMBEDDED._replace(make=lambda made, key, memories, progress: Lost(made.clients, memories))
    last = read_rounds(run(parse(raw), tmp_path / "run", connect=connect))[-1]
    assert last["exchanges"][0]["dropped"] == {"0": "lost on the way"}
    assert last["state"]["offset"] == 0


@pytest.mark.parametrize(
    ("offset", "more", "words"), [("best", {}, r"method\.offset"), ("auto", {"mask": False}, "mask")]
)
def test_what_cannot_be_is_refused(offset: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(parse(tomllib.loads(FILE) | {"method": {"name": "proto-evfl", "offset": offset, **more}}))
