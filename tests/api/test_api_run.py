"""Runs from Python: what they are given, and what is read back from their folders."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fedquilt
from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, RunError

TINY = {
    "seed": 3,
    "threads": 1,
    "rounds": 3,
    "model": {"name": "tiny:vit?layers=3&width=16&image=8&patch=4", "task": "image-classification"},
    "data": {"source": "sklearn:digits", "limit": 240, "proxy": 20},
    "partition": {"scheme": "pathological", "num_clients": 6, "classes_per_client": 2},
    "clients": {"budgets": (1, 2, 3), "cohort": 4},
    "adapter": {"rank": 2, "alpha": 4},
    "training": {"steps": 2, "batch_size": 8},
    "evaluation": {"last": 2},
    "method": {"name": "fed-hello", "allocation": "rgd"},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dictionary_a_config_a_file_and_keywords_give_the_same_adapters(tiny, finished, fingerprint):
    checked = load(tiny)[0]
    made = [
        fedquilt.run(TINY, folder="dict"),
        fedquilt.run(checked, folder="config"),
        fedquilt.run("tiny.toml", folder="file"),
        fedquilt.run(folder="keywords", **TINY),
        fedquilt.run(tiny, folder="over", method="fed-hello", training={"steps": 2}),
    ]
    assert [fingerprint(run.folder) for run in made] == [fingerprint(finished)] * 5


def test_keywords_are_laid_over_a_config_key_by_key(here):
    one = fedquilt.run(TINY, rounds=1, method="fedit", model="tiny:vit?layers=3&width=8&image=8&patch=4")
    assert (one.config.rounds, one.config.method.name) == (1, "fedit")
    assert one.config.method.settings == {}  # those of the other method went with it
    assert one.config.model.task == "image-classification"
    assert one.config.training.steps == 2
    assert one.folder == Path("runs/run")


def test_a_run_without_a_folder_takes_the_next_free_one(here):
    first, second = (fedquilt.run(TINY, rounds=1, name="mine") for _ in range(2))
    assert (first.folder, second.folder) == (Path("runs/mine"), Path("runs/mine-2"))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"engine": "flwr"}, "engine = 'flwr': no such engine"),
        ({"methd": "fedit"}, "did you mean 'method'"),
        ({"rounds": 0}, "rounds = 0"),
        ({"method": "fedit2"}, "method.name = 'fedit2': unknown method"),
        ({"progress": 3}, "progress = 3: must be True"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(here, keywords, words):
    with pytest.raises(ConfigError, match=words):
        fedquilt.run(TINY, **keywords)
    assert not list(here.rglob("config.json"))


def test_a_config_is_a_dictionary_a_file_or_checked(here):
    with pytest.raises(ConfigError, match=r"config = 3: must be a dictionary"):
        fedquilt.run(3)


def test_a_run_is_read_from_its_folder(finished):
    run = fedquilt.open_run(str(finished))
    assert run == fedquilt.Run(finished)
    assert run.finished
    assert run.result["rounds"] == 3
    assert [line["round"] for line in run.rounds] == [0, 1, 2]
    assert run.config.seed == 3
    assert "fed-hello, 3 of 3 rounds" in repr(run)
    (row,) = run.table()
    assert 0 <= row["final"] <= 1
    assert "fed-hello" in repr(run.table())
    curve = run.curve()
    assert curve["round"] == [1, 2, 3]
    assert len(curve["accuracy"]) == 3
    assert run.curve("loss", "clients-mean").keys() == {"round", "loss"}


def test_no_run_is_refused(here):
    with pytest.raises(RunError, match="no such run folder"):
        fedquilt.Run("nothing")


@pytest.mark.parametrize("kind", ["rounds", "bytes", "partition", "allocation"])
def test_a_plot_is_a_figure_that_a_notebook_shows(finished, kind):
    figure = fedquilt.open_run(finished).plot(kind)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_plot_of_another_kind_is_refused(finished):
    with pytest.raises(ConfigError, match=r"kind = 'round': no such picture .did you mean 'rounds'"):
        fedquilt.open_run(finished).plot("round")


def test_html_of_a_run_is_escaped(here):
    run = fedquilt.run(TINY, rounds=1, name="a <b> & c", label="<script>")
    html = run._repr_html_()
    assert "<table>" in html
    assert "<b>" not in html
    assert "&lt;b&gt; &amp; c" in html


def test_progress_is_silent_printed_called_or_an_object(here, capsys):
    fedquilt.run(TINY, rounds=1)
    assert capsys.readouterr() == ("", "")
    fedquilt.run(TINY, rounds=1, progress=True)
    assert "round 1/1: loss" in capsys.readouterr().out
    lines = []
    fedquilt.run(TINY, rounds=2, progress=lines.append)
    assert [line["round"] for line in lines] == [0, 1]
    assert lines[0]["seconds_left"] > lines[1]["seconds_left"] == 0
    told = SimpleNamespace(forecast=lines.append)  # an object with one of the methods
    fedquilt.run(TINY, rounds=1, progress=told)
    assert lines[-1].left == 0


def test_the_models_of_a_run_say_what_the_record_says(here):
    run = fedquilt.run(TINY, head={"policy": "local"}, method="fedit")
    with pytest.raises(RunError, match="no global model"):
        run.model()
    models = [run.model(client) for client in (0, 1)]
    assert run.adapter(0).name == "client-000"
    assert all(not parameter.requires_grad for model in models for parameter in model.parameters())
    heads = [dict(model.named_parameters())["classifier.weight"] for model in models]
    assert not torch.equal(*heads)


def test_the_global_model_scores_what_the_run_ended_with(finished):
    run = fedquilt.open_run(finished)
    from fedquilt.experiment.build import build

    model = run.model()
    assert not model.training
    server = build(run.config).server
    rows = server.splits["test"]
    with torch.no_grad():
        logits = model(**server.bench.prepare(rows)).logits
    accuracy = float((logits.argmax(1) == rows["labels"]).float().mean())
    assert accuracy == pytest.approx(run.table()[0]["final"])


def test_a_whole_model_comes_back(here):
    run = fedquilt.run(TINY, adapter={"kind": "full"}, method="fedit", rounds=1)
    saved = run.adapter() / "model.safetensors"
    from safetensors.torch import load_file

    weights = dict(run.model().named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(saved).items() if name in weights)


def test_a_stopped_run_goes_on(here, fingerprint, finished):
    def stop(line):
        if line["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedquilt.run(TINY, folder="stopped", progress=stop)
    run = fedquilt.Run("stopped")
    assert not run.finished
    assert run.result is None
    assert run.resume().finished
    assert fingerprint(run.folder) == fingerprint(finished)


def test_every_name_is_there_and_no_other():
    assert set(fedquilt.__all__) <= set(dir(fedquilt))
    for name in fedquilt.__all__:
        assert getattr(fedquilt, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedquilt.nothing


def test_help_shows_functions_and_classes():
    import pydoc

    text = pydoc.plain(pydoc.render_doc(fedquilt))
    assert "Federated fine-tuning of foundation models across heterogeneous clients" in text
    for name in ("run(", "compare(", "class Run", "class Comparison", "load_adapter("):
        assert name in text
    for noise in ("TYPE_CHECKING", "BaseModel"):
        assert noise not in text


def test_python_m_fedquilt_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "fedquilt", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == f"fedquilt {fedquilt.__version__}"


def test_rows_are_predicted_from_a_file_a_table_or_the_parties_tables(here):
    columns = {"visits": [1, 2, 3, 4, 5, 6] * 8, "income": [3.5, 1.5, 2.5, 0.5] * 12}
    columns["label"] = ["yes" if one > 2 else "no" for one in columns["income"]]
    new = {name: values[:10] for name, values in columns.items() if name != "label"}
    (here / "new.csv").write_text(
        "\n".join(["visits,income", *(f"{a},{b}" for a, b in zip(*new.values(), strict=True))])
    )
    common = {
        "model": "mlp?layers=1&width=8",
        "task": "tabular-classification",
        "data": columns,
        "adapter": {"kind": "full"},
        "training": {"steps": 2, "batch_size": 8},
        "device": "cpu",
        "rounds": 1,
    }
    apart = {"partition": {"scheme": "iid", "num_clients": 2}, "clients": {"shares": "1", "budgets": [1]}}
    alone = fedquilt.run(common | apart, method="fedit")
    found = alone.predict(here / "new.csv")
    assert [line["row"] for line in found.lines()] == list(range(10))
    assert {line["class"] for line in found.lines()} <= {"no", "yes"}
    assert (alone.predict(new).probabilities - found.probabilities).abs().max() < 1e-6
    assert alone.predict(new, client=0).classes == ("no", "yes")
    together = fedquilt.run(
        common
        | {
            "partition": {"scheme": "vertical", "aligned": 12, "width": 4, "test_fraction": 0.25},
            "method": "vfl-split",
            "parties": [{"label": "shop", "columns": ["visits"]}, {"label": "bank", "columns": ["income"]}],
        }
    )
    whole = together.predict(here / "new.csv")
    ids = [f"customer {row}" for row in range(10)]
    tables = {
        "shop": {"visits": new["visits"][::-1], "customer": ids[::-1]},
        "bank": {"income": new["income"], "customer": ids},
    }
    by_id = together.predict(tables, id="customer")
    assert (by_id.probabilities - whole.probabilities).abs().max() < 1e-6
    assert by_id.ids == tuple(ids)
    assert (together.predict(tables).probabilities - whole.probabilities).abs().max() > 1e-3
    less = together.predict(tables["bank"], without=["shop"])
    assert less.probabilities.shape == (10, 2)
    reopened = fedquilt.open_run(together.folder)
    with pytest.raises(RunError, match="began with objects in memory"):
        reopened.predict(here / "new.csv")
