"""H2Tune in common coordinates from a run file: unlike models, tasks and classes, plan, resume, export, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.experiment.build import build
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.models.hf import load_model
from fedquilt.record import Record, read_rounds

RUN = """
seed = 3
rounds = 2
threads = 1
model = { name = "tiny:bert?layers=2&width=16", task = "sequence-classification", max_length = 12 }
data = { source = "./words.tsv", label = "answer" }
partition = { num_clients = 4, test_fraction = 0.2 }
adapter = { kind = "common", rank = 4, alpha = 4, private_rank = 2 }
axes = { source = "./words.tsv", inputs = 30, held_out = 10, basis = 8 }
training = { steps = 3, batch_size = 8, learning_rate = 0.02 }
evaluation = { clients = true }
method = { name = "h2tune", private_steps = 2 }

[[groups]]
label = "answers"
budget = 2

[[groups]]
label = "things"
budget = 3
model = { name = "tiny:gpt2?layers=3&width=24", task = "sequence-classification", max_length = 12 }
data = { source = "./words.tsv", label = "thing" }
"""
WRITERS = """
model = { name = "tiny:llama?layers=2&width=16", task = "causal-lm", max_length = 12 }
data = { source = "./words.tsv", target = "answer" }
"""


@pytest.fixture
def config(tmp_path):
    lines = [f"thing {row % 5} is {'good' if row % 2 else 'bad'}\t{row % 2}\tt{row % 5}" for row in range(48)]
    (tmp_path / "words.tsv").write_text("\n".join(["text\tanswer\tthing", *lines]) + "\n", encoding="utf-8")

    def made(*changes, text=RUN):
        (tmp_path / "h2.toml").write_text(text, encoding="utf-8")
        return load(tmp_path / "h2.toml", changes)[0]

    return made


def test_classifiers_of_unlike_classes_share_cores_and_go_on_to_the_same_bits(config, tmp_path, fingerprint, copying):
    wanted = config("method.free_after=1")
    folder = run(wanted, tmp_path / "run", copying(tmp_path / "run", tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(folder)

    _, state, memories = Record.open(folder).load_checkpoint()
    heads = {name: tensor.shape for name, tensor in state["params"].items() if ".head-" in name}
    assert sorted(heads.values()) == [(2, 4), (5, 4)]
    cores = [tensor for name, tensor in state["params"].items() if ".head-" not in name]
    assert len(cores) == 4
    assert all(bool(core.any()) for core in cores)
    assert {name.rpartition(".")[2] for name in memories[3]["params"]} >= {"lora_A", "lora_B", "encoder", "decoder"}

    last = read_rounds(folder)[-1]
    for one in plan(config()):
        sent = last["exchanges"][-1]["clients"][str(one.client)]
        assert sent["bytes_up"] == sent["bytes_down"] == 4 * (4 * 16 + 4 * (2, 5)[one.client // 2])

    # what PEFT makes of a client's folder is its model
    experiment = build(wanted)
    client = experiment.clients[3]
    view = experiment.method.view(state, client.profile)
    client.bench.load(client.params(view, memories[3]))
    batch = client.bench.prepare({name: column[:5] for name, column in client.train.items()})
    base = load_model(config().groups[1].model.name, "sequence-classification", num_classes=5, rng=Rng(3)).model
    with torch.no_grad(), client.bench.public.adapters.taken_out(client.bench.model):
        base.load_state_dict(copy.deepcopy(client.bench.model.state_dict()))
    served = PeftModel.from_pretrained(base, folder / "adapters" / "client-003").eval()
    with torch.no_grad():
        live = client.bench.model(**batch).logits
        assert float(live.std()) > 0
        torch.testing.assert_close(served(**batch).logits, live, rtol=1e-4, atol=1e-5)


def test_language_models_with_cores_alone_share_all_that_they_train(config, tmp_path):
    text = (
        RUN.replace("budget = 2\n", "budget = 2\n" + WRITERS)
        .replace(", private_rank = 2", "")
        .replace(
            'model = { name = "tiny:gpt2?layers=3&width=24", task = "sequence-classification", max_length = 12 }\n'
            'data = { source = "./words.tsv", label = "thing" }\n',
            WRITERS.replace("layers=2&width=16", "layers=3&width=24"),
        )
    )
    folder = run(config("rounds=1", text=text), tmp_path / "run")
    _, state, memories = Record.open(folder).load_checkpoint()
    assert {name.split(".")[1] for name in state["params"]} == {"attention", "feed-forward"}
    assert all(bool(core.any()) for core in state["params"].values())
    assert all(name.startswith("point.") for memory in memories.values() for name in memory["params"])


def test_a_frozen_head_leaves_the_cores_and_a_local_one_stays(config, tmp_path):
    for policy, kept in (("frozen", 0), ("local", 1)):
        folder = run(config("rounds=1", f"head.policy={policy}"), tmp_path / policy)
        _, state, memories = Record.open(folder).load_checkpoint()
        assert not any(bool(tensor.any()) for name, tensor in state["params"].items() if ".head-" in name)
        assert [sum(".head-" in name for name in memories[id]["params"]) for id in range(4)] == [kept] * 4


@pytest.mark.parametrize(
    "change",
    [
        "aggregation.rule=median",
        "aggregation.align=projection",
        "training.proximal=0.1",
        "aggregation.server_optimizer=adam",
    ],
)
def test_what_averages_updates_goes_with_it_since_the_cores_themselves_are_sent(config, tmp_path, change):
    plain, changed = (run(config("rounds=1", *more), tmp_path / f"{len(more)}") for more in ([], [change]))
    cores = [Record.open(folder).load_checkpoint()[1]["params"] for folder in (plain, changed)]
    assert cores[0].keys() == cores[1].keys()
    assert not all(torch.equal(cores[0][name], cores[1][name]) for name in cores[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method.ends=private"], r"adapter.kind = 'common': method.ends = 'private' needs LoRA factors.*'common'"),
        (["method.selection=drawn"], r"method.selection = 'drawn': is of method.ends = 'private' or 'architecture'"),
        (["method.bank=noise"], r"method.bank = 'noise': is of method.ends = 'private' or 'architecture' alone"),
    ],
)
def test_what_contradicts_common_coordinates_is_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(config(*changes))


def test_common_ends_need_adapters_in_common_coordinates(config):
    text = RUN.replace('kind = "common", rank = 4, alpha = 4, private_rank = 2', "rank = 4")
    text = text.replace('axes = { source = "./words.tsv", inputs = 30, held_out = 10, basis = 8 }\n', "")
    with pytest.raises(ConfigError, match=r"adapter.kind = 'lora': method.ends = 'common' needs adapters in common"):
        build(config("method.ends=common", text=text))


def test_groups_must_have_one_rank_and_number_of_slots(config):
    text = RUN.replace("budget = 3\n", "budget = 3\nadapter = { rank = 3 }\n")
    with pytest.raises(ConfigError, match=r"adapter.rank is not the same in all groups \(answers 4, things 3\)"):
        build(config(text=text))
