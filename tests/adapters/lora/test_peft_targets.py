import json
import warnings

import pytest
import torch
from peft import PeftModel
from torch import nn

from fedquilt.adapters.lora.inject import inject, layout, load, trainable
from fedquilt.adapters.lora.peft_files import save_peft
from fedquilt.adapters.lora.peft_targets import bare_modules, peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks

WIDTH = 6
BLOCKS = Blocks("body.layers", 2)


class Block(nn.Module):
    def __init__(self, name="query"):
        super().__init__()
        self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        first, second = self.children()
        return x + torch.tanh(second(torch.relu(first(x))))


class Body(nn.Module):
    def __init__(self, extra=None):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.pooler = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.extra = extra

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.pooler(x if self.extra is None else self.extra(x))


class Model(nn.Module):
    """A body, and heads called as the test says; the logits are their mean."""

    def __init__(self, heads, extra=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = Body(extra)
        self.names = tuple(heads)
        for name, head in heads.items():
            self.add_module(name, head)

    def forward(self, x):
        x = self.body(x)
        return torch.stack([getattr(self, name)(x) for name in self.names]).mean(0)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        return self.out(self.norm(x))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)])

    def forward(self, x):
        for head in self.heads:
            x = head(x)
        return x


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.out(self.scale * x)


def nested():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


HEADS = {
    "one": (lambda: {"classifier": nn.Linear(WIDTH, 3)}, ["classifier"]),
    "another name": (lambda: {"logits_proj": nn.Linear(WIDTH, 3)}, ["logits_proj"]),
    "a module of modules": (lambda: {"classifier": nested()}, ["classifier"]),
    "a parameter of its own": (lambda: {"classifier": Scaled()}, ["classifier"]),
    "buffers": (lambda: {"classifier": Normed()}, ["classifier"]),
    "a list inside": (lambda: {"classifier": Listed()}, ["classifier"]),
    "several": (
        lambda: {"cls_classifier": nn.Linear(WIDTH, 3), "distillation_classifier": nested()},
        ["cls_classifier", "distillation_classifier"],
    ),
}


def made(heads, *, extra=None, pooler=False, targets=("query",)):
    """A base, the same with adapters and a head that do something, and what is saved of it."""
    base, model = Model(heads(), extra), Model(heads(), extra)
    head = tuple(
        name
        for name, _ in model.named_parameters()
        if not name.startswith("body.") or (pooler and name.startswith("body.pooler"))
    )
    model.load_state_dict(base.state_dict())
    settings = LoraSettings(rank=2, alpha=4.0, targets=targets)
    inject(model, BLOCKS, settings, head=head)
    where = layout(model, BLOCKS, "toy", head)
    generator = torch.Generator().manual_seed(1)
    params = {name: torch.randn(shape, generator=generator) for name, shape in where.shapes.items()}
    load(trainable(model, where), params)
    return base.eval(), model.eval(), params, where, settings


def same_by_peft(folder, base, model, params, where, settings, task):
    save_peft(folder, params, model, where, settings, base_name="toy", task=task)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    before = base(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of missing keys
        theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(theirs.base_model.model(x), model(x), rtol=0, atol=1e-5)
    assert float((model(x) - before).detach().abs().max()) > 0.01
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("task", ["sequence-classification", "image-classification"])
@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_peft_reads_heads_of_every_build(tmp_path, name, pooler, task):
    heads, saved = HEADS[name]
    told = same_by_peft(tmp_path / "a", *made(heads, pooler=pooler), task)
    assert told["modules_to_save"] == (["body.pooler"] if pooler else []) + saved
    assert told["task_type"] == ("SEQ_CLS" if task == "sequence-classification" else None)


def test_a_list_that_the_model_goes_through_itself_is_saved_module_by_module():
    model = Model({"heads": nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)])})
    head = [name for name, _ in model.named_parameters() if name.startswith("heads")]
    where = peft_names(model, ["body.layers.0.query", "body.layers.1.query"], head, ["query"], "image-classification")
    assert where.saved == ("heads.0", "heads.1")
    assert set(where.state) == set(head)


def test_a_head_whose_name_ends_others_is_told_by_its_whole_path_or_refused(tmp_path):
    heads = lambda: {"dense": nn.Linear(WIDTH, 3)}  # noqa: E731
    told = same_by_peft(tmp_path / "a", *made(heads), "sequence-classification")
    assert told["modules_to_save"] == ["base_model.model.dense"]
    _, model, params, where, settings = made(heads)
    with pytest.raises(ModelError, match=r"PEFT would save 'body.layers.0.dense' with the head's module 'dense'"):
        save_peft(tmp_path / "b", params, model, where, settings, base_name="toy", task="image-classification")
    assert not (tmp_path / "b").exists()


def test_a_module_of_the_body_that_peft_takes_for_a_head_makes_it_no_classifier_to_peft(tmp_path):
    scene = made(HEADS["another name"][0], extra=nn.Sequential())
    scene[0].body.add_module("score", nn.Linear(WIDTH, WIDTH))
    scene[1].body.add_module("score", nn.Linear(WIDTH, WIDTH))
    told = same_by_peft(tmp_path / "a", *scene, "sequence-classification")
    assert (told["modules_to_save"], told["task_type"]) == (["logits_proj"], None)


def test_targets_that_would_catch_a_module_outside_the_blocks_are_told_by_their_paths(tmp_path):
    told = same_by_peft(tmp_path / "a", *made(HEADS["one"][0], extra=Block()), "image-classification")
    assert told["target_modules"] == ["body.layers.0.query", "body.layers.1.query"]
    told = same_by_peft(tmp_path / "b", *made(HEADS["one"][0]), "image-classification")
    assert told["target_modules"] == ["query"]


def test_a_head_parameter_that_is_in_no_module_of_its_own_is_refused():
    model = Model(HEADS["one"][0]())
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    head = ["scale", "classifier.weight", "classifier.bias"]
    with pytest.raises(ModelError, match=r"head parameter 'scale' sits on the model itself.*only save whole modules"):
        peft_names(model, ["body.layers.0.query"], head, ["query"], "image-classification")
    with pytest.raises(ModelError, match=r"head parameter 'body.layers.0.dense.bias' sits on 'body.layers.0.dense'"):
        peft_names(model, ["body.layers.0.query"], ["body.layers.0.dense.bias"], ["query"], "image-classification")


def test_the_bare_modules_are_those_of_the_model_before_there_were_adapters():
    base, model, *_ = made(HEADS["a module of modules"][0])
    assert {path: type(module) for path, module in bare_modules(model).items()} == {
        path: type(module) for path, module in base.named_modules(remove_duplicate=False)
    }
