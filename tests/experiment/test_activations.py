"""What a plan says of activations, against what a step on the processor holds."""

from contextlib import nullcontext
from dataclasses import replace
from math import prod

import pytest

from fedquilt.experiment import activations
from fedquilt.experiment.activations import activation_bytes
from fedquilt.experiment.build import build, shaped
from fedquilt.experiment.plan import plan


def test_what_the_backward_pass_does_not_need_is_not_counted(config):
    experiment = shaped(config("model.name='tiny:vit?layers=12'", "clients.budgets=[4,8,12]", "head.policy=frozen"))
    client = experiment.clients[0]

    def kept(layers):
        return activation_bytes(client, experiment.layout.names(layers), 0)

    whole, top, last = kept(range(12)), kept(range(8, 12)), kept([11])
    assert 0 < kept([]) < last < top < whole  # without a backward pass the largest tensors of one block are left
    assert top < 0.4 * whole  # the backward pass ends at block 8
    assert kept([0, 11]) > 0.7 * whole  # and here it goes all the way down


TASKS = {
    "tiny:vit": "image-classification",
    "tiny:bert": "sequence-classification",
    "tiny:distilbert": "sequence-classification",
    "tiny:llama": "causal-lm",
    "tiny:gpt2": "causal-lm",
    "tiny:gemma2": "causal-lm",
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TASKS)
def test_the_estimate_on_meta_is_what_the_processor_really_holds(config, tmp_path, monkeypatch, name, precision):
    task = TASKS[name]
    (tmp_path / "said.tsv").write_text("text\tlabel\n" + "".join(f"text {n}\t{n % 2}\n" for n in range(30)))
    source = "sklearn:digits" if task == "image-classification" else "./said.tsv"
    changes = (f"model.name={name!r}", f"model.task={task}", f"data.source={source}", "clients.budgets=[1,1,2]")
    changes += ("partition.scheme=iid", "data.proxy=0", f"training.precision={precision}")
    wanted = config(*changes)
    planned, real = shaped(wanted), build(wanted)
    for layers in ([0, 1], [1]):
        names = [name for name, layer in real.layout.depth.items() if layer is None or layer in layers]
        estimate = activation_bytes(planned.clients[0], names, 24)
        with monkeypatch.context() as patched:  # no stand-ins: the processor's own attention and its own autocast
            patched.setattr(activations, "_AsOnADevice", lambda lowered: nullcontext())
            held = activation_bytes(real.clients[0], names, 24)
        assert held == estimate > 0 if precision == "fp32" else held == pytest.approx(estimate, rel=2e-3)


def test_with_gradient_checkpointing_the_inputs_of_the_blocks_and_one_block_are_counted(config):
    """Linear in the number of blocks, with one block's input as its slope; what a block holds for itself comes once."""
    sizes, rows, width = {}, 8, 16
    for depth in (6, 12):
        changes = f"model.name='tiny:vit?layers={depth}&width={width}&image=8&patch=4'", "clients.budgets=[1,1,1]"
        client = shaped(config(*changes, "head.policy=frozen")).clients[0]
        for recompute in (False, True):
            how = replace(client.training, gradient_checkpointing=recompute)
            names = client.bench.layout.depth
            sizes[depth, recompute] = activation_bytes(replace(client, training=how), names, 0)
    slope = (sizes[12, True] - sizes[6, True]) / 6
    layout = client.bench.layout
    gradients = 4 * sum(prod(layout.shapes[name]) for name in layout.names([0]))  # none is there yet at the peak
    assert slope == 4 * rows * (1 + 4) * width - gradients
    block = (sizes[12, False] - sizes[6, False]) / 6
    assert block + 12 * slope <= sizes[12, True] < 2 * block + 16 * slope


def test_a_frozen_block_keeps_no_input(config):
    client = shaped(config("model.name='tiny:vit?layers=12'", "clients.budgets=[4,8,12]")).clients[0]
    client = replace(client, training=replace(client.training, gradient_checkpointing=True))
    layout = client.bench.layout
    assert activation_bytes(client, layout.names([11]), 0) < activation_bytes(client, layout.names([8]), 0)


def test_a_plan_shows_what_gradient_checkpointing_saves(config):
    changes = ("model.name='shape:llama-3-8b'", "model.task=causal-lm", "data.source=nowhere.tsv")
    changes += ("clients.budgets=[32,32,32]", "training.batch_size=1", "model.max_length=512")
    plain, again = (plan(config(*changes, f"training.gradient_checkpointing={on}"))[0] for on in ("false", "true"))
    assert again.activation_bytes < 0.4 * plain.activation_bytes
    assert again.weight_bytes == plain.weight_bytes
