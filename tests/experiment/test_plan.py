import time
from dataclasses import asdict, replace

import pytest
import torch

from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.types import Order
from fedquilt.experiment.build import shaped
from fedquilt.experiment.plan import client_plan, plan
from fedquilt.experiment.run import run
from fedquilt.record import read_partition, read_rounds

NOWHERE = "data.source=nowhere.tsv"
VIT_B = ("model.name='shape:vit-b16'", "adapter.rank=16", NOWHERE)
DEIT_S = ("model.name='tiny:vit?layers=12&width=384&heads=6&image=224&patch=16&channels=3'", "adapter.rank=24", NOWHERE)
DEIT_S += ("head.policy=frozen", "partition.num_clients=20", "clients.shares=3-3-4", "clients.budgets=[6,9,12]")


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize("allocation", ["gd", "rgd"])
def test_the_papers_vit_b_trains_49152_parameters_a_block_and_589824_in_all(config, allocation):
    plans = plan(config(*VIT_B, "head.policy=frozen", "clients.budgets=[1,6,12]", f"method.allocation={allocation}"))
    assert [one.trained_parameters for one in plans] == [49_152] * 2 + [6 * 49_152] * 2 + [589_824] * 2
    for one in plans:
        assert one.bytes_down == 4 * 589_824  # everybody needs all adapters for the forward pass
        assert one.bytes_up == one.gradient_bytes == 4 * one.trained_parameters
        assert one.optimizer_bytes == 2 * one.gradient_bytes


def test_the_model_is_counted_without_its_adapters(config):
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=2))
    expected = sum(tensor.numel() for tensor in model.parameters())
    (one, *_) = plan(config(*VIT_B, "clients.budgets=[6,9,12]"))
    assert one.num_classes == 2  # the model's own head, as there is no data
    assert one.model_bytes == 4 * expected
    assert one.weight_bytes == 4 * (expected + 589_824)
    assert one.saving == 1 - (one.bytes_down + one.bytes_up) / (2 * one.model_bytes)
    assert one.peak_bytes == one.weight_bytes + one.gradient_bytes + one.optimizer_bytes + one.activation_bytes


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize(
    ("method", "total"),
    [
        (("method.name=fed-hello", "method.allocation=gd"), 6_856_704),
        (("method.name=straggler",), 4_423_680),
        (("method.name=exclusive",), 3_538_944),
    ],
)
def test_the_logged_totals_of_twenty_clients_come_out(config, method, total):
    assert sum(one.trained_parameters for one in plan(config(*DEIT_S, *method))) == total


def test_llama_3_8b_is_planned_in_seconds_without_weights(config):
    began = time.process_time()
    changes = ("model.name='shape:llama-3-8b'", "model.task=causal-lm", NOWHERE, "adapter.rank=16")
    plans = plan(config(*changes, "clients.budgets=[8,16,32]", "training.batch_size=1", "model.max_length=512"))
    assert time.process_time() - began < 30
    # query 4096 x 4096, value 4096 x 1024 (8 of 32 heads): 16 * (8192 + 5120) = 212,992 a block
    assert [one.trained_parameters for one in plans] == [212_992 * layers for layers in (8, 8, 16, 16, 32, 32)]
    assert {one.model_bytes for one in plans} == {4 * 8_030_261_248}
    assert all(one.activation_bytes > 512 * 128_256 * 4 for one in plans)  # the logits alone
    assert plans[-1].saving > 0.999


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize(
    ("shape", "blocks", "slots", "share"),
    [("llama-3.2-1b", 16, 16, 0.0108), ("llama-3.2-3b", 28, 28, 0.00703), ("llama-3.1-8b", 32, 2, 0.000338)],
)
def test_cores_of_a_language_model_cost_little_and_the_axes_are_told_apart(config, shape, blocks, slots, share):
    every = ("data.proxy=0", f"model.name='shape:{shape}'", "model.task=causal-lm", NOWHERE)
    every += (f"clients.budgets=[{blocks},{blocks},{blocks}]", "training.batch_size=1", "model.max_length=16")
    common = ("adapter.kind=common", "adapter.rank=24", f"adapter.num_slots={slots}", "method.name=heterotune")
    one = plan(config(*every, *common, "method.align=none"))[0]
    assert one.bytes_up == one.bytes_down == 4 * 2 * slots * 24**2
    assert one.once_down == 4 * 2 * slots * 1000 * 24
    assert one.once_up == 4 * 2 * slots * (1000 * 96 + 200 * 24)
    lora = plan(config(*every, "adapter.rank=16", "method.name=fedit"))[0]
    assert (lora.once_down, lora.once_up) == (0, 0)
    assert one.bytes_up / lora.bytes_up == pytest.approx(share, rel=0.02)


@pytest.mark.usefixtures("bytes_alone")
def test_what_is_planned_is_what_then_travels(config, tmp_path):
    wanted = config("clients.cohort=6", "rounds=1")
    planned = {str(one.client): one for one in plan(wanted)}
    folder = run(wanted, tmp_path / "run")
    moved = read_rounds(folder)[0]["exchanges"][0]["clients"]
    assert {id: one.bytes_down for id, one in planned.items()} == {id: m["bytes_down"] for id, m in moved.items()}
    assert {id: one.bytes_up for id, one in planned.items()} == {id: m["bytes_up"] for id, m in moved.items()}
    assert {id: list(one.layers) for id, one in planned.items()} == {
        id: m["settings"]["layers"] for id, m in moved.items()
    }
    budgets = {str(client["id"]): client["budget"] for client in read_partition(folder)["clients"]}
    assert {id: one.budget for id, one in planned.items()} == budgets


def test_clients_of_unlike_rank_are_measured_apart(config):
    experiment = shaped(config("adapter.rank=4", "method={name='local-only'}"))

    def of_rank(rank):
        client = experiment.clients[0]
        own = {
            name: tensor[:rank] if name.endswith("lora_A") else tensor[:, :rank] if name.endswith("lora_B") else tensor
            for name, tensor in client.initial.items()
        }
        return replace(client, initial=own)

    both = replace(experiment, clients={0: of_rank(1), 1: of_rank(4)})
    order, shared = Order({}, {"layers": [2]}), {}
    low, high = (client_plan(both, id, order, shared) for id in (0, 1))
    assert len(shared) == 2
    assert low.weight_bytes < high.weight_bytes
    assert low.activation_bytes < high.activation_bytes
    assert high == client_plan(both, 1, order, {})


def test_a_model_cut_to_its_drawn_blocks_needs_their_memory_only(config):
    depth = "model.name='tiny:vit?layers=12'"
    whole = plan(config(depth, "clients.budgets=[3,6,12]", "method.name=fedra", "method.drop_layers=false"))
    cut = plan(config(depth, "clients.budgets=[3,6,12]", "method.name=fedra"))
    for one, other in zip(cut[:4], whole[:4], strict=True):
        assert one.layers == other.layers
        assert one.weight_bytes < other.weight_bytes == whole[-1].weight_bytes
        assert one.activation_bytes < other.activation_bytes
        assert one.bytes_down < other.bytes_down
        assert one.model_bytes == other.model_bytes
    assert asdict(cut[-1]) == asdict(whole[-1])


@pytest.mark.parametrize(
    "changes",
    [
        ("method.allocation=fim", "method.warmup=0"),
        ("method.allocation=fim", "method.warmup=1", "method.scores_from=clients"),
        ("method.name=local-only",),
        ("method.name=fedit",),
        ("method.name=full",),
        ("head.policy=local",),
        ("training.optimizer=sgd",),
    ],
)
def test_every_method_and_setting_can_be_planned(config, changes):
    plans = plan(config(*changes))
    assert len(plans) == 6
    for one in plans:
        assert one.num_classes == 10  # the data is here and has ten
        assert one.trained_parameters > 0
        assert one.activation_bytes > 0
        assert one.gradient_bytes == 4 * one.trained_parameters
        assert one.optimizer_bytes == (0 if "training.optimizer=sgd" in changes else 2 * one.gradient_bytes)
    moved = {one.bytes_down + one.bytes_up for one in plans}
    assert (moved == {0}) == ("method.name=local-only" in changes)


def test_a_plan_that_cannot_be_made_says_why(config):
    with pytest.raises(ConfigError, match=r"clients.budgets\[2\] is 9; the model has 3 blocks"):
        plan(config("clients.budgets=[1,2,9]"))
    with pytest.raises(ConfigError, match=r"method.name = 'fedhello': unknown method \(did you mean 'fed-hello'\?\)"):
        plan(config("method.name=fedhello"))
    with pytest.raises(ModelError, match=r"no shape 'llama-3-80b' \(did you mean 'llama-3-8b'\?\)"):
        plan(config("model.name='shape:llama-3-80b'", "model.task=causal-lm"))


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize(("dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.25)])
def test_a_plan_counts_bytes_in_the_type_in_which_they_travel(config, tmp_path, dtype, share):
    plain = plan(config(*VIT_B, "clients.budgets=[1,6,12]"))
    short = plan(config(*VIT_B, "clients.budgets=[1,6,12]", f"network.dtype={dtype}"))
    for one, other in zip(short, plain, strict=True):
        assert share <= one.bytes_down / other.bytes_down <= share + 0.001
        assert share <= one.bytes_up / other.bytes_up <= share + 0.001
        assert one.gradient_bytes == other.gradient_bytes
    tiny = config("clients.cohort=6", "rounds=1", "method.allocation=gd", f"network.dtype={dtype}")
    (line,) = read_rounds(run(tiny, tmp_path / dtype))
    clients = line["exchanges"][0]["clients"]
    assert len(clients) == 6
    for one in plan(tiny):
        moved = clients[str(one.client)]
        assert (one.bytes_down, one.bytes_up) == (moved["bytes_down"], moved["bytes_up"])
