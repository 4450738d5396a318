import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedquilt.cli import screen
from fedquilt.cli.screen import Shown
from fedquilt.experiment.forecast import Forecast
from fedquilt.experiment.run import run
from fedquilt.record import read_config, read_result, read_rounds


def test_a_run_prints_a_line_a_round_when_piped_and_says_what_to_do_next(command, fingerprint, finished):
    said = command("run", "tiny.toml")
    assert said.code == 0
    assert said.out == "runs/tiny: finished; show it with: fedquilt report runs/tiny\n"
    lines = said.err.splitlines()
    assert [line.partition(": loss ")[0] for line in lines] == [f"tiny: round {n}/3" for n in (1, 2, 3)]
    assert all("accuracy " in line and "clients' mean " in line and line.endswith(" s") for line in lines)
    assert fingerprint(Path("runs/tiny")) == fingerprint(finished)


def test_overrides_and_the_folder_are_taken_and_quiet_is_quiet(command):
    said = command("run", "tiny.toml", "rounds=1", "training.epochs=1", "--folder", "here/it/is", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert (read_config("here/it/is")["rounds"], read_config("here/it/is")["training"]["steps"]) == (1, None)


def test_a_profile_says_where_the_time_went_and_changes_nothing(command, fingerprint, finished):
    said = command("run", "tiny.toml", "--profile", "--quiet")
    assert said.code == 0
    assert fingerprint(Path("runs/tiny")) == fingerprint(finished)
    events = json.loads(Path("runs/tiny/trace.json").read_text())["traceEvents"]
    count = {name: sum(event["name"] == name for event in events) for name in {event["name"] for event in events}}
    assert count["start-up"] == count["export"] == 1
    assert count["exchange"] == count["merge"] == count["evaluation"] == count["checkpoint"] == 3
    assert count["backward"] == count["optimiser"] > count["client"] >= 3
    assert count["forward"] > count["backward"]
    assert all(re.search(rf"^ *{name} +{times} ", said.out, re.M) for name, times in count.items())
    assert "runs/tiny/trace.json: open it at" in said.out


def test_a_profile_is_of_one_process(command):
    said = command("run", "tiny.toml", "--profile", "--engine", "flower-sim")
    assert said.code == 1
    assert "--profile: does not work with --engine flower-sim" in said.err


@pytest.mark.parametrize("after", [1, 2])
def test_ctrl_c_names_the_checkpoint_and_how_to_go_on(command, monkeypatch, fingerprint, finished, after):
    def interrupted(self, line, real=Shown.round):
        real(self, line)
        if line["round"] + 1 == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Shown, "round", interrupted)
        said = command("run", "tiny.toml")
    assert said.code == 130
    assert said.out == (
        f"stopped; runs/tiny/checkpoint.json holds the first {after} rounds; "
        "continue with: fedquilt run --resume runs/tiny\n"
    )
    assert "Traceback" not in said.err
    assert read_result("runs/tiny") is None
    said = command("run", "--resume", "runs/tiny")
    assert said.code == 0
    assert len(said.err.splitlines()) == 3 - after
    assert fingerprint(Path("runs/tiny")) == fingerprint(finished)
    assert [line["round"] for line in read_rounds("runs/tiny")] == [0, 1, 2]


def test_ctrl_c_in_the_first_round_can_be_gone_on_with_too(command, monkeypatch, fingerprint, finished):
    def interrupted(self, number, of):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Shown, "step", interrupted)
        said = command("run", "tiny.toml")
    assert said.code == 130
    assert said.out.startswith("stopped before the first round was finished; runs/tiny has no checkpoint yet; continue")
    assert command("run", "--resume", "runs/tiny").code == 0
    assert fingerprint(Path("runs/tiny")) == fingerprint(finished)


def test_ctrl_c_before_the_run_began_leaves_nothing(command, monkeypatch):
    def interrupted(*words):
        raise KeyboardInterrupt

    Path("runs/tiny").mkdir(parents=True)
    monkeypatch.setattr(importlib.import_module("fedquilt.experiment.build"), "read", interrupted)
    said = command("run", "tiny.toml")
    assert (said.code, said.out) == (130, "stopped before the run started; nothing was saved\n")
    assert [*Path("runs/tiny").iterdir()] == []


def test_resuming_a_finished_run_says_that_it_is_finished(command, finished):
    said = command("run", "--resume", finished)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{finished}: finished")


ENTRIES = """
[[compare]]
label = "random"
method = { name = "fed-hello", allocation = "rgd" }

[[compare]]
method = { name = "straggler" }
"""


def test_compare_runs_what_is_missing_prints_a_table_and_draws(command, tiny):
    tiny.write_text("seeds = [1, 2]\n" + tiny.read_text().replace("rounds = 3", "rounds = 2") + ENTRIES)
    said = command("compare", "tiny.toml", "--save", "table.md")
    assert said.code == 0
    labels = [line.split()[0] for line in said.out.splitlines() if line.startswith(("random", "straggler"))]
    assert set(labels) == {"random", "straggler"}
    assert "[4/4] straggler, seed 2: runs/tiny/straggler-seed2-" in said.err
    assert said.err.count("round 2/2") == 4
    assert "runs/tiny/report.html" in said.err
    assert Path("runs/tiny/report.html").stat().st_size > 1000
    assert len([*Path("runs/tiny/plots").iterdir()]) >= 3
    assert "| straggler" in Path("table.md").read_text()

    again = command("compare", "tiny.toml", "--json", "--reference", "random", "--no-plots")
    assert (again.code, again.err) == (0, "")
    assert {row["method"] if "method" in row else row["label"] for row in json.loads(again.out)} == {
        "random",
        "straggler",
    }
    said = command("compare", "tiny.toml", "--reference", "nobody")
    assert said.code == 1
    assert "--reference 'nobody': no such label; allowed: random, straggler" in said.err


def test_runs_side_by_side_show_their_number_and_the_time_left(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(screen, "errors", Console(file=written, force_terminal=True, width=120))
    with Shown() as shown:
        shown.runs(1, 12)
        assert shown.time_left() == ""
        shown.forecast(Forecast(left=7200.5, round=60, evaluation=1, runs=11))
        shown.bars.refresh()
    text = written.getvalue()
    assert shown.time_left() == "about 2 h 0 min left of 11 runs"
    assert "runs" in text
    assert "1/12" in text
    assert "about 2 h 0 min left of 11 runs" in text
    assert "steps" not in text


def test_compare_stopped_says_how_to_go_on(command, tiny, monkeypatch):
    def interrupted(self, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shown, "round", interrupted)
    said = command("compare", "tiny.toml")
    assert said.code == 130
    assert said.out == "stopped; finished rounds are kept, and the same command continues from there\n"


def test_compare_wants_a_run_file(command):
    said = command("compare", "rounds=2")
    assert said.code == 1
    assert "give at least one run file, as in: fedquilt compare my.toml" in said.err


def test_on_a_terminal_rounds_clients_and_steps_have_bars_and_time_left(config, monkeypatch, tmp_path):
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=120)
    monkeypatch.setattr(screen, "errors", terminal)
    with Shown() as shown:
        run(config(), tmp_path / "shown", shown)
        shown.bars.refresh()
        assert [task.description for task in shown.bars.tasks] == ["shown", "clients (fit)", "steps"]
        assert [(task.completed, task.total) for task in shown.bars.tasks] == [(3, 3), (4, 4), (2, 2)]
        assert shown.bars.tasks[0].fields["note"].startswith("loss ")
        shown.forecast(Forecast(left=7200, round=60, evaluation=1, runs=12))
        shown.bars.refresh()
    text = written.getvalue()
    assert "shown" in text
    assert "3/3" in text
    assert "about 2 h 0 min left of 12 runs" in text
    assert "round 1/3" not in text  # the plain lines are for pipes


GROUPS = """
rounds = 2
device = "cpu"
[model]
name = "tiny:vit?layers=3&width=16&image=8&patch=4"
task = "image-classification"
[data]
source = "sklearn:digits"
limit = 120
[partition]
num_clients = 6
[training]
steps = 2
batch_size = 8
[method]
name = "fedit"
[[groups]]
label = "vit-16"
budget = 2
[[groups]]
label = "vit-24"
budget = 2
model = {name = "tiny:vit?layers=2&width=24&image=8&patch=4", task = "image-classification"}
[[groups]]
label = "words"
budget = 1
model = {name = "tiny:bert?layers=2&width=16", task = "sequence-classification"}
data = {source = "./words.tsv"}
[[compare]]
label = "group-only"
[[compare]]
label = "alone"
method = {name = "local-only"}
"""


def test_two_sizes_of_images_and_a_group_of_words_run_in_one_federation(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "\n".join(["text\tlabel", *(f"word {row % 7}\t{row % 2}" for row in range(40))])
    (tmp_path / "words.tsv").write_text(words + "\n", encoding="utf-8")
    (tmp_path / "groups.toml").write_text(GROUPS, encoding="utf-8")
    assert command("check", "groups.toml").code == 0
    planned = command("plan", "groups.toml")
    assert planned.code == 0
    assert all(label in planned.out for label in ("vit-16", "vit-24", "words"))
    ran = command("run", "groups.toml", "--folder", "one")
    assert ran.code == 0, ran.err
    assert command("export", "one", "--out", "made", "--group", "words").code == 0
    assert (tmp_path / "made" / "adapter_config.json").exists()
    assert "--group" in command("export", "one", "--out", "other").err
    compared = command("compare", "groups.toml", "--no-plots")
    assert compared.code == 0, compared.err
    lines = compared.out.splitlines()
    start = lines.index("Group by group:")
    told = [line.split()[:2] for line in lines[start + 4 : start + 12]]
    groups = ["vit-16", "vit-24", "words", "worst"]
    assert told == [[label, group] for label in ("group-only", "alone") for group in groups]


SLEEPING = """
import os, sys
from fedquilt.cli import main
sys.argv = ["fedquilt", "--version"]
try:
    main()
except SystemExit:
    pass
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("chosen", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(chosen, policy):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | chosen
    ran = subprocess.run([sys.executable, "-c", SLEEPING], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == policy
