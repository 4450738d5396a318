import json
import struct

import numpy as np
import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.figure import png
from fedquilt.report.maps import allocation_map, partition_picture, probability_map
from fedquilt.report.plot import figures, over_bytes, over_rounds, save_plots
from fedquilt.report.runs import cumulative_bytes, read_run
from fedquilt.report.scores import curve


def size_of(content: bytes) -> tuple[int, int]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.fixture
def groups(learning_run):
    return {
        label: [read_run(learning_run(label, seed, level, num_rounds=10)) for seed in (1, 2)]
        for label, level in (("fed-hello gd", 0.8), ("fedit", 0.7))
    }


def test_every_picture_is_written_at_its_size(groups, tmp_path):
    paths = save_plots(groups, tmp_path / "plots")
    assert [path.name for path in paths] == [
        "global-over-rounds.png",
        "global-over-bytes.png",
        "personalised-over-rounds.png",
        "personalised-over-bytes.png",
        "partition.png",
        "allocation-fed-hello-gd.png",
        "probabilities-fed-hello-gd.png",
        "allocation-fedit.png",
        "probabilities-fedit.png",
    ]
    for path in paths:
        content = path.read_bytes()
        width, height = size_of(content)
        assert 700 <= width <= 2100
        assert 450 <= height <= 1650
        assert len(content) > 8_000
    assert size_of(paths[0].read_bytes()) == (1080, 675)  # 7.2 x 4.5 inches at 150 dots


def test_the_line_is_the_mean_over_seeds_and_the_band_its_deviation(groups):
    axes = over_rounds(groups).axes[0]
    curves = [curve(run)[1] for run in groups["fedit"]]
    line = next(line for line in axes.get_lines() if line.get_label() == "fedit")
    np.testing.assert_allclose(line.get_ydata(), 100 * np.mean(curves, axis=0))
    assert list(line.get_xdata()) == [number + 1 for number in curve(groups["fedit"][0])[0]]  # people count from 1
    band = axes.collections[1].get_paths()[0].get_extents()
    edge = 100 * (np.mean(curves, axis=0) + np.std(curves, axis=0, ddof=1))
    assert band.ymax == pytest.approx(edge.max())
    assert axes.get_ylabel() == "accuracy (%)"
    assert axes.get_xlabel() == "round"


def test_the_bytes_axis_ends_at_the_bytes_of_the_run(groups):
    axes = over_bytes(groups).axes[0]
    totals = [sum(both[-1] for both in cumulative_bytes(run)[1:]) for run in groups["fedit"]]
    line = next(line for line in axes.get_lines() if line.get_label() == "fedit")
    assert line.get_xdata()[-1] == pytest.approx(np.mean(totals) / 1e6)
    assert axes.get_xlabel().endswith("up and down (MB)")


def test_every_label_has_a_look_of_its_own_and_a_long_legend_stands_outside(groups):
    many = {f"method {number}": groups["fedit"][:1] for number in range(11)}
    figure = over_rounds(many)
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 11
    assert figure.axes[0].get_legend() is None
    assert len(figure.legends[0].get_texts()) == 11
    few = over_rounds(groups)
    assert few.legends == []
    assert [text.get_text() for text in few.axes[0].get_legend().get_texts()] == ["fed-hello gd", "fedit"]


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


def test_a_missing_global_leaves_that_picture_out(make_run, round_line):
    run = read_run(make_run([round_line(0, None, {0: 0.5, 1: 0.6})]))
    names = [name for name, _ in figures({"local-only": [run]})]
    assert names[:2] == ["personalised-over-rounds", "personalised-over-bytes"]


def test_labels_that_look_alike_as_file_names_do_not_overwrite_each_other(groups):
    names = [name for name, _ in figures({"a b": groups["fedit"], "a-b": groups["fedit"]})]
    assert len(names) == len(set(names))


def test_the_same_run_gives_the_same_bytes(groups):
    assert png(over_rounds(groups)) == png(over_rounds(groups))


def test_a_folder_that_cannot_be_written(groups, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*Give another folder for the plots"):
        save_plots(groups, tmp_path / "file")
    with pytest.raises(RunError, match="no run was given"):
        save_plots({}, tmp_path)


def test_methods_that_send_nothing_have_no_picture_over_bytes(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5, exchanges=[])]))
    assert [name for name, _ in figures({"local-only": [run]})] == ["global-over-rounds", "partition"]


def test_narrow_groups_are_named_by_their_number(make_run, round_line):
    folder = make_run([round_line(0, 0.5)], num_clients=9)
    kept = json.loads((folder / "partition.json").read_text())
    for client in kept["clients"]:
        client["budget"] = {"layers": client["id"] + 1}
    (folder / "partition.json").write_text(json.dumps(kept))
    texts = [text.get_text() for text in allocation_map(read_run(folder)).axes[0].texts]
    assert texts[-9:] == [str(number) for number in range(1, 10)]
