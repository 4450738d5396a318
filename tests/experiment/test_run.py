import contextlib
import errno
import importlib
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedquilt.config.load import load
from fedquilt.core import evaluated
from fedquilt.core.errors import RoundError, RunError
from fedquilt.experiment import round_record
from fedquilt.experiment.build import build
from fedquilt.experiment.export import export
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, hold, read_environment, read_partition, read_result, read_rounds
from fedquilt.report.caveats import notes
from fedquilt.report.runs import read_run

run_module = importlib.import_module("fedquilt.experiment.run")  # the package's own name for it is the function
TENSORS_OF_A_BLOCK = 2 * (2 * 16 + 16 * 2)  # query and value, factors (2, 16) and (16, 2)
HEAD = 16 * 10 + 10


class Told:
    """A Progress that writes down what it is told and, after ``stop_after`` calls, is interrupted."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after, self.started_at, self.lines = 0, stop_after, None, []

    def _count(self):
        self.calls += 1
        if self.calls == self.stop_after:
            raise KeyboardInterrupt

    def started(self, name, first, rounds):
        self.started_at = first

    def client(self, exchange, number, of):
        assert exchange == "fit"
        assert 1 <= number <= of
        self._count()

    def step(self, number, of):
        assert 1 <= number <= of
        self._count()

    def round(self, line):
        self.lines.append(line)
        self._count()


def test_a_run_folder_holds_everything_and_every_line_adds_up(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("config.json", "environment.json", "partition.json", "rounds.jsonl", "checkpoint.json", "checkpoint"),
        *("adapters", "result.json"),
    }
    assert read_result(finished)["status"] == "finished"
    lines = read_rounds(finished)
    assert [line["round"] for line in lines] == [0, 1, 2]
    budgets = {str(client["id"]): client["budget"] for client in read_partition(finished)["clients"]}
    for line in lines:
        (exchange,) = line["exchanges"]
        assert line["num_layers"] == 3
        assert len(exchange["clients"]) == 4
        assert exchange["dropped"] == {}
        for client, moved in exchange["clients"].items():
            layers = moved["settings"]["layers"]
            assert len(layers) == budgets[client]
            assert moved["bytes_down"] == 4 * (3 * TENSORS_OF_A_BLOCK + HEAD)
            assert moved["bytes_up"] == 4 * (len(layers) * TENSORS_OF_A_BLOCK + HEAD)
            assert moved["metrics"]["steps"] == 2
        scores = line["evaluation"]
        assert 0 <= scores["global"]["accuracy"] <= 1
        assert scores["clients"].keys() == budgets.keys()
        assert scores["global"]["examples"] == sum(client["examples"] for client in scores["clients"].values())


def test_the_proxy_rows_belong_to_no_client(finished):
    partition = read_partition(finished)
    held = [
        row for client in partition["clients"] for split in ("train", "validation", "test") for row in client[split]
    ]
    assert len(partition["proxy"]) == 20
    assert sorted(held + partition["proxy"]) == list(range(240))


def test_a_folder_may_be_given_as_text(config, tmp_path):
    folder = run(config("rounds=1"), str(tmp_path / "text"))
    assert folder == tmp_path / "text"
    assert resume(str(folder)) == folder


@pytest.mark.parametrize("how", ["cohort", "auto"])
def test_in_large_populations_the_clients_of_the_round_are_evaluated(config, tmp_path, monkeypatch, finished, how):
    assert not any("took part" in note for note in notes({"all": [read_run(finished)]}))
    monkeypatch.setattr(evaluated, "FEW", 5)
    folder = run(config("rounds=2", f"evaluation.clients={how}"), tmp_path / how)
    for line, other in zip(read_rounds(folder), read_rounds(finished), strict=False):
        took_part = line["exchanges"][0]["clients"].keys()
        assert line["evaluation"]["clients"].keys() == took_part
        assert len(took_part) < len(other["evaluation"]["clients"]) == 6
        for client, scores in line["evaluation"]["clients"].items():
            assert scores == pytest.approx(other["evaluation"]["clients"][client], rel=1e-6)
    assert any("clients that took part in each evaluated round" in note for note in notes({how: [read_run(folder)]}))


def test_rounds_without_evaluation_say_null_and_the_last_ones_are_always_evaluated(config, tmp_path):
    folder = run(config("rounds=5", "evaluation.every=2", "evaluation.last=1"), tmp_path / "sparse")
    assert [line["evaluation"] is not None for line in read_rounds(folder)] == [False, True, False, True, True]


@pytest.mark.parametrize("changes", [("method.name=local-only",), ("head.policy=local",)])
def test_there_is_no_global_score_where_the_server_holds_no_whole_model(config, tmp_path, changes):
    folder = run(config("rounds=1", *changes), tmp_path / "own")
    (line,) = read_rounds(folder)
    assert line["evaluation"]["global"] is None
    assert len(line["evaluation"]["clients"]) == 6
    down = [client["bytes_down"] for client in line["exchanges"][0]["clients"].values()]
    shared = 0 if changes == ("method.name=local-only",) else 3 * TENSORS_OF_A_BLOCK
    assert set(down) == {4 * shared}
    trained = sorted(line["exchanges"][0]["clients"])
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == [f"client-00{id}" for id in trained]


def test_a_frozen_head_stays_as_it_was_and_never_travels(config, tmp_path):
    from safetensors.torch import load_file

    wanted = config("rounds=2", "head.policy=frozen")
    folder = run(wanted, tmp_path / "frozen")
    for line in read_rounds(folder):
        for moved in line["exchanges"][0]["clients"].values():
            assert moved["bytes_up"] == 4 * len(moved["settings"]["layers"]) * TENSORS_OF_A_BLOCK
    saved = load_file(folder / "adapters" / "global" / "adapter_model.safetensors")
    start = dict(build(wanted).loaded.model.named_parameters())
    assert saved["base_model.model.classifier.weight"].equal(start["classifier.weight"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(config, tmp_path, finished, fingerprint):
    assert fingerprint(run(config(), tmp_path / "again")) == fingerprint(finished)
    assert fingerprint(run(config("seed=4"), tmp_path / "other")) != fingerprint(finished)


@pytest.mark.parametrize("moment", random.Random(8).sample(range(1, 3 * (4 + 8 + 1)), 4))
def test_interrupted_anywhere_and_resumed_a_run_ends_in_the_same_bits(config, tmp_path, finished, fingerprint, moment):
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(config(), folder, Told(stop_after=moment))
    assert read_result(folder) is None
    done = len(read_rounds(folder))
    told = Told()
    assert resume(folder, progress=told) == folder
    assert told.started_at == done
    assert fingerprint(folder) == fingerprint(finished)
    for line, other in zip(read_rounds(folder), read_rounds(finished), strict=True):
        assert line["exchanges"] == other["exchanges"]
        assert line["evaluation"] == other["evaluation"]


@pytest.mark.parametrize(
    "changes",
    [
        ("method.allocation=fim", "method.warmup=1", "method.refresh=1"),
        ("head.policy=local",),
        ("method.name=local-only", "method.shape=triangle"),
        ("method.name=fedra",),
        ("network.dtype=int8", "head.policy=local"),
    ],
)
def test_state_and_memories_of_every_kind_survive_a_stop(config, tmp_path, fingerprint, copying, changes):
    whole = run(config(*changes), tmp_path / "whole", copying(tmp_path / "whole", tmp_path / "stopped", 2))
    assert fingerprint(resume(tmp_path / "stopped")) == fingerprint(whole)


@pytest.fixture
def threads_restored():
    """As many torch threads after the test as before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_resumed_run_has_the_threads_that_it_began_with(config, tiny, tmp_path, threads_restored):
    """As many threads, the same sums in the same order, even where the run file leaves their number to torch."""
    tiny.write_text(tiny.read_text().replace("threads = 1\n", ""))
    folder = tmp_path / "stopped"
    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt):
        run(config(), folder, Told(stop_after=1))
    assert read_environment(folder)["threads"] == 1
    torch.set_num_threads(2)
    seen = []

    class Watching(Told):
        def step(self, number, of):
            seen.append(torch.get_num_threads())

    resume(folder, progress=Watching())
    assert set(seen) == {1}


def test_resuming_a_finished_run_changes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    told = Told()
    assert resume(finished, progress=told) == finished
    assert told.started_at is None
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.fixture(scope="module")
def first_round(finished, tmp_path_factory):
    """The folder of a run that was stopped after its first round. Not to be changed."""
    folder = tmp_path_factory.mktemp("first") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(load(finished.parent / "tiny.toml")[0], folder, Told(stop_after=13))
    return folder


@pytest.fixture
def stopped(config, first_round, tmp_path):
    """A copy of it."""
    return shutil.copytree(first_round, tmp_path / "stopped")


def test_a_run_is_not_resumed_with_another_config(config, stopped):
    with pytest.raises(RunError, match=r"started from another config: training.steps is 2 there and 5 now"):
        resume(stopped, config("training.steps=5"))
    assert resume(stopped, config("output=elsewhere", "name=other")) == stopped


def test_other_data_or_other_weights_than_the_run_began_with_are_refused(config, stopped, monkeypatch):
    folder = stopped
    with monkeypatch.context() as patched:
        patched.setattr("fedquilt.experiment.same_inputs.weights_digest", lambda groups: "another")
        with pytest.raises(RunError, match=r"model.name = 'tiny:vit.*' does not have the weights that the run"):
            resume(folder)
    other = {"partition": {**build(config()).partition, "digest": "another"}}
    monkeypatch.setattr(run_module, "build", lambda wanted, here: replace(build(wanted), **other))
    with pytest.raises(RunError, match=r"data.source = 'sklearn:digits' is not partitioned as when the run began"):
        resume(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "environment.json", "partition.json", "rounds.jsonl", "checkpoint.json"]
)
def test_what_was_changed_since_it_was_written_is_refused_by_name(stopped, tmp_path, name):
    folder = stopped
    path = folder / name
    whole = path.read_text()
    digit = next(place for place, sign in enumerate(whole) if sign in "12345678")
    path.write_text(whole[:digit] + "9" + whole[digit + 1 :])
    for act in (lambda: resume(folder), lambda: export(folder, tmp_path / "out")):
        with pytest.raises(
            RunError, match=rf"{name}: damaged, its sha256 is not the one that .*; restore it from a copy"
        ):
            act()
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused_by_name(stopped):
    folder = stopped
    (state,) = (folder / "checkpoint").glob("state-*.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(RunError, match=rf"{state.name}: damaged, its sha256 is not the one that was noted"):
        resume(folder)


def with_rate(experiment, id, rate):
    client = experiment.clients[id]
    changed = replace(client, training=replace(client.training, learning_rate=rate))
    return replace(experiment, clients={**experiment.clients, id: changed})


def test_a_client_whose_loss_is_nan_is_dropped_and_named_and_the_round_goes_on(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "build", lambda wanted, here: with_rate(build(wanted), 2, 1e30))
    told = Told()
    folder = run(config("clients.cohort=6", "rounds=2"), tmp_path / "one", told)
    for line in read_rounds(folder):
        (exchange,) = line["exchanges"]
        assert exchange["dropped"] == {"2": "loss is nan at step 2"}
        assert sorted(exchange["clients"]) == ["0", "1", "3", "4", "5"]
        assert exchange["dropped_bytes_down"] == 4 * (3 * TENSORS_OF_A_BLOCK + HEAD)
        assert line["evaluation"]["global"]["loss"] > 0  # the others' model is sound
    assert read_result(folder)["status"] == "finished"


def test_a_quorum_that_is_not_met_ends_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "build", lambda wanted, here: with_rate(build(wanted), 2, 1e30))
    with pytest.raises(
        RoundError, match=r"5 of 6 clients sent a usable reply and 6 are needed \(client 2: loss is nan"
    ):
        run(config("clients.cohort=6", "rounds=2", "quorum=1.0"), tmp_path / "all")


def test_all_losses_nan_end_the_run_and_leave_the_last_checkpoint(config, tmp_path, monkeypatch, finished, fingerprint):
    def exploding(training, round, rounds):
        return 1e30 if round == 1 else training.learning_rate

    folder = tmp_path / "exploded"
    with monkeypatch.context() as patched:
        patched.setattr("fedquilt.client.client.learning_rate_at", exploding)
        with pytest.raises(RoundError) as caught:
            run(config(), folder)
    text = str(caught.value)
    assert text.startswith("round 2, exchange 'fit': 0 of 4 clients sent a usable reply and 1 are needed (client ")
    assert text.count("loss is nan at step 2") == 4
    assert "checkpoint.json holds the earlier rounds" in text
    assert "lower training.learning_rate (0.001)" in text
    assert Record.open(folder).load_checkpoint()[0] == 1
    assert fingerprint(resume(folder)) == fingerprint(finished)


@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "make the folder wri")])
def test_a_disk_that_refuses_leaves_the_last_checkpoint_whole(
    config, tmp_path, monkeypatch, finished, fingerprint, code, advice
):
    calls = []

    def failing(handle, real=os.fsync):
        calls.append(handle)
        if len(calls) > 20:
            raise OSError(code, os.strerror(code))
        real(handle)

    folder = tmp_path / "full"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(RunError) as caught:
            run(config(), folder)
    done = Record.open(folder).load_checkpoint()[0]
    assert 1 <= done < 3
    text = str(caught.value)
    assert os.strerror(code) in text
    assert f"the checkpoint of round {done} is intact" in text
    assert f"{advice}" in text
    assert f"continue with: fedquilt run --resume {folder}" in text
    assert fingerprint(resume(folder)) == fingerprint(finished)


def test_a_run_never_touches_a_folder_that_holds_something(config, tmp_path, finished):
    with pytest.raises(RunError, match=r"exists and is not empty; continue that run with: fedquilt run --resume"):
        run(config(), finished)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match=r"exists and is not empty; choose another name or output"):
        run(config(), tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_export_replaces_an_adapter_and_nothing_else(finished, tmp_path):
    out = tmp_path / "adapter"
    assert export(finished, out) == out
    assert export(finished, out) == out
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match=r"--out .*mine: this folder is not empty and holds no adapter"):
        export(finished, mine)
    with pytest.raises(RunError, match=r"--out .*letter.txt: is a file"):
        export(finished, mine / "letter.txt")
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_notices_emptied_adapters_and_leaves_what_was_there(finished, tmp_path):
    run_folder, out = tmp_path / "run", tmp_path / "adapter"
    shutil.copytree(finished, run_folder)
    export(run_folder, out)
    (out / "notes.md").write_text("what I know of it")
    before = contents(out)
    for content in (b"", b"\0" * 8):
        (run_folder / "adapters" / "global" / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(
            RunError, match=r"adapter_model.safetensors: damaged, its sha256 is not the one that was not"
        ):
            export(run_folder, out)
        assert contents(out) == before
    assert export(finished, out) == out
    assert contents(out) == before


def test_a_lost_adapter_of_a_client_is_not_taken_for_none(config, tmp_path):
    folder = run(config("rounds=1", "clients.ranks=[1,2,2]", "method.name=hetlora"), tmp_path / "ranks")
    assert (folder / "adapters" / "global").exists()
    own = min(path.name for path in (folder / "adapters").glob("client-*"))
    out = export(folder, tmp_path / "out", client=int(own.removeprefix("client-")))
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (folder / "adapters" / own / name).read_bytes()
    shutil.rmtree(folder / "adapters" / own)
    with pytest.raises(RunError, match=rf"adapters/{own}/.*: cannot be read \(No such file"):
        export(folder, tmp_path / "again", client=int(own.removeprefix("client-")))
    assert not (tmp_path / "again").exists()


def test_a_run_that_another_process_writes_is_neither_resumed_nor_exported(config, stopped, tmp_path, monkeypatch):
    monkeypatch.setattr("fedquilt.record.lock.PATIENCE", 0.1)
    folder = stopped
    with hold(folder):
        for act in (lambda: resume(folder), lambda: export(folder, tmp_path / "out"), lambda: run(config(), folder)):
            with pytest.raises(RunError, match=rf"is being written by process {os.getpid()} on "):
                act()
    assert read_result(resume(folder))["status"] == "finished"


def test_an_export_stopped_at_any_step_leaves_the_old_adapter_or_the_new_one_and_works_again(
    config, finished, tmp_path, monkeypatch
):
    class Killed(BaseException): ...

    other = run(config("adapter.alpha=32", "rounds=1"), tmp_path / "other")
    old, new = contents(export(finished, tmp_path / "old")), contents(export(other, tmp_path / "new"))
    assert all(old[name] != new[name] for name in ("adapter_config.json", "adapter_model.safetensors"))
    out, seen = tmp_path / "adapter", []
    for steps in range(60):
        export(finished, out)
        left = [steps]

        def counted(real, left=left):
            def called(*arguments, **keywords):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*arguments, **keywords)

            return called

        with monkeypatch.context() as patch:
            for owner, name in (
                (os, "fsync"),
                (Path, "rename"),
                (Path, "mkdir"),
                (shutil, "copy2"),
                (shutil, "rmtree"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            with contextlib.suppress(Killed):
                export(other, out)
        seen.append(None if not out.exists() else contents(out) == new)
        assert not out.exists() or contents(out) in (old, new)
        if not out.exists():  # between two steps: the old one is beside, and comes back even if the next export fails
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", counted(os.fsync, [0]))
                with pytest.raises(Killed):
                    export(other, out)
            assert contents(out) == old
        assert contents(export(other, out)) == new
        if left[0] >= 0:
            break
    assert left[0] >= 0
    assert set(seen) == {None, False, True}


def test_a_run_whose_folder_goes_away_while_it_runs_does_not_say_finished(config, tmp_path, finished):
    class Deleting(Told):
        def round(self, line):
            if line["round"] == 2:
                shutil.rmtree(tmp_path / "gone")
                if self.replaced:
                    shutil.copytree(finished, tmp_path / "gone")

    for replaced in (False, True):
        watch = Deleting()
        watch.replaced = replaced
        with pytest.raises(
            RunError, match=r"gone: was deleted, moved or replaced while this run was writing it, so the"
        ):
            run(config(), tmp_path / "gone", watch)
        assert (tmp_path / "gone").exists() == replaced


def test_a_run_goes_back_to_a_kept_round_and_ends_as_if_it_had_never_gone_further(
    config, tmp_path, finished, fingerprint
):
    folder = run(config("head.policy=local", "rounds=5", "checkpoints.keep=3"), tmp_path / "back")
    whole = fingerprint(folder)
    with pytest.raises(
        RunError, match=r"the checkpoint after 2 rounds is not kept; kept are those after 3, 4, 5 rounds"
    ):
        resume(folder, back_to=2)
    with pytest.raises(KeyboardInterrupt):
        resume(folder, back_to=3, progress=Told(stop_after=13))
    assert read_result(folder) is None
    assert len(read_rounds(folder)) == 4
    assert fingerprint(resume(folder)) == whole
    lines = read_rounds(folder)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line.get("abandoned_rounds") for line in lines] == [None, None, None, 2, None]
    resume(folder, back_to=5)  # nothing to forget but the result
    assert fingerprint(folder) == whole
    assert fingerprint(resume(folder, back_to=0)) == whole


def test_what_was_released_is_not_forgotten_by_going_back(config, tmp_path):
    pytest.importorskip("dp_accounting")
    private = (
        "privacy.mode=local",
        "privacy.clip_norm=1.0",
        "privacy.noise_multiplier=1.0",
        "method.weighting=uniform",
    )
    folder = run(config("rounds=2", *private), tmp_path / "private")
    with pytest.raises(
        RunError, match=r"cannot go back with privacy.mode = 'local': what rounds 2 to 2 released stays"
    ):
        resume(folder, back_to=1)


def test_where_scores_stop_being_numbers_the_last_sound_checkpoint_is_named(config, tmp_path, monkeypatch):
    judge = round_record.evaluate

    def poisoned(*asked, **how):
        scores = judge(*asked, **how)
        poisoned.calls += 1
        return {**scores, "global": {"loss": float("nan")}} if poisoned.calls > 1 else scores

    poisoned.calls = 0
    monkeypatch.setattr(round_record, "evaluate", poisoned)
    monkeypatch.setattr(
        "fedquilt.client.client.learning_rate_at", lambda training, round, rounds: 1e30 if round == 4 else 1e-3
    )
    folder = tmp_path / "dead"
    with pytest.raises(RoundError, match=rf"; to go back: fedquilt run --resume {folder} --from 1$"):
        run(config("rounds=6"), folder)
    assert Record.open(folder).kept == {1: True, 3: False, 4: False}


def test_an_export_says_what_it_cannot_give(config, tmp_path, finished):
    with pytest.raises(RunError, match=r"--client 6: .* has the clients 0 to 5"):
        export(finished, tmp_path / "x", client=6)
    folder = run(config("rounds=1", "head.policy=local"), tmp_path / "own")
    with pytest.raises(RunError, match=r"has no global model: tensors of it stay with the clients; .*--client"):
        export(folder, tmp_path / "x")
    assert (export(folder, tmp_path / "one", client=0) / "adapter_config.json").exists()
    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "stopped", Told(stop_after=1))
    with pytest.raises(RunError, match=r"has no finished round to export; let it finish one"):
        export(tmp_path / "stopped", tmp_path / "x")


@pytest.mark.parametrize("policy", ["aggregate", "frozen", "local"])
def test_peft_loads_what_a_run_leaves_and_gives_our_logits(config, tmp_path, policy):
    peft = pytest.importorskip("peft")
    import torch

    from fedquilt.models.hf import load_model

    wanted = config("rounds=2", f"head.policy={policy}")
    folder = run(wanted, tmp_path / "run")
    who = None if policy != "local" else 4
    out = export(folder, tmp_path / "adapter", client=who)
    name = "global" if who is None else "client-004"
    final = folder / "adapters" / name / "adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == final.read_bytes()

    experiment = build(wanted)
    _, state, memories = Record.open(folder).load_checkpoint()
    client = experiment.clients[4]
    client.bench.load(client.params(experiment.method.view(state, client.profile), memories.get(4)))
    model = wanted.model
    base = load_model(model.name, model.task, num_classes=10, rng=experiment.rng.child("model"))
    theirs = peft.PeftModel.from_pretrained(base.model, out).eval()
    with torch.no_grad():
        ours, _ = client.bench.forward(client.train)
        logits = theirs(**base.prepare({key: value for key, value in client.train.items() if key != "labels"})).logits
    assert torch.allclose(logits, ours, atol=1e-5)
    assert ours.std() > 0


JSONL = [{"prompt": f"say {word}", "completion": word} for word in ("one", "two", "three", "four") for _ in range(8)]


def test_a_language_model_learns_from_prompts_and_completions(config, tmp_path):
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in JSONL))
    changes = ("data.source=./said.jsonl", "data.text=prompt", "data.target=completion", "data.proxy=4")
    changes += ("model.name=tiny:llama", "model.task=causal-lm", "model.max_length=24", "partition.scheme=iid")
    wanted = config(*changes, "clients.budgets=[1,1,2]", "partition.num_clients=3", "clients.cohort=3", "rounds=4")
    wanted = wanted.model_copy(update={"training": replace(wanted.training, learning_rate=0.02)})
    folder = run(wanted, tmp_path / "lm")
    losses = [line["evaluation"]["global"]["loss"] for line in read_rounds(folder)]
    assert losses[-1] < losses[0]
    assert (folder / "adapters" / "global" / "adapter_config.json").exists()


def test_a_text_classifier_runs_on_tab_separated_text(config, tmp_path):
    words = [("good", "fine"), ("bad", "poor")]
    rows = [f"it is {words[n % 2][n // 2 % 2]} {n}\t{'neg' if n % 2 else 'pos'}" for n in range(60)]
    (tmp_path / "said.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    changes = ("data.source=./said.tsv", "model.name=tiny:bert", "model.task=sequence-classification")
    folder = run(config(*changes, "clients.budgets=[1,1,2]", "model.max_length=24", "rounds=1"), tmp_path / "text")
    (line,) = read_rounds(folder)
    assert line["evaluation"]["global"]["examples"] > 0
    assert read_partition(folder)["classes"] == ["neg", "pos"]


def test_the_published_clients_of_an_array_file_are_the_clients(config, tmp_path):
    import numpy as np

    generator = np.random.default_rng(0)
    clients = np.repeat([7, 3, 5], [20, 30, 10])
    is_train = np.ones(60, dtype=bool)
    is_train[::6] = False
    np.savez(
        tmp_path / "shared.npz",
        images=generator.integers(0, 256, (60, 8, 8), dtype=np.uint8),
        labels=np.arange(60) % 4,
        client=clients,
        is_train=is_train,
    )
    changes = ("data.source=./shared.npz", "partition.scheme=natural", "partition.num_clients=3", "data.proxy=0")
    folder = run(config(*changes, "data.limit=60", "clients.cohort=2", "rounds=1"), tmp_path / "natural")
    partition = read_partition(folder)
    rows = [len(client["train"]) + len(client["test"]) for client in partition["clients"]]
    assert rows == [int((is_train & (clients == id)).sum()) for id in (3, 5, 7)]
    assert [client["name"] for client in partition["clients"]] == ["3", "5", "7"]  # what the data call them
    (line,) = read_rounds(folder)
    assert line["evaluation"]["global"]["examples"] == 10  # the published test rows


def test_adapters_that_cannot_be_written_cost_no_round(config, tmp_path, monkeypatch, fingerprint, finished):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedquilt.adapters.folders.save_file", full)
        with pytest.raises(RunError, match=r"No space left on device.*all rounds are in the checkpoint.*--resume"):
            run(config(), tmp_path / "full")
    assert not (tmp_path / "full" / "result.json").exists()
    resume(tmp_path / "full")
    assert fingerprint(tmp_path / "full") == fingerprint(finished)
