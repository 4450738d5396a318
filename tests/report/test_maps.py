"""Maps of allocation, partition and layer probabilities show what the run recorded."""

import json

import numpy as np
import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.maps import allocation_map, partition_picture, probability_map
from fedquilt.report.plot import figures
from fedquilt.report.runs import read_run


def test_allocation_is_sorted_by_budget(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5)], num_clients=6))  # budgets 6, 9, 12, 6, 9, 12
    axes = allocation_map(run).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "3", "1", "4", "2", "5"]
    values = axes.get_images()[0].get_array()
    assert values.shape == (12, 6)
    assert (values[0, 0], values[11, 0], values[11, 2], values.sum()) == (1, 1, 1, 3)
    texts = [text.get_text() for text in axes.texts]
    assert [text for text in texts if "layers" in text] == ["6 layers", "9 layers", "12 layers"]
    assert "capability group" in axes.get_title(loc="left")


def test_partition_bubbles_are_as_large_as_the_rows(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5)], num_clients=5))
    axes = partition_picture(run).axes[0]
    spots = axes.collections[0]
    counts = {
        (at, row): c["labels"].get(name, 0)
        for at, c in enumerate(run.partition["clients"])
        for row, name in enumerate(run.partition["classes"])
    }
    areas = dict(zip(((int(x), int(y)) for x, y in spots.get_offsets()), spots.get_sizes(), strict=True))
    assert set(areas) == {cell for cell, count in counts.items() if count}
    ratios = [areas[cell] / counts[cell] for cell in areas]
    np.testing.assert_allclose(ratios, ratios[0])


def test_partition_without_classes_shows_rows(make_run, round_line):
    folder = make_run([round_line(0, 0.5)], num_clients=3)
    text = (folder / "partition.json").read_text().replace('["zero", "one", "two", "three", "four"]', "[]")
    (folder / "partition.json").write_text(text)
    bars = partition_picture(read_run(folder)).axes[0].patches
    assert [bar.get_height() for bar in bars] == [30, 31, 32]


def test_probabilities_of_groups_get_a_panel_each(make_run, round_line):
    odds = {"6": [0.2, 0.8], "12": [0.5, 0.5]}
    run = read_run(make_run([round_line(at, None, state={"probabilities": odds}) for at in range(3)]))
    figure = probability_map(run)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "fed-hello, seed 1: 6",
        "fed-hello, seed 1: 12",
    ]


def test_a_run_without_evaluation_or_layers_has_only_its_partition(make_run, round_line):
    run = read_run(make_run([round_line(0, None, exchanges=[])]))
    assert [name for name, _ in figures({"bare": [run]})] == ["partition"]
    with pytest.raises(RunError, match="the method allocates no layers to clients"):
        allocation_map(run)
    with pytest.raises(RunError, match="no layer probabilities were recorded"):
        probability_map(run)


def test_narrow_groups_are_named_by_their_number(make_run, round_line):
    folder = make_run([round_line(0, 0.5)], num_clients=9)
    kept = json.loads((folder / "partition.json").read_text())
    for client in kept["clients"]:
        client["budget"] = {"layers": client["id"] + 1}
    (folder / "partition.json").write_text(json.dumps(kept))
    texts = [text.get_text() for text in allocation_map(read_run(folder)).axes[0].texts]
    assert texts[-9:] == [str(number) for number in range(1, 10)]
