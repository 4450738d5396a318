"""H2Tune from a run file: unlike models and tasks, from the plan to an adapter that PEFT serves."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fedquilt.adapters.sites import site_of
from fedquilt.bank.merge import exchange_bytes
from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.experiment.build import build
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import plan
from fedquilt.experiment.round_record import evaluate
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, read_environment, read_partition, read_rounds
from fedquilt.report.conflicts import alignments
from fedquilt.report.runs import read_run

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

RUN = """
seed = 3
rounds = 3
device = "cpu"
threads = 1

[model]
name = "tiny:llama?layers=3&width=16"
task = "causal-lm"
max_length = 24

[data]
source = "./words.tsv"
target = "answer"

[partition]
scheme = "iid"
num_clients = 6

[adapter]
rank = 4
alpha = 8

[training]
steps = 4
batch_size = 8
learning_rate = 0.02

[method]
name = "h2tune"
private_steps = 2

[[groups]]
label = "llama"
budget = 3
rank = 2

[[groups]]
label = "bert"
budget = 1
model = {name = "tiny:bert?layers=2&width=24", task = "sequence-classification", max_length = 12}
data = {source = "./words.tsv", label = "answer"}

[[groups]]
label = "vit"
budget = 4
rank = 3
model = {name = "tiny:vit?layers=4&width=16&image=8&patch=4", task = "image-classification"}
data = {source = "sklearn:digits", limit = 120}
"""


def written(folder, changes, ranks=True):
    """The config of the run file, which is written beside its rows."""
    lines = [f"thing {row % 5} is {'good' if row % 2 else 'bad'}\t{'yes' if row % 2 else 'no'}" for row in range(48)]
    (folder / "words.tsv").write_text("\n".join(["text\tanswer", *lines]) + "\n", encoding="utf-8")
    # ranks of their own, or of their adapters: a mean of factors needs one rank in each architecture
    text = RUN if ranks else re.sub(r"\nrank = ([23])", r"\nadapter = {rank = \1}", RUN)
    (folder / "h2.toml").write_text(text, encoding="utf-8")
    return load(folder / "h2.toml", changes)[0]


@pytest.fixture
def config(tmp_path):
    return lambda *changes, ranks=True: written(tmp_path, changes, ranks)


def test_unlike_models_and_tasks_run_plan_and_resume_together(config, tmp_path, fingerprint, copying):
    folder = run(config(), tmp_path / "run", copying(tmp_path / "run", tmp_path / "cut", 2))
    planned = plan(config())
    lines = read_rounds(folder)
    for one in planned:
        sent = lines[-1]["exchanges"][0]["clients"][str(one.client)]
        ranks = {0: 2, 1: 4, 2: 3}
        assert one.bytes_down == one.bytes_up == sent["bytes_down"] == sent["bytes_up"]
        assert one.bytes_up == exchange_bytes(4, 2, ranks[one.client // 2] ** 2)
        assert one.trained_parameters > one.bytes_up / 4  # A, B, the head and the relation stay
    scores = lines[-1]["evaluation"]
    assert scores["global"] is None
    assert set(scores["groups"].values()) == {None}
    assert scores["clients"].keys() == {str(id) for id in range(6)}
    assert "apart" not in read_environment(folder)  # it is one federation of all three
    assert lines[0]["exchanges"][0]["clients"]["0"]["settings"]["joint"] is True
    assert lines[1]["exchanges"][0]["clients"]["0"]["settings"]["joint"] is False

    resume(tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(folder)


def test_layers_of_one_site_start_with_the_same_axes_and_only_in_methods_that_share_slots(config):
    def axes(*changes):
        federation = build(config(*changes, ranks=False)).federation
        for name in federation.layouts:
            seen = {}
            for tensor, value in federation.initial[name](Rng(5)).items():
                if tensor.endswith("lora_A"):
                    seen.setdefault(site_of(tensor.rpartition(".")[0]), []).append(value)
            yield from seen.values()

    assert all(torch.equal(same[0], value) for same in axes() for value in same[1:])
    others = axes('method={name = "fedit"}')
    assert not any(torch.equal(same[0], value) for same in others for value in same[1:])


def test_alignment_is_recorded_drawn_and_goes_on_after_a_stop(config, tmp_path, fingerprint, copying):
    wanted = config("rounds=2", "method.align=projection", "method.deviation=0.1")
    folder = run(wanted, tmp_path / "run", copying(tmp_path / "run", tmp_path / "cut"))
    states = [line["state"] for line in read_rounds(folder)]
    assert {len(state["cosines"]) for state in states} == {9}
    (found,) = alignments(read_run(folder)).values()
    assert found.rounds == [0, 1]
    assert found.conflicts.tolist() == [state["conflicts"] for state in states]
    assert list(found.names) == sorted(group["architecture"] for group in read_partition(folder)["groups"])

    resume(tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(folder)
    assert fingerprint(run(config("rounds=2", "method.deviation=0.1"), tmp_path / "plain")) != fingerprint(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run file with two rounds, and the folder of its run. Not to be changed."""
    folder = tmp_path_factory.mktemp("served")
    wanted = written(folder, ("rounds=2",))
    return wanted, run(wanted, folder / "run")


@pytest.mark.parametrize("client", [1, 3, 4])
def test_h2_14_peft_serves_what_the_client_was_scored_with(served, tmp_path, client):
    """H2-14. The released code evaluates with T transposed (B15), and merges without the identity path (B16)."""
    wanted, folder = served
    out = export(folder, tmp_path / "out", client=client)
    assert not any("core" in name or "bank" in name for name in load_file(out / "adapter_model.safetensors"))
    experiment = build(wanted)
    held, group = experiment.clients[client], experiment.group_of(client)
    told = json.loads((out / "adapter_config.json").read_text())
    assert told["r"] == group.put.settings.rank or told["rank_pattern"]
    _, state, memories = Record.open(folder).load_checkpoint()
    params = held.params(experiment.method.view(state, held.profile), memories[client])
    assert any(bool(tensor.any()) for name, tensor in params.items() if name.endswith(".core"))
    held.bench.load(params)
    batch = {name: column[:4] for name, column in held.splits["test"].items()}
    with torch.no_grad():
        ours = held.bench.forward(batch)[0]
    plain = copy.deepcopy(build(wanted).group_of(client).loaded.model)
    for name, module in [*plain.named_modules()]:
        if hasattr(module, "base") and hasattr(module, "lora_A"):
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.base)
    served = PeftModel.from_pretrained(plain, str(out)).eval()
    with torch.no_grad():
        theirs = served(**held.bench.prepare(batch)).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    scores = evaluate(experiment, state, memories, ())["clients"][str(client)]
    assert scores == read_rounds(folder)[-1]["evaluation"]["clients"][str(client)]


@pytest.mark.parametrize("changes", [("network.dtype=int8",), ("privacy.mode=local", "privacy.test_key=7")])
def test_short_numbers_and_local_privacy_go_with_it(config, tmp_path, changes):
    folder = run(config("rounds=2", *changes), tmp_path / "run")
    lines = read_rounds(folder)
    assert not any(line["exchanges"][0]["dropped"] for line in lines)
    sent = [line["bytes_up"] for line in lines[-1]["exchanges"][0]["clients"].values()]
    full = [exchange_bytes(4, 2, rank**2) for rank in (2, 2, 4, 4, 3, 3)]
    short = [size // 4 + 4 * 3 for size in full]  # a scale for each of the three tensors
    assert sent == (short if "int8" in changes[0] else full)
    state = Record.open(folder).load_checkpoint()[1]
    assert all(bool(matrices.any()) for matrices in state["params"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("aggregation.rule=median",), r"rule = 'median': method.name = 'h2tune' merges replies in its own way"),
        (
            ("training.proximal=0.1",),
            r"what clients train with method.name = 'h2tune' is not what",
        ),
        (("method.widht=1.0",), r"method.widht = 1.0: unknown key \(did you mean 'width'"),
        (("method.private_steps=0",), r"method.private_steps = 0: must be at least 1"),
        (("method.max_bytes=30",), r"30 bytes are too few for 8 matrices"),
        (
            ("aggregation.align=soft",),
            r"aggregation.align = 'soft': method.name = 'h2tune' has a rule of its own; set method.align, and leave it",
        ),
        (("aggregation.align_per=tensor",), r"aggregation.align_per = 'tensor': needs aggregation.align, which is 'no"),
        (("method.align=mean",), r"method.align = 'mean': .*none.*projection.*reference.*soft"),
        (
            ("method.align=soft", "privacy.mode=central"),
            r"'central': method.name = 'h2tune' needs each client's update",
        ),
        (
            ("method.align=soft", "aggregation.rule=median"),
            r"aggregation.rule = 'median': method.name = 'h2tune' merges",
        ),
    ],
)
def test_what_does_not_go_with_it_is_told_before_weights_are_loaded(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(config(*changes))


def test_central_privacy_is_refused_among_unlike_models_and_in_one(config):
    with pytest.raises(ConfigError, match="needs each client's update"):
        build(config("privacy.mode=central"))


@pytest.mark.usefixtures("bytes_alone")
def test_h2_16_a_billion_weights_plan_to_half_a_percent_of_their_lora(config, tmp_path):
    """H2-16, by ``fedquilt plan``. The released code sends 4 to 33 % of a LoRA (dense, for every rank)."""
    text = RUN[: RUN.index("[[groups]]")].replace("tiny:llama?layers=3&width=16", "shape:llama-3.2-1b")
    text = text.replace("rank = 4", "rank = 16").replace("num_clients = 6", "num_clients = 1")
    text += '\n[clients]\nshares = "1"\nbudgets = [16]\n'
    (tmp_path / "shape.toml").write_text(text, encoding="utf-8")
    (tmp_path / "words.tsv").write_text("text\tanswer\na\tb\n", encoding="utf-8")
    ours, lora = (plan(load(tmp_path / "shape.toml", changes)[0])[0] for changes in ((), ("method={name='fedit'}",)))
    assert ours.bytes_up == ours.bytes_down == exchange_bytes(16, 2, 256) == 32_832
    assert lora.bytes_up == 6_815_744
    assert ours.bytes_up / lora.bytes_up < 0.01


def test_ends_of_each_architecture_make_a_global_model_of_each_group(config, tmp_path):
    wanted = config("rounds=1", "method.ends=architecture", ranks=False)
    folder = run(wanted, tmp_path / "run")
    scores = read_rounds(folder)[-1]["evaluation"]["groups"]
    assert scores.keys() == {"llama", "bert", "vit"}
    assert all(score["examples"] > 0 for score in scores.values())
    made = {path.name for path in (folder / "adapters").iterdir()}
    assert made == {"global-llama", "global-bert", "global-vit", *(f"client-00{id}" for id in range(6))}
