"""Conflicts and cosines of an alignment, read from the record and drawn."""

from pathlib import Path

import numpy as np
import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.conflicts import alignments
from fedquilt.report.figure import png
from fedquilt.report.maps import alignment_map
from fedquilt.report.page import page
from fedquilt.report.plot import figures
from fedquilt.report.runs import Run, read_run

GROUPS = [{"label": label, "architecture": name} for label, name in (("s", "vit-2"), ("l", "bert-6"))]


def made(states, method="heterotune", groups=GROUPS, **aggregation):
    clients = [{"id": k, "group": group["label"], "budget": 1} for k in range(4) for group in groups[k % 2 : k % 2 + 1]]
    rounds = tuple(
        {"round": number, "seconds": 1.0, "exchanges": [], "evaluation": None, "state": state, "num_layers": 2}
        for number, state in enumerate(states)
    )
    config = {"method": {"name": method}, "seed": 1, "aggregation": aggregation, "rounds": len(states)}
    return Run(Path("run"), config, {}, {"groups": groups, "clients": clients}, rounds, None)


def test_cosines_are_averaged_over_rounds_in_which_both_were_there():
    states = [
        {"conflicts": 2, "cosines": [1.0, 0.5, 0.5, 1.0]},
        {"conflicts": 0, "cosines": [1.0, 0.0, 0.0, 0.0]},  # the second group was away
        {"conflicts": 1, "cosines": [1.0, -0.1, -0.1, 1.0]},
    ]
    (one,) = alignments(made(states)).values()
    assert one.rounds == [0, 1, 2]
    assert list(one.conflicts) == [2, 0, 1]
    np.testing.assert_allclose(one.cosines, [[1.0, 0.2], [0.2, 1.0]])
    assert one.names == ("bert-6", "vit-2"), "as they were sorted when they were aligned"
    (other,) = alignments(made(states, "h2tune")).values()
    assert other.names == one.names


def test_groups_that_never_met_have_no_cosine():
    (one,) = alignments(made([{"conflicts": 0, "cosines": [1.0, 0.0, 0.0, 0.0]}])).values()
    assert np.isnan(one.cosines[0, 1])
    assert np.isnan(one.cosines[1, 1])
    assert png(alignment_map(made([{"conflicts": 0, "cosines": [1.0, 0.0, 0.0, 0.0]}])))


def test_a_method_that_ran_apart_has_one_for_each_architecture_named_by_clients_or_groups():
    state = {"conflicts": {"vit-2": 3, "bert-6": 0}, "cosines": {"vit-2": [1, 0.1, 0.1, 1], "bert-6": [1.0]}}
    found = alignments(made([state], "fedit", align="soft", align_groups="client"))
    assert found["vit-2"].names == ("client 0", "client 2")
    assert found["bert-6"].names == ("0",), "numbers, where the record does not tell"
    assert len(alignment_map(made([state], "fedit")).axes) == 2 * 2 + 2  # and two scales
    by_group = alignments(
        made([{"conflicts": 1, "cosines": [1, 0, 0, 1]}], "fedit", align="soft", align_groups="group")
    )
    assert by_group[""].names == ("l", "s")


def test_too_many_groups_for_the_record_still_have_their_conflicts():
    (one,) = alignments(made([{"conflicts": 7, "cosines": []}])).values()
    assert one.cosines is None
    assert list(one.conflicts) == [7]
    assert png(alignment_map(made([{"conflicts": 7, "cosines": []}])))


def test_a_run_without_alignment_has_no_picture_of_it_and_says_so():
    run = made([{"scores": [1.0]}])
    assert alignments(run) == {}
    with pytest.raises(RunError, match=r"no alignment was recorded; set method.align or aggregation.align"):
        alignment_map(run)


def test_the_picture_is_among_the_figures_and_on_the_page(learning_run):
    read = read_run(learning_run("heterotune", 1, 0.7, num_rounds=3))
    rounds = tuple({**line, "state": {"conflicts": 1, "cosines": [1, 0.2, 0.2, 1]}} for line in read.rounds)
    run = Run(read.folder, read.config, read.environment, read.partition, rounds, read.result)
    names = [name for name, _ in figures({"ours": [run]})]
    assert "alignment-ours" in names
    assert 'id="chart-alignment-ours"' in page({"ours": [run]})
