import struct

import numpy as np
import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.figure import png
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
