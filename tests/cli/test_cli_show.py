import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedquilt import __version__
from fedquilt.methods import METHODS


def test_plan_is_a_table_that_holds_whole_numbers_when_piped(command):
    said = command("plan", "tiny.toml", "model.name='shape:vit-b16'", "adapter.rank=16", "clients.budgets=[6,9,12]")
    assert said.code == 0
    rows = [line.split() for line in said.out.splitlines()]
    # 12 blocks of 49,152, and a head of 10 x 768 + 10
    whole = next(row for row in rows if row[:3] == ["5", "12", "0-11"])
    assert whole[3:] == ["597,514", "2.4", "MB", "2.4", "MB", "99.30%"]
    assert "A head of 10 classes is included." in said.out
    assert "…" not in said.out
    assert not Path("runs").exists()


def test_plan_as_json_adds_up(command):
    said = command("plan", "tiny.toml", "--json")
    assert said.code == 0
    plans = json.loads(said.out)
    assert [one["client"] for one in plans] == [0, 1, 2, 3, 4, 5]
    for one in plans:
        parts = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes")
        assert one["peak_bytes"] == sum(one[part] for part in parts)
        assert one["bytes_up"] == 4 * one["trained_parameters"]
        assert 0 < one["saving"] < 1


def test_methods_lists_every_method_on_a_line(command):
    said = command("methods")
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines() if line.strip()][2:] == list(METHODS)
    listed = json.loads(command("methods", "--json").out)
    assert [one["name"] for one in listed] == list(METHODS)
    assert all(one["summary"] and one["paper"]["title"] for one in listed)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_with_settings_and_paper(command, name):
    shown = command("methods", name)
    assert shown.code == 0
    one = json.loads(command("methods", name, "--json").out)
    assert one["name"] == name
    assert one["paper"]["link"].startswith("https://")
    assert one["paper"]["link"] in shown.out
    for key, setting in one["settings"].items():
        (line,) = [line for line in shown.out.splitlines() if line.strip().startswith(f"{key}  ")]
        assert setting["type"] in line
        assert line.split()[-1] == str(setting["default"])
        assert "Weighting" not in setting["type"]  # the choices, not a name from the code


def test_fed_hellos_equations_are_shown(command):
    said = command("methods", "fed-hello")
    for equation in ("gd-set: ", "rgd-draw: ", "fisher: ", "rank-3-means: ", "layer-mean: ", "schedule: "):
        assert f"\n  {equation}" in said.out
    assert "[method]" in said.out


def test_an_unknown_method_is_told_with_the_nearest(command):
    said = command("methods", "fedd-hello")
    assert said.code == 1
    assert "'fedd-hello' is not a method (did you mean 'fed-hello'?); allowed: fed-hello, fedit" in said.err


def test_doctor_finds_this_machine_sound(command):
    said = command("doctor")
    assert said.code == 0
    assert "vit-12x64, loads" in said.out
    assert "no problem found; try: fedquilt demo" in said.out
    found = json.loads(command("doctor", "--json").out)
    assert found["problems"] == []
    assert found["version of fedquilt"] == __version__


def test_doctor_tells_a_problem_and_exits_non_zero(command, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1, 1, 5_000_000))
    said = command("doctor")
    assert said.code == 1
    assert "problem: only 5 MB free in this folder" in said.out


def test_report_shows_a_table_json_markdown_and_a_page(command, finished):
    said = command("report", finished, "--save", "table.md", "--html", "page.html")
    assert said.code == 0
    assert "fed-hello" in said.out
    assert said.err == "wrote page.html\n"
    assert "| fed-hello" in Path("table.md").read_text()
    page = Path("page.html").read_text()
    assert "<img" in page or "<svg" in page
    (row,) = json.loads(command("report", finished, "--json").out)
    assert row["seeds"] == 1


def test_plot_draws_into_a_folder_and_names_the_files(command, finished):
    said = command("plot", finished, "--out", "pictures")
    assert said.code == 0
    files = [Path(line) for line in said.out.splitlines()]
    assert len(files) >= 3
    assert all(file.stat().st_size > 1000 for file in files)
    assert sorted(files) == sorted(Path("pictures").iterdir())


def test_export_writes_a_peft_folder(command, finished):
    said = command("export", finished, "--out", "adapter")
    assert (said.code, said.out) == (0, "wrote adapter\n")
    settings = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 4.0)
    assert (settings["target_modules"], settings["modules_to_save"]) == (["q_proj", "v_proj"], ["classifier"])
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    said = command("export", finished, "--out", "mine")
    assert said.code == 1
    assert "error: --out mine: this folder is not empty and holds no adapter; give a new folder" in said.err
    assert Path("mine/letter.txt").read_text() == "dear"


def test_the_version_and_the_help_are_there(command):
    assert command("--version").out == f"fedquilt {__version__}\n"
    said = command("--help")
    for name in ("demo", "run", "check", "plan", "compare", "methods", "report", "plot", "export", "doctor"):
        assert f"\n  {name} " in said.out


def test_the_installed_command_runs_and_exits_as_it_should(tiny):
    said = subprocess.run(
        [sys.executable, "-c", "from fedquilt.cli import main; main()", "report", "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 1
    assert said.stdout == ""
    assert said.stderr.startswith("error: nowhere: no such run folder")


def test_two_files_are_compared_without_mixing_their_methods(command, tiny, monkeypatch):
    (tiny.parent / "other.toml").write_text(tiny.read_text().replace("rank = 2", "rank = 4"))
    said = command("compare", "tiny.toml", "other.toml", "rounds=1", "--json", "--no-plots")
    assert said.code == 0, said.err
    assert [row["label"] for row in json.loads(said.out)] == ["tiny: fed-hello", "other: fed-hello"]
