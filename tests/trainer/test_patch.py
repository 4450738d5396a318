"""A patched Trainer as a client: the tensors of its model travel, and everything else stays the script's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

pytest.importorskip("flwr")
pytest.importorskip("trl")

from in_process_grid import InProcessGrid
from trainers import plain_trainer, saved_model, settings, sft_trainer

import fedquilt
from fedquilt.core.errors import ConfigError, RoundError, TrainingError
from fedquilt.engine.flower.client import client_app
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.experiment import flower
from fedquilt.experiment.run import run
from fedquilt.experiment.trainer_site import site_of
from fedquilt.methods import METHODS
from fedquilt.record import Record, read_rounds
from fedquilt.trainer.rounds import trained
from fedquilt.trainer.tensors import copied, loaded, trained_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("base") / "model")


def federated(config, folder: Path, make, **options) -> Path:
    """The run of a federation whose clients are patched Trainers, each made by ``make`` of its number."""
    grid = grid_of(config, folder, make, **options)
    return run(config, folder / "run", connect=flower.over(grid, config, name="in-process", poll=0.01))


def grid_of(config, folder: Path, make, **options):
    patched = {
        id: fedquilt.patch(lambda node, id=id: make(id), **options) for id in range(config.partition.num_clients)
    }
    app = client_app(lambda id, node: site_of(config, patched[id], id, node), folder / "sites")
    return InProcessGrid(app, config.partition.num_clients)


def state_of(folder: Path):
    return Record.open(folder).load_checkpoint()[1]["params"]


def begun(config, folder: Path, make):
    """The tensors that the server begins with."""
    from fedquilt.experiment.build import build

    experiment = build(config, ())
    return experiment.method.init(experiment.rng.child("init"))["params"]


@pytest.mark.parametrize(("make", "rounds"), [(sft_trainer, 3), (plain_trainer, 4)])
def test_one_client_over_rounds_ends_where_one_plain_training_does(model, tmp_path, make, rounds):
    config = settings(tmp_path, model, rounds=rounds, clients=1)
    folder = federated(config, tmp_path, lambda id: make(model, tmp_path / "ours"))
    alone = make(model, tmp_path / "theirs")
    own = trained_of(alone.model)
    first = begun(config, tmp_path, make)
    assert own.keys() == first.keys()
    loaded(own, first)
    alone.train()
    for name, tensor in state_of(folder).items():
        torch.testing.assert_close(tensor, own[name].detach(), rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, first[name])
    steps = [line["exchanges"][0]["clients"]["0"]["metrics"]["steps"] for line in read_rounds(folder)]
    assert sum(steps) == alone.state.global_step
    assert all(steps)


def test_two_clients_are_averaged_like_a_loop_by_hand(model, tmp_path):
    config = settings(tmp_path, model, rounds=2)
    folder = federated(config, tmp_path, lambda id: sft_trainer(model, tmp_path / f"c{id}", id, rows=6 + 4 * id))
    ones = [sft_trainer(model, tmp_path / f"h{id}", id, rows=6 + 4 * id) for id in range(2)]
    params = begun(config, tmp_path, None)
    for number in range(2):
        made = []
        for id, trainer in enumerate(ones):
            loaded(trained_of(trainer.model), params)
            if number:
                trainer.save_model(str(tmp_path / f"h{id}" / "checkpoint-3"))
            else:
                torch.manual_seed(42)
                trainer.add_callback(Until(3))
            trainer.train(resume_from_checkpoint=str(tmp_path / f"h{id}" / "checkpoint-3") if number else None)
            made.append(copied(trained_of(trainer.model)))
            if not number:
                trainer.remove_callback(Until)
        params = {name: (6 * made[0][name] + 10 * made[1][name]) / 16 for name in params}
    for name, tensor in state_of(folder).items():
        torch.testing.assert_close(tensor, params[name], rtol=1e-5, atol=1e-7)


class Until(TrainerCallback):
    """Stops with a checkpoint, as a user would who goes on later."""

    def __init__(self, step=3):
        self.step = step

    def on_step_end(self, args, state, control, **others):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Heard(TrainerCallback):
    """Notes where a training begins and ends, and the learning rate of each step."""

    def __init__(self):
        self.begins, self.ends, self.rates = [], [], []

    def on_train_begin(self, args, state, control, **others):
        self.begins.append(state.global_step)

    def on_train_end(self, args, state, control, **others):
        self.ends.append(state.global_step)

    def on_log(self, args, state, control, logs=None, **others):
        if "learning_rate" in logs:
            self.rates.append((state.global_step, logs["learning_rate"]))


def test_callbacks_and_the_schedule_go_on_over_rounds(model, tmp_path):
    config, heard = settings(tmp_path, model, clients=1), Heard()
    folder = federated(config, tmp_path, lambda id: sft_trainer(model, tmp_path / "c", callbacks=[heard]))
    assert (heard.begins, heard.ends) == ([0, 2, 4], [2, 4, 6])
    assert heard.rates == [(step + 1, pytest.approx(1e-2 * (6 - step) / 6)) for step in range(6)]
    losses = [line["exchanges"][0]["clients"]["0"]["metrics"]["loss"] for line in read_rounds(folder)]
    assert all(0 < loss < 10 for loss in losses)


def test_what_a_trainer_resumes_from_stays_with_the_client_and_holds_no_weights(model, tmp_path):
    config = settings(tmp_path, model, rounds=2)
    folder = federated(config, tmp_path, lambda id: sft_trainer(model, tmp_path / f"c{id}", id))
    (run_key,) = (tmp_path / "sites").iterdir()
    for client in range(2):
        kept = MemoryStore(run_key / f"client-{client:03d}").newest["trainer"]
        assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} == kept.keys()
    for line in read_rounds(folder):
        for client in line["exchanges"][0]["clients"].values():
            assert client["bytes_up"] == client["bytes_down"] == 4 * sum(t.numel() for t in state_of(folder).values())
    assert not list((tmp_path / "c0").glob("checkpoint-*"))  # the user asked for none


def test_a_client_that_missed_rounds_goes_on_at_the_schedules_place(model, tmp_path):
    config, heard = settings(tmp_path, model, clients=1), Heard()
    trainer = sft_trainer(model, tmp_path / "c", callbacks=[heard])
    from fedquilt.trainer.rounds import trained

    done = trained(trainer, 2, config.rounds, {}, keep=True)
    assert done.steps == 2
    assert heard.rates == [(5, pytest.approx(1e-2 * 2 / 6)), (6, pytest.approx(1e-2 / 6))]
    assert 5 < done.loss < 6  # not that of two steps divided by six


def test_the_optimiser_may_start_anew_in_every_round(model, tmp_path):
    ends = {}
    for optimizer in ("kept", "reset"):
        folder = tmp_path / optimizer
        folder.mkdir()
        config = settings(folder, model, clients=1)
        ends[optimizer] = state_of(
            federated(config, folder, lambda id, folder=folder: plain_trainer(model, folder / "c"), optimizer=optimizer)
        )
    assert any(not torch.allclose(ends["kept"][name], ends["reset"][name]) for name in ends["kept"])


WITH_TRAINERS = {
    *("fedit", "ffa-lora", "rolora", "fedsa-lora", "hetlora", "flexlora", "lora-fair", "fedrot-lora", "florg"),
    *("fedrpca", "exclusive", "straggler", "local-only", "full"),
}
SLOW = WITH_TRAINERS - {"rolora", "fedsa-lora", "local-only"}
MIXED = ("mixture", "coordinates", "anchored")  # their run files need an adapter of that kind, which is refused too


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in METHODS])
def test_every_method_is_trained_or_refused_with_the_reason(model, tmp_path, method):
    from fedquilt.experiment.build import shaped
    from fedquilt.experiment.trainer_site import refuse_method
    from fedquilt.methods import traits_of

    if traits_of(method).vertical or traits_of(method).needs_server or traits_of(method).needs in MIXED:
        assert method not in WITH_TRAINERS
        return
    config = settings(tmp_path, model, rounds=2, method=method)
    if method not in WITH_TRAINERS:
        with pytest.raises(ConfigError, match=r"is not for a patched Trainer: |scores_from = 'server'"):
            refuse_method(shaped(config))
        return
    folder = federated(config, tmp_path, lambda id: plain_trainer(model, tmp_path / f"c{id}", id, max_steps=2))
    for line in read_rounds(folder):
        assert not line["exchanges"][0]["dropped"]
        assert len(line["exchanges"][0]["clients"]) == 2


def test_a_trainer_with_fewer_steps_than_rounds_is_refused(model, tmp_path):
    config = settings(tmp_path, model, clients=1)
    with pytest.raises(RoundError, match="the trainer does 2 steps in all, fewer than the run's 3 rounds"):
        federated(config, tmp_path, lambda id: plain_trainer(model, tmp_path / "c", max_steps=2))


def test_settings_that_break_rounds_are_refused_at_once(model, tmp_path):
    trainer = plain_trainer(model, tmp_path / "c")
    for name in ("load_best_model_at_end", "save_only_model"):
        setattr(trainer.args, name, True)
        with pytest.raises(ConfigError, match=f"args.{name} = True: .*set it to False"):
            fedquilt.patch(trainer)
        setattr(trainer.args, name, False)
    assert fedquilt.patch(trainer).optimizer == "kept"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rank = 2", "rank = 4", r"\(2, 16\), and this run's \(4, 16\); LoraConfig's r must be"),
        ("alpha = 4", "alpha = 8", "is scaled by 2, and this run's by 4; LoraConfig's lora_alpha"),
        ("rank = 2", 'targets = ["q_proj"], rank = 2', "trains 4 tensors that this run's adapter does not have"),
    ],
)
def test_an_adapter_that_is_not_the_runs_is_refused(model, tmp_path, old, new, words):
    from fedquilt.config.load import load

    settings(tmp_path, model)
    file = tmp_path / "run.toml"
    file.write_text(file.read_text().replace(old, new))
    patched = fedquilt.patch(sft_trainer(model, tmp_path / "c"))
    with pytest.raises(ConfigError, match=words):
        site_of(load(file)[0], patched, 0, {})


def test_a_model_without_an_adapter_is_refused_with_what_to_do(model, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    base = AutoModelForCausalLM.from_pretrained(model)
    quiet = {"report_to": "none", "use_cpu": True}
    trainer = Trainer(
        model=base, args=TrainingArguments(output_dir=str(tmp_path), **quiet), train_dataset=[1], data_collator=list
    )
    with pytest.raises(ConfigError, match=r"trains no adapter, .*peft_config=LoraConfig\(r=2, .*adapter.kind = 'full'"):
        site_of(settings(tmp_path, model), fedquilt.patch(trainer), 0, {})


def test_a_quantised_base_is_refused_on_both_sides(model, tmp_path):
    trainer = sft_trainer(model, tmp_path / "c")
    file = tmp_path / "run.toml"
    settings(tmp_path, model)
    file.write_text(file.read_text().replace('task = "causal-lm"', 'task = "causal-lm", quantization = "int8"'))
    from fedquilt.config.load import load

    with pytest.raises(ConfigError, match=r"quantization = 'int8' is not for a patched Trainer, .*= 'none'"):
        site_of(load(file)[0], fedquilt.patch(trainer), 0, {})
    trainer.model.get_base_model().is_quantized = True
    with pytest.raises(ConfigError, match=r"base is quantised, .*load the model without quantization_config"):
        fedquilt.patch(trainer)


def test_a_trainer_in_a_second_run_begins_where_it_began_in_the_first(model, tmp_path):
    trainer = plain_trainer(model, tmp_path / "c")
    first = copied(trained_of(trainer.model))
    ends = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        config = settings(tmp_path / name, model, rounds=2, clients=1, method="local-only")
        folder = federated(config, tmp_path / name, lambda id: trainer)
        ends.append(copied(trained_of(trainer.model)))
        assert not read_rounds(folder)[0]["exchanges"][0]["dropped"]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in first)
    assert any(not torch.equal(ends[0][name], first[name]) for name in first)


def test_another_base_is_refused_by_the_server(model, tmp_path):
    other = saved_model(tmp_path / "other", seed=2)
    config = settings(tmp_path, model, clients=1)
    with pytest.raises(ConfigError, match="base model's weights"):
        federated(config, tmp_path, lambda id: plain_trainer(other, tmp_path / "c"))


def test_what_is_no_trainer_is_refused():
    for value, words in ((3, "give a transformers.Trainer"), (None, "give a transformers.Trainer")):
        with pytest.raises(ConfigError, match=words):
            fedquilt.patch(value)
    with pytest.raises(ConfigError, match="must be 'kept' or 'reset'"):
        fedquilt.patch(print, optimizer="new")
    with pytest.raises(ConfigError, match="examples = 0"):
        fedquilt.patch(print, examples=0)


def test_rounds_push_no_model_to_the_hub(model, tmp_path, monkeypatch):
    made = sft_trainer(model, tmp_path / "c")
    made.args.push_to_hub = True
    pushed = []
    monkeypatch.setattr(made, "push_to_hub", lambda *args, **options: pushed.append(args))
    files = trained(made, 0, 3, {}, keep=True).files
    trained(made, 1, 3, files, keep=True)
    assert pushed == []
    assert made.args.push_to_hub


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_round_that_the_run_does_not_have_is_refused(model, tmp_path, number):
    with pytest.raises(TrainingError, match=f"of round {number + 1}, and the run has 3"):
        trained(sft_trainer(model, tmp_path / "c"), number, 3, {}, keep=True)


def test_a_first_round_does_not_depend_on_one_that_failed(model, tmp_path):
    def after(*tries):
        made, fails = sft_trainer(model, tmp_path / "c"), Fails()
        own = trained_of(made.model)
        first = copied(own)
        for fail in tries:
            loaded(own, first)
            if fail:
                made.add_callback(fails)
                with pytest.raises(TrainingError, match=r"failed \(KeyError\); the site's own log says why"):
                    trained(made, 0, 3, {}, keep=True)
                made.remove_callback(fails)
            else:
                trained(made, 0, 3, {}, keep=True)
        return copied(own)

    expected, found = after(False), after(True, False)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Fails(TrainerCallback):
    """Fails after the first step, as a loss or a reader of rows of the user's may."""

    def on_step_end(self, args, state, control, **others):
        raise KeyError("a row of somebody")


def test_a_script_that_ends_the_process_is_told_of(tmp_path):
    from fedquilt.experiment.trainer_site import _of_script

    (tmp_path / "script.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(ConfigError, match=r"of the node's config: SystemExit: 2"):
        _of_script(tmp_path / "script.py", 0)
