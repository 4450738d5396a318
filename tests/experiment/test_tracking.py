"""Trackers: what they are sent, read back from the real TensorBoard, and that no failure of one reaches the run."""

import json
import logging
import math
import random
import sys
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

import fedquilt
from fedquilt.core.errors import ConfigError
from fedquilt.experiment import trackers
from fedquilt.experiment import tracking as tracking_module
from fedquilt.experiment.check import check
from fedquilt.experiment.compare import compare, jobs
from fedquilt.experiment.run import resume, run
from fedquilt.experiment.tracking import numbers_of, settings_of, without_secrets
from fedquilt.record import read_config, read_result, read_rounds

BOARD = "track={to='tensorboard'}"


def scalars(place):
    """Every scalar of a folder of event files as TensorBoard shows it: by name the steps and the values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


class Heard:
    """A tracker that keeps what it is sent, and fails where it is told to."""

    def __init__(self, run, made, fails=""):
        self.run, self.fails, self.sent, self.ends = run, fails, [], []
        made.append(self)
        self.shown = "nowhere"
        self._maybe("start")

    def _maybe(self, where):
        if self.fails == where:
            raise ConnectionError(f"no way to {where}\nmore of it")

    def log(self, step, numbers):
        self._maybe(f"step {step}")
        self.sent.append((step, dict(numbers)))

    def end(self, finished):
        self._maybe("end")
        self.ends.append(finished)


@pytest.fixture
def hear(monkeypatch):
    """``hear(mlflow="", wandb="step 2")``: these trackers, which fail there."""

    def begin(**where):
        made = []
        monkeypatch.setattr(trackers, "is_installed", lambda name: True)
        for name, fails in where.items():
            monkeypatch.setitem(trackers.TRACKERS, name, lambda run, fails=fails: Heard(run, made, fails))
        return made

    return begin


def test_tensorboard_is_sent_each_round_and_a_resumed_run_goes_on_in_its_files(config, tmp_path, fingerprint, finished):
    said = []

    class Stop:
        def round(self, line):
            if line["round"] == 1:
                raise KeyboardInterrupt

        def say(self, text):
            said.append(text)

    with pytest.raises(KeyboardInterrupt):
        run(config(BOARD), tmp_path / "tiny", Stop())
    assert said == ["tensorboard follows the run: tensorboard --logdir track/tensorboard"]
    resume(tmp_path / "tiny")
    assert fingerprint(tmp_path / "tiny") == fingerprint(finished)
    (place,) = Path("track/tensorboard/fedquilt").iterdir()
    assert place.name == "tiny"
    found, rounds = scalars(place), read_rounds(tmp_path / "tiny")
    for name, value in {
        "global/accuracy": lambda line: line["evaluation"]["global"]["accuracy"],
        "global/loss": lambda line: line["evaluation"]["global"]["loss"],
        "learning_rate": lambda line: line["learning_rate"],
        "bytes/up": lambda line: sum(own["bytes_up"] for own in line["exchanges"][0]["clients"].values()),
        "clients/replied": lambda line: 4,
    }.items():
        assert found[name] == [(line["round"] + 1, pytest.approx(value(line))) for line in rounds], name
    sent = [up + down for (_, up), (_, down) in zip(found["bytes/up"], found["bytes/down"], strict=True)]
    assert [value for _, value in found["bytes/total"]] == [sum(sent[: number + 1]) for number in range(3)]
    assert [step for step, _ in found["final/global/accuracy"]] == [3]
    assert not [name for name in found if name.startswith(("client ", "group "))]


def test_another_run_of_the_same_name_has_files_of_its_own(config, tmp_path):
    for folder in ("one", "two"):
        run(config(BOARD, "rounds=1"), tmp_path / folder / "tiny")
    first, second = sorted(Path("track/tensorboard/fedquilt").iterdir())
    assert (first.name, second.name[:5]) == ("tiny", "tiny-")
    assert all(len(scalars(place)["global/accuracy"]) == 1 for place in (first, second))


@pytest.mark.parametrize("where", ["start", "step 1", "step 2", "step 3"])
def test_a_tracker_that_fails_is_given_up_once_and_the_run_is_as_without_it(
    config, tmp_path, hear, fingerprint, finished, where
):
    made, said = hear(mlflow="", wandb=where), []

    class Listen:
        def say(self, text):
            said.append(text)

    run(config("track={to=['wandb','mlflow']}"), tmp_path / "tiny", Listen())
    assert fingerprint(tmp_path / "tiny") == fingerprint(finished)
    (warning,) = [text for text in said if text.startswith("warning")]
    assert warning.startswith(
        f"warning: wandb follows the run no more (ConnectionError: no way to {where}); the run goes"
    )
    ended = read_result(tmp_path / "tiny")
    told = [one.get("tracking") for one in (*read_rounds(tmp_path / "tiny"), ended)]
    at = {"start": 0, "step 1": 1, "step 2": 2, "step 3": 3}[where]
    expected = [None] * 4
    expected[at] = {"wandb": f"ConnectionError: no way to {where}"}
    assert told == expected
    (other,) = [one for one in made if not one.fails]
    assert [step for step, _ in other.sent] == [1, 2, 3, 3]  # the last are the scores of the final model
    assert other.ends == [True]


class Panic(BaseException):
    """What libraries in Rust raise."""


class Rude(Heard):
    """A tracker that changes what is common to all of the process."""

    def _maybe(self, where):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        logging.disable()
        super()._maybe(where)


def test_a_tracker_that_changes_the_random_state_does_not_change_the_run(
    config, tmp_path, monkeypatch, fingerprint, finished
):
    made = []
    monkeypatch.setattr(trackers, "is_installed", lambda name: True)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda run: Rude(run, made))
    run(config("track={to='wandb'}", "training.batch_size=3"), tmp_path / "tiny")
    logging.disable(logging.NOTSET)
    run(config("training.batch_size=3"), tmp_path / "plain")
    assert len(made[0].sent) == 4
    assert fingerprint(tmp_path / "tiny") == fingerprint(tmp_path / "plain")


@pytest.mark.parametrize("error", [SystemExit(3), Panic("overflow"), ValueError()])
def test_whatever_a_tracker_raises_the_run_goes_on(config, tmp_path, monkeypatch, hear, error):
    def log(self, step, numbers):
        raise error

    hear(wandb="")
    monkeypatch.setattr(Heard, "log", log)
    run(config("track={to='wandb'}", "rounds=1"), tmp_path / "tiny")
    (line,) = read_rounds(tmp_path / "tiny")
    assert read_result(tmp_path / "tiny")["tracking"]["wandb"].startswith(type(error).__name__)
    assert "tracking" not in line


def test_numbers_that_cannot_be_computed_concern_trackers_alone(config, tmp_path, monkeypatch, hear):
    def broken(line, names, clients):
        raise TypeError("a loss of a strange kind")

    monkeypatch.setattr(tracking_module, "numbers_of", broken)
    run(config("rounds=1"), tmp_path / "none")
    hear(wandb="")
    run(config("track={to='wandb'}", "rounds=1"), tmp_path / "tiny")
    assert read_result(tmp_path / "none")["status"] == read_result(tmp_path / "tiny")["status"] == "finished"


def test_no_password_and_no_key_is_told_or_recorded(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh12345")

    def failing(run):
        raise ConnectionError("API request to https://me:pa55@host/api?key=abcdefgh12345 failed")

    monkeypatch.setattr(trackers, "is_installed", lambda name: True)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", failing)
    said = []

    class Listen:
        def say(self, text):
            said.append(text)

    run(config("track={to='mlflow'}", "rounds=1"), tmp_path / "tiny", Listen())
    (line,) = read_rounds(tmp_path / "tiny")
    assert line["tracking"] == {"mlflow": "ConnectionError: API request to https://host/api?key=$SOME_API_KEY failed"}
    assert "pa55" not in "".join(said)
    assert without_secrets("postgresql://u:p@w@db/x and sqlite:///a@b") == "postgresql://db/x and sqlite:///a@b"


def test_the_command_to_look_is_quoted_for_a_shell(config, tmp_path):
    said = []

    class Listen:
        def say(self, text):
            said.append(text)

    run(config("track={to='tensorboard', folder='my runs; ls'}", "rounds=1"), tmp_path / "tiny", Listen())
    (told,) = [text for text in said if "follows the run" in text]
    assert told == "tensorboard follows the run: tensorboard --logdir 'my runs; ls/tensorboard'"


class Hanging(Heard):
    """A tracker that returns from nothing but its start once ``stuck``, until it is let go."""

    def __init__(self, run, made, stuck, go):
        super().__init__(run, made)
        self.stuck, self.go = stuck, go
        self._hang("start")

    def _hang(self, where):
        if self.stuck in ("always", where):
            self.go.wait(60)

    def log(self, step, numbers):
        self._hang(f"step {step}")
        super().log(step, numbers)

    def end(self, finished):
        self._hang("end")
        super().end(finished)


@pytest.fixture
def hang(monkeypatch):
    """``hang("step 1", go)``: a wandb that hangs there until the event ``go``, beside an mlflow that works."""

    def begin(stuck, go):
        made = []
        monkeypatch.setattr(trackers, "is_installed", lambda name: True)
        monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda run: Hanging(run, made, stuck, go))
        monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda run: Heard(run, made))
        monkeypatch.setattr(tracking_module, "_SECONDS", 0.2)
        monkeypatch.setattr(tracking_module, "_LAST_SECONDS", 0.2)
        return made

    return begin


@pytest.mark.parametrize("where", ["start", "step 1", "step 3", "end"])
def test_a_tracker_that_never_returns_holds_no_run_up(config, tmp_path, hang, fingerprint, finished, where):
    go, said = Event(), []
    made = hang(where, go)

    class Listen:
        def say(self, text):
            said.append(text)

    began = time.monotonic()
    run(config("track={to=['wandb','mlflow']}"), tmp_path / "tiny", Listen())
    assert time.monotonic() - began < 30
    assert fingerprint(tmp_path / "tiny") == fingerprint(finished)
    (warning,) = [text for text in said if text.startswith("warning")]
    assert warning.startswith("warning: wandb did not answer within 0.2 s; the run goes on without waiting for it, ")
    (other,) = [one for one in made if not isinstance(one, Hanging)]
    assert [step for step, _ in other.sent] == [1, 2, 3, 3]
    assert other.ends == [True]
    told = [one.get("tracking") for one in (*read_rounds(tmp_path / "tiny"), read_result(tmp_path / "tiny"))]
    late = {"wandb": "did not answer within 0.2 s; what it could not take since was left out"}
    at = {"start": 0, "step 1": 1, "step 3": 3, "end": None}[where]
    assert told == [late if number == at else None for number in range(4)]
    go.set()


def test_a_tracker_that_was_late_is_sent_what_comes_once_it_is_free(config, tmp_path, hang):
    go, late = Event(), []
    made = hang("step 1", go)

    class Listen:
        def round(self, line):
            if line["round"] == 1:  # it has missed round 2 by now
                late.append([step for step, _ in made[0].sent])
                go.set()
                end = time.monotonic() + 20
                while not made[0].sent and time.monotonic() < end:
                    time.sleep(0.01)

    run(config("track={to='wandb'}"), tmp_path / "tiny", Listen())
    assert late == [[]]
    assert [step for step, _ in made[0].sent] == [1, 3, 3]
    assert made[0].ends == [True]


def test_a_tracker_that_fails_late_is_given_up_too(config, tmp_path, hang, monkeypatch):
    go = Event()
    made = hang("step 1", go)
    monkeypatch.setattr(Heard, "log", lambda self, step, numbers: self._maybe(f"step {step}"))

    class Listen:
        def round(self, line):
            go.set()

    tracked = trackers.TRACKERS["wandb"]

    def failing(run):
        one = tracked(run)
        one.fails = "step 1"
        return one

    monkeypatch.setitem(trackers.TRACKERS, "wandb", failing)
    monkeypatch.setattr(tracking_module, "_LAST_SECONDS", 20.0)
    run(config("track={to='wandb'}", "rounds=1"), tmp_path / "tiny", Listen())
    assert made[0].ends == []
    assert read_result(tmp_path / "tiny")["tracking"]["wandb"].startswith(("did not answer", "ConnectionError"))


def test_a_tracker_that_hangs_takes_nobodys_output(capsys):
    silent, go, said = trackers._OfOtherThreads, Event(), Event()

    def hangs():
        with redirect_stdout(silent(sys.stdout)):
            print("of the tracker")
            said.set()
            go.wait(20)

    thread = Thread(target=hangs)
    thread.start()
    said.wait(20)
    print("of the run")
    go.set()
    thread.join()
    assert capsys.readouterr().out == "of the run\n"


def test_a_tracker_that_fails_at_its_end_does_not_fail_the_run(config, tmp_path, hear):
    hear(wandb="end")
    run(config("track={to='wandb'}", "rounds=1"), tmp_path / "tiny")
    assert read_result(tmp_path / "tiny")["status"] == "finished"


def test_a_run_that_stops_ends_its_trackers_and_is_known_again(config, tmp_path, hear):
    made = hear(mlflow="")

    class Stop:
        def round(self, line):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config("track={to='mlflow', project='wards', clients=true}"), tmp_path / "tiny", Stop())
    resume(tmp_path / "tiny")
    first, second = made
    assert (first.ends, second.ends) == ([False], [True])
    assert first.run == second.run._replace(first=1)
    assert second.run.first == 2
    assert second.run.resumed
    assert (first.run.project, first.run.name) == ("wards", "tiny")
    assert len(first.run.key) == 16
    assert [step for step, _ in second.sent] == [2, 3, 3]
    assert any(name.startswith("client 0/") for _, numbers in first.sent for name in numbers)


def test_what_is_not_installed_is_refused_before_the_run_begins(config, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda name: name != "trackio")
    wanted = config("track={to=['tensorboard','trackio']}")
    with pytest.raises(ConfigError) as caught:
        run(wanted, tmp_path / "tiny")
    for found in (check(wanted), caught.value.problems):
        (problem,) = found
        assert problem.startswith("track.to = 'trackio': trackio is not installed; install it with `")
        assert problem.endswith("pip install trackio`, or leave it out")
    assert not (tmp_path / "tiny").exists()


def test_a_run_goes_on_without_a_tracker_that_is_gone(config, tmp_path, hear, monkeypatch):
    hear(wandb="")

    class Stop:
        def round(self, line):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config("track={to='wandb'}"), tmp_path / "tiny", Stop())

    def gone(run):
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", gone)
    resume(tmp_path / "tiny")
    assert read_rounds(tmp_path / "tiny")[1]["tracking"] == {"wandb": "ModuleNotFoundError: No module named 'wandb'"}


def test_a_folder_named_like_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "nopackage").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not trackers.is_installed("nopackage")
    assert not trackers.is_installed("nothing_at_all")
    assert trackers.is_installed("tensorboard")


def test_comparisons_and_the_library_track_too(tiny, hear):
    made = hear(mlflow="")
    tiny.write_text("seeds = [1, 2]\n" + tiny.read_text().replace("rounds = 3", "rounds = 1"))
    wanted = jobs(tiny, ["track.to=mlflow"])
    assert [job.folder for job in wanted] == [job.folder for job in jobs(tiny)]  # it is the same run
    compare(wanted)
    assert [one.run.name for one in made] == [job.folder.name for job in wanted]
    assert {one.run.group for one in made} == {"tiny"}
    compare(jobs(tiny))  # finished, whatever tracked it
    assert len(made) == 2
    made.clear()
    fedquilt.run(str(tiny), folder="here", track="mlflow", seeds=[])
    assert [one.run.name for one in made] == ["here"]
    assert read_config("here")["track"]["to"] == "mlflow"


LINE = {
    "round": 0,
    "seconds": 2.0,
    "evaluation_seconds": 0.5,
    "learning_rate": 0.1,
    "privacy": {"epsilon": 3.5},
    "exchanges": [
        {
            "exchange": "fit",
            "clients": {
                "0": {"bytes_up": 10, "bytes_down": 20, "metrics": {"loss": 1.0}},
                "1": {"bytes_up": 30, "bytes_down": 20, "metrics": {"loss": 3.0}},
            },
            "dropped": {"2": "is away"},
        }
    ],
    "evaluation": {
        "global": {"accuracy": 0.5, "loss": math.nan},
        "groups": {"St. Gallen/1": {"accuracy": 0.25}, "b": {"accuracy": 0.75}, "c": None},
        "clients": {"0": {"accuracy": 0.5}, "1": {"accuracy": 1.0}},
    },
}


def test_sites_are_named_only_if_that_was_asked_for():
    plain = numbers_of(LINE, {"0": "Zürich: Süd"}, clients=False)
    assert plain == {
        "bytes/up": 40,
        "bytes/down": 40,
        "clients/replied": 2,
        "clients/dropped": 1,
        "seconds/round": 2.0,
        "seconds/evaluation": 0.5,
        "learning_rate": 0.1,
        "privacy/epsilon": 3.5,
        "train/loss": 2.0,
        "global/accuracy": 0.5,
        "clients/mean_accuracy": 0.75,
        "clients/worst_accuracy": 0.5,
        "clients/deviation_of_accuracy": pytest.approx(math.sqrt(0.125)),
        "groups/worst_accuracy": 0.25,
    }
    asked = numbers_of(LINE, {"0": "Zürich: Süd"}, clients=True)
    assert {name: value for name, value in asked.items() if name not in plain} == {
        "group St._Gallen_1/accuracy": 0.25,
        "group b/accuracy": 0.75,
        "client 0 Zürich__Süd/accuracy": 0.5,
        "client 1/accuracy": 1.0,
    }


def test_settings_that_are_sent_name_no_path_no_text_and_no_key(config):
    secret = ["model.revision=secret", "output=/home/secret", "privacy.mode=central", "privacy.test_key=4711"]
    sent = settings_of(config(*secret, "method.weighting=uniform", "data.classes=['secret','other']"))
    assert sent["method.name"] == "fed-hello"
    assert (sent["training.steps"], sent["privacy.mode"], sent["rounds"]) == (2, "central", 3)
    assert "secret" not in json.dumps(sent)
    assert "4711" not in json.dumps(sent)
    assert not [name for name in sent if name.startswith(("data", "model", "server", "groups", "parties"))]


@contextmanager
def environment(**values):
    with pytest.MonkeyPatch.context() as patched:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
            patched.delenv(name, raising=False)
        for name, value in values.items():
            patched.setenv(name, str(value))
        yield


def stopped_and_resumed(config, folder, name):
    class Stop:
        def round(self, line):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(f"track={{to='{name}', clients=true}}"), folder, Stop())
    resume(folder)
    assert [line.get("tracking") for line in read_rounds(folder)] == [None] * 3
    return [line["evaluation"]["global"]["accuracy"] for line in read_rounds(folder)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_one_run_with_every_round(config, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    with environment():
        accuracy = stopped_and_resumed(config, tmp_path / "tiny", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{Path('track/mlflow.db').absolute()}")
    (one,) = client.search_runs([client.get_experiment_by_name("fedquilt").experiment_id])
    assert (one.info.run_name, one.info.status) == ("tiny", "FINISHED")
    history = client.get_metric_history(one.info.run_id, "global/accuracy")
    assert [(step.step, step.value) for step in history] == [(n, pytest.approx(a)) for n, a in enumerate(accuracy, 1)]
    assert one.data.params["method.name"] == "fed-hello"
    assert "client 0/accuracy" in one.data.metrics


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_is_offline_without_a_key_and_asks_for_nothing(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it asked for something"))
    with environment():
        stopped_and_resumed(config, tmp_path / "tiny", "wandb")
    kept = sorted(Path("track/wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 2  # `wandb sync` makes one run of them, by their id
    assert len({file.name for file in kept}) == 1
    every = b"".join(file.read_bytes() for file in Path("track/wandb").rglob("*") if file.is_file())
    assert b"global/accuracy" in every
    assert not [*Path("track/wandb").rglob("requirements.txt")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_has_one_run_with_every_round(config, tmp_path, capsys):
    if not trackers.is_installed("trackio"):
        pytest.skip("trackio is not installed")  # not imported here: it reads where to write when it is
    with environment():
        accuracy = stopped_and_resumed(config, tmp_path / "tiny", "trackio")
    assert capsys.readouterr().out == ""
    import sqlite3

    (base,) = Path("track/trackio").glob("*.db")
    with sqlite3.connect(base) as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    opened.close()
    assert {row[0] for row in rows} == {"tiny"}
    found = [(step, json.loads(text)) for _, step, text in rows]
    got = [(step, one["global/accuracy"]) for step, one in found if "global/accuracy" in one]
    assert got == [(n, pytest.approx(a)) for n, a in enumerate(accuracy, 1)]
