import json

import numpy as np
import pytest

from fedquilt.core.errors import RunError
from fedquilt.record import Record
from fedquilt.record.manifest import FORMAT
from fedquilt.report.runs import allocation, cumulative_bytes, dropped, group_runs, layer_probabilities, read_run
from fedquilt.report.scores import curve


def test_a_run_is_read_as_it_lies_there(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5), round_line(1, None)], method="fedra", seed=3))
    assert (run.name, run.method, run.seed, run.finished) == ("glyphs", "fedra", 3, True)
    assert [line["round"] for line in run.rounds] == [0, 1]
    assert run.partition["digest"] == "d1"
    assert run.environment["device"] == "cpu"


def test_what_the_record_writes_is_read(make_run, round_line, tmp_path):
    by_hand = make_run([], folder="by-hand")
    config, environment, partition = (
        json.loads((by_hand / f"{name}.json").read_text()) for name in ("config", "environment", "partition")
    )
    record = Record.create(tmp_path / "recorded", config, environment, partition)
    measured = {"global": {"accuracy": 0.25, "loss": float("inf"), "examples": 4}, "clients": {}}
    record.append_round(round_line(0, None, evaluation=measured))
    record.save_checkpoint(1, {}, {})
    run = read_run(tmp_path / "recorded")
    assert (run.config, run.environment, run.partition) == (config, {**environment, "format": FORMAT}, partition)
    assert not run.finished
    assert curve(run) == ([0], [0.25])
    assert np.isnan(curve(run, "loss")[1][0])  # written as null
    record.save_result({"rounds": 1, "seconds": 1.5, "status": "finished"})
    assert read_run(tmp_path / "recorded").finished
    for name in ("config.json", "environment.json", "partition.json", "rounds.jsonl", "result.json", "checkpoint.json"):
        path = tmp_path / "recorded" / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"1", b"8", 1))
        with pytest.raises(RunError, match=rf"{name}: damaged, its sha256 is not"):
            read_run(tmp_path / "recorded")
        path.write_bytes(whole)
    record.append_round(round_line(1, 0.5))
    assert len(read_run(tmp_path / "recorded").rounds) == 1  # what no checkpoint holds will be run again


def test_an_unfinished_run_is_readable(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5)], finished=False))
    assert run.result is None
    assert not run.finished


def test_a_result_with_another_status_is_not_finished(make_run, round_line):
    folder = make_run([round_line(0, 0.5)])
    (folder / "result.json").write_text('{"status": "interrupted"}')
    assert not read_run(folder).finished


@pytest.mark.parametrize("part", [b'{"round": 1, "seco', b'{"notes": ["caf\xc3', b'{"round": 1}'])
def test_a_line_cut_short_by_a_kill_is_left_out(make_run, round_line, part):
    folder = make_run([round_line(0, 0.5)], finished=False)
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(part)
    assert len(read_run(folder).rounds) == 1


def test_a_round_written_again_after_resume_counts_once(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5), round_line(1, 0.1), round_line(1, 0.6)]))
    assert curve(run) == ([0, 1], [0.5, 0.6])


def test_no_such_folder(tmp_path):
    with pytest.raises(RunError, match=r"nowhere: no such run folder"):
        read_run(tmp_path / "nowhere")


def test_a_folder_of_runs_names_the_runs_in_it(make_run, round_line, tmp_path):
    make_run([round_line(0, 0.5)], folder="first")
    make_run([round_line(0, 0.5)], folder="second")
    make_run([round_line(0, 0.5)], folder=".third.creating")
    with pytest.raises(RunError, match=r"has no config\.json; it contains runs, give one of them: first, second$"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "partition.json"])
def test_each_missing_file_is_named(make_run, round_line, name):
    folder = make_run([round_line(0, 0.5)])
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"not a run folder, it has no {name}; give a folder that a run was written to"):
        read_run(folder)


@pytest.mark.parametrize("written", [None, "", '{"round": 0'])
def test_a_run_without_a_finished_round(make_run, written):
    folder = make_run([], finished=False)
    (folder / "rounds.jsonl").unlink()
    if written is not None:
        (folder / "rounds.jsonl").write_text(written)
    with pytest.raises(RunError, match=r"no round has been finished yet.*continue with: fedquilt run --resume .*run$"):
        read_run(folder)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('oops\n{"round": 0}\n', r"rounds\.jsonl: line 1 is not a finished round"),
        ("[1]\n", r"rounds\.jsonl: line 1 is not a finished round"),
    ],
)
def test_a_damaged_line_is_named(make_run, content, text):
    folder = make_run([])
    (folder / "rounds.jsonl").write_text(content)
    with pytest.raises(RunError, match=text):
        read_run(folder)


@pytest.mark.parametrize(
    ("content", "text"), [(b"{", "not JSON"), (b"[]", "not a JSON object"), (b'{"a": "\xff"}', "not JSON")]
)
def test_a_damaged_file_is_named(make_run, round_line, content, text):
    folder = make_run([round_line(0, 0.5)])
    (folder / "partition.json").write_bytes(content)
    with pytest.raises(RunError, match=rf"partition\.json: .*{text}"):
        read_run(folder)


def test_bytes_add_up_over_rounds_and_exchanges(make_run, round_line):
    twice = round_line(1, None)
    twice["exchanges"].append({"exchange": "score", "clients": {"2": {"bytes_down": 7, "bytes_up": 5}}, "dropped": {}})
    run = read_run(make_run([round_line(0, 0.5), twice]))
    assert cumulative_bytes(run) == ([0, 1], [1500, 3005], [3000, 6007])


def test_allocation_counts_used_replies_once_a_round(make_run, round_line):
    second = round_line(1, None)
    second["exchanges"][0]["dropped"] = {"1": "loss is nan at step 3", "4": "out of memory"}
    again = {"exchange": "fit again", "clients": {"0": {"settings": {"layers": [0, 5]}}}, "dropped": {}}
    second["exchanges"].append(again)
    run = read_run(make_run([round_line(0, 0.5), second]))
    ids, counts = allocation(run)
    assert ids == [0, 1, 2, 3, 4, 5]
    assert counts.shape == (12, 6)
    expected = np.zeros((12, 6), dtype=int)
    expected[0, 0] = expected[11, 0] = 2
    expected[5, 0] = expected[11, 1] = 1  # client 1 was dropped in round 1
    np.testing.assert_array_equal(counts, expected)
    assert dropped(run) == [
        {"round": 1, "exchange": "fit", "client": 1, "reason": "loss is nan at step 3"},
        {"round": 1, "exchange": "fit", "client": 4, "reason": "out of memory"},
    ]


def test_allocation_is_zero_where_no_layers_are_handed_out(make_run, round_line):
    bare = [{"exchange": "fit", "clients": {"0": {"bytes_up": 1, "bytes_down": 1, "settings": {}}}, "dropped": {}}]
    _, counts = allocation(read_run(make_run([round_line(0, 0.5, exchanges=bare)])))
    assert counts.shape == (12, 6)
    assert not counts.any()


def test_layer_probabilities_with_and_without_groups(make_run, round_line):
    plain = [round_line(0, None, state={"probabilities": [0.25, 0.75]}), round_line(1, None)]
    rounds, values = layer_probabilities(read_run(make_run(plain, folder="plain")))[""]
    assert rounds == [0]
    np.testing.assert_array_equal(values, [[0.25], [0.75]])
    grouped = [round_line(i, None, state={"probabilities": {"6": [0.1, 0.9], "9": [i, 1 - i]}}) for i in (0, 1)]
    found = layer_probabilities(read_run(make_run(grouped, folder="grouped")))
    assert list(found) == ["6", "9"]
    np.testing.assert_array_equal(found["9"][1], [[0, 1], [1, 0]])


def test_runs_that_differ_only_in_the_seed_form_a_group(make_run, round_line):
    def made(folder, **config):
        return read_run(make_run([round_line(0, 0.5)], folder=folder, **config))

    runs = [
        made("a2", method="fedit", seed=2),
        made("a1", method="fedit", seed=1),
        made("b1", seed=1),
        made("c1", seed=1, label="ours"),
        made("d1", method="fedra", seed=1, training={"steps": 1}),
        made("d2", method="fedra", seed=1, training={"steps": 2}),
    ]
    groups = group_runs(runs)
    assert {label: [run.folder.name for run in members] for label, members in groups.items()} == {
        "fedit": ["a1", "a2"],
        "fed-hello": ["b1"],
        "ours": ["c1"],
        "fedra": ["d1"],
        "fedra (2)": ["d2"],
    }


def test_methods_of_one_name_are_told_apart_by_their_settings(make_run, round_line):
    runs = []
    for shape in ("triangle", "uniform"):
        folder = make_run([round_line(0, 0.5)], folder=shape)
        config = json.loads((folder / "config.json").read_text())
        config["method"]["shape"] = shape
        (folder / "config.json").write_text(json.dumps(config))
        runs.append(read_run(folder))
    assert list(group_runs(runs)) == ["fed-hello shape=triangle", "fed-hello shape=uniform"]
