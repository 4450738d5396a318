"""No key is ignored: each is used whatever the others say, or refused where nothing would come of it."""

from __future__ import annotations

import inspect

import pytest

from fedquilt.config.load import examine
from fedquilt.config.schema import SECTIONS, Config
from fedquilt.config.sections import fields_of, is_section
from fedquilt.experiment.check import check
from fedquilt.methods import METHODS

IMAGES = """
[model]
name = "tiny:vit?layers=3"
task = "image-classification"
[data]
source = "sklearn:digits"
limit = 200
[clients]
budgets = [1, 2, 3]
[method]
name = "fedit"
"""
LANGUAGE = """
[model]
name = "tiny:llama?layers=3"
task = "causal-lm"
[data]
source = "arithmetic:blank?train=200&test=20"
answers = "number"
[clients]
budgets = [1, 2, 3]
[method]
name = "fedit"
"""
GROUPS = """
[[groups]]
label = "a"
budget = 1
[[groups]]
label = "b"
budget = 2
"""
GROUPED = IMAGES.replace("[clients]\nbudgets = [1, 2, 3]\n", "") + GROUPS

USED = {
    *("name", "seed", "seeds", "rounds", "device", "threads", "quorum", "output", "groups", "compare"),
    *("model.name", "model.task", "data.source", "data.test", "data.limit", "data.proxy"),
    *("model.dtype", "model.quantization", "model.attention"),
    *("partition.scheme", "partition.num_clients", "partition.test_fraction", "partition.validation_fraction"),
    *("clients.cohort", "adapter.kind", "method.name"),
    *("training.steps", "training.epochs", "training.batch_size", "training.optimizer", "training.learning_rate"),
    *("training.weight_decay", "training.clip_norm", "training.accumulation", "training.schedule"),
    *("training.warmup_rounds", "training.precision", "training.gradient_checkpointing"),
    *("evaluation.every", "evaluation.batch_size", "evaluation.limit", "evaluation.clients", "evaluation.last"),
    *("aggregation.server_optimizer", "privacy.mode", "checkpoints.keep", "engine.batch_clients", "engine.processes"),
    *("engine.prefix_cache", "track.to"),
    *("defence.max_reply_bytes", "defence.min_cohort", "defence.max_weight_share"),
}
"""Keys of which something comes in every run that they can stand in."""

ON_FLOWER = {"network.timeout", "network.wait", "network.grace", "network.node_keys"}
"""Keys of messages between sites; a run file is the same for both engines."""

OF_TEXT = {"model.max_length"}
"""A limit that text alone has; one [model] may serve text and images."""

NAMES = "model.labels=['x','y']"
SERVED = (
    LANGUAGE
    + """
[server]
model = { name = "tiny:llama?layers=2", task = "causal-lm" }
data = { source = "arithmetic:blank?train=20&test=5" }
"""
)
REFUSED = {
    **{
        f"server.{key}": (SERVED, *change)  # with a method that uses no server, all of the section is idle
        for key, change in {
            "model": (),
            "endpoint": ("server.endpoint={url='http://127.0.0.1/v1', name='large'}",),
            "data": ("server.data={source='arithmetic:blank', proxy=3}",),
            "private": ("server.private={source='arithmetic:blank', group='x'}",),
            "adapter": ("server.adapter={kind='full', rank=2}",),
            "training": ("server.training={momentum=0.5}",),
            "batch_size": ("server.batch_size=3",),
            "share": ("server.share=private",),
            "chat": ("server.chat=true",),
        }.items()
    },
    "model.revision": (IMAGES, "model.revision=main"),
    "model.trust_remote_code": (IMAGES, "model.trust_remote_code=true"),
    "model.labels": (LANGUAGE, NAMES),
    "data.text": (IMAGES, "data.text=words"),
    "data.pair": (LANGUAGE, "data.pair=words"),
    "data.label": (LANGUAGE, "data.label=class"),
    "data.classes": (LANGUAGE, "data.classes=['1','2']"),
    "data.target": (IMAGES, "data.target=answer"),
    "data.format": (IMAGES, "data.format=messages"),
    "data.prompt": (IMAGES, "data.prompt='{text}'"),
    "data.words": (IMAGES, "data.words={a='b'}"),
    "data.answers": (IMAGES, "data.answers=exact"),
    "data.new_tokens": (IMAGES, "data.new_tokens=7"),
    "data.image": (LANGUAGE, "data.image=picture"),
    "data.columns": (IMAGES, "data.columns=['age']"),
    "data.categorical": (IMAGES, "data.categorical=['sex']"),
    "data.ranges": (IMAGES, "data.ranges={age=[0,100]}"),
    "data.categories": (IMAGES, "data.categories={sex=['f','m']}"),
    "data.group": (IMAGES, "data.group=writer"),
    "data.on_missing": (LANGUAGE, "data.on_missing=drop"),
    "data.test_limit": (IMAGES, "data.test_limit=7"),
    "clients.shares": (GROUPED, "clients.shares=1-2-1"),
    "clients.budgets": (GROUPED, "clients.budgets=[1,2,2]"),
    "clients.ranks": (GROUPED, "clients.ranks=[1,2,2]"),
    "adapter.rank": (IMAGES, "adapter.kind=full", "adapter.rank=3"),
    "adapter.alpha": (IMAGES, "adapter.kind=full", "adapter.alpha=3.0"),
    "adapter.dropout": (IMAGES, "adapter.kind=full", "adapter.dropout=0.1"),
    "adapter.rslora": (IMAGES, "adapter.kind=full", "adapter.rslora=true"),
    "adapter.targets": (IMAGES, "adapter.kind=full", "adapter.targets=['query']"),
    "adapter.use_dora": (IMAGES, "adapter.kind=full", "adapter.use_dora=true"),
    "adapter.rank_pattern": (IMAGES, "adapter.kind=full", "adapter.rank_pattern={query=4}"),
    "adapter.alpha_pattern": (IMAGES, "adapter.kind=full", "adapter.alpha_pattern={query=4.0}"),
    "adapter.activation": (IMAGES, "adapter.activation=identity"),
    "adapter.gate": (IMAGES, "adapter.gate=token"),
    "adapter.placement": (IMAGES, "adapter.placement=parallel"),
    "adapter.sites": (IMAGES, "adapter.sites=['attention']"),
    "adapter.slot_rule": (IMAGES, "adapter.slot_rule=top"),
    "adapter.num_slots": (IMAGES, "adapter.num_slots=2"),
    "adapter.branches": (IMAGES, "adapter.branches=2"),
    "adapter.trained": (IMAGES, "adapter.trained=own"),
    "adapter.deviation": (IMAGES, "adapter.deviation=0.1"),
    "adapter.buffers": (IMAGES, "adapter.buffers=local"),
    "adapter.private_rank": (IMAGES, "adapter.private_rank=2"),
    "adapter.private_targets": (IMAGES, "adapter.private_targets=['query']"),
    "adapter.parts": (IMAGES, "adapter.parts=apart"),
    "adapter.private_alpha": (IMAGES, "adapter.private_alpha=2.0"),
    "adapter.head_scale": (IMAGES, "adapter.head_scale=5.0"),
    "adapter.num_blocks": (IMAGES, "adapter.num_blocks=2"),
    "adapter.bias": (IMAGES, "adapter.bias=false"),
    "adapter.common_head": (IMAGES, "adapter.common_head=true"),
    "axes.source": (IMAGES, "axes.source=glyphs"),
    "axes.column": (IMAGES, "axes.column=image"),
    "axes.inputs": (IMAGES, "axes.inputs=50"),
    "axes.held_out": (IMAGES, "axes.held_out=50"),
    "axes.rows": (IMAGES, "axes.rows=tokens"),
    "axes.words": (IMAGES, "axes.words=4"),
    "axes.share": (IMAGES, "axes.share=architecture"),
    "axes.min_agreement": (IMAGES, "axes.min_agreement=0.1"),
    "axes.control": (IMAGES, "axes.control=rotated"),
    "axes.basis": (IMAGES, "axes.basis=50"),
    "axes.ridge": (IMAGES, "axes.ridge=0.01"),
    "head.policy": (LANGUAGE, "head.policy=local"),
    "training.momentum": (IMAGES, "training.momentum=0.9"),
    "training.packing": (IMAGES, "training.packing=true"),
    "training.final_scale": (IMAGES, "training.final_scale=0.5"),
    "training.proximal": (IMAGES, "method.name=local-only", "training.proximal=0.1"),
    "aggregation.rule": (IMAGES, "method.name=flexlora", "aggregation.rule=median"),
    "aggregation.trim_share": (IMAGES, "aggregation.trim_share=0.2"),
    "aggregation.clip_norm": (IMAGES, "aggregation.clip_norm=2.0"),
    "aggregation.split": (IMAGES, "aggregation.split=even"),
    "aggregation.normalize": (IMAGES, "aggregation.normalize=segment"),
    "aggregation.residual_rank": (IMAGES, "aggregation.residual_rank=2"),
    "aggregation.strength": (IMAGES, "aggregation.strength=0.5"),
    "aggregation.sparse_scale": (IMAGES, "aggregation.sparse_scale=3.0"),
    "aggregation.server_learning_rate": (IMAGES, "aggregation.server_learning_rate=0.5"),
    "aggregation.server_momentum": (IMAGES, "aggregation.server_momentum=0.5"),
    "aggregation.server_beta2": (IMAGES, "aggregation.server_optimizer=momentum", "aggregation.server_beta2=0.5"),
    "aggregation.server_tau": (IMAGES, "aggregation.server_optimizer=momentum", "aggregation.server_tau=0.5"),
    "aggregation.align": (IMAGES, "method.name=local-only", "aggregation.align=soft"),
    "aggregation.align_groups": (IMAGES, "aggregation.align_groups=group"),
    "aggregation.align_per": (IMAGES, "aggregation.align_per=tensor"),
    "aggregation.align_equalise": (IMAGES, "aggregation.align_equalise=true"),
    "aggregation.align_sharpness": (IMAGES, "aggregation.align_sharpness=2.0"),
    "defence.max_update_norm": (IMAGES, "method.name=flora", "defence.max_update_norm=2.0"),
    "defence.max_norm_ratio": (
        IMAGES,
        *("privacy.mode=central", "method.weighting=uniform", "defence.max_norm_ratio=3.0"),
    ),
    "privacy.clip_norm": (IMAGES, "privacy.clip_norm=2.0"),
    "privacy.noise_multiplier": (IMAGES, "privacy.noise_multiplier=2.0"),
    "privacy.delta": (IMAGES, "privacy.delta=0.01"),
    "privacy.client_epsilon": (IMAGES, "privacy.client_epsilon=2.0"),
    "privacy.secure_aggregation": (IMAGES, "privacy.secure_aggregation=true"),
    "privacy.test_key": (IMAGES, "privacy.test_key=2"),
    "disclosure.embedding_noise": (IMAGES, "disclosure.embedding_noise=0.5"),
    "disclosure.gradient_clip": (IMAGES, "disclosure.gradient_clip=0.5"),
    "disclosure.gradient_noise": (IMAGES, "disclosure.gradient_clip=0.5", "disclosure.gradient_noise=0.5"),
    "disclosure.prototype_noise": (IMAGES, "disclosure.prototype_noise=0.5"),
    "disclosure.count_noise": (IMAGES, "disclosure.count_noise=0.5"),
    "disclosure.delta": (IMAGES, "disclosure.delta=0.01"),
    "disclosure.test_key": (IMAGES, "disclosure.test_key=2"),
    "track.project": (IMAGES, "track.project=mine"),
    "track.folder": (IMAGES, "track.folder=elsewhere"),
    "track.clients": (IMAGES, "track.clients=true"),
    "network.dtype": (IMAGES, "method.name=flora", "network.dtype=int8"),
    "parties": (IMAGES, "parties=[{label='one'}]"),
}
"""Keys that other keys can make idle, and a run file and overrides in which they are so."""

KEYS = {
    f"{key}.{name}" if name else key
    for key, field in Config.model_fields.items()
    for name in (fields_of(SECTIONS[key]) if key in SECTIONS else [""])
}


@pytest.fixture
def told(tmp_path):
    """``told(text, *overrides)``: every problem of a run file."""
    known = {}

    def found(text: str, *overrides: str) -> list[str]:
        path = tmp_path / "file.toml"
        path.write_text(text)
        problems, made = examine(path, overrides)
        return [*problems, *(problem for _, config in made for problem in check(config, known))]

    return found


def test_every_key_of_the_schema_has_a_row():
    assert all(is_section(section) for section in SECTIONS.values())
    assert USED | ON_FLOWER | OF_TEXT | REFUSED.keys() == KEYS
    assert len(USED) + len(ON_FLOWER) + len(OF_TEXT) + len(REFUSED) == len(KEYS)


@pytest.mark.parametrize("text", [IMAGES, LANGUAGE, GROUPED], ids=["images", "language", "groups"])
def test_the_files_are_right_without_the_idle_keys(told, text):
    assert told(text) == []


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_nothing_would_come_of_is_refused(told, key):
    section, _, name = key.partition(".")
    problems = told(*REFUSED[key])
    assert any(section in problem and name in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("method", "idle", "choice"),
    [
        ("fed-hello", {"allocation": "gd", "warmup": 3}, "method.allocation = 'fim' alone, and this is 'gd'"),
        ("fed-hello", {"allocation": "rgd", "score": "norm"}, "method.allocation = 'fim' alone, and this is 'rgd'"),
        ("fed-hello", {"allocation": "gd", "coverage": False}, "method.allocation = 'rgd' or 'fim' alone"),
        ("fed-hello", {"base": "output"}, "method.shape = 'triangle' or 'inverted-triangle' alone"),
        ("h2tune", {"agreement": 0.0, "temperature": 2.0}, "has no effect with method.agreement = 0.0"),
        ("h2tune", {"alignment": "top", "width": 0.2}, "method.alignment = 'learned' alone, and this is 'top'"),
        ("h2tune", {"reselect": 2}, "method.selection = 'strongest' alone, and this is 'leading'"),
        ("h2tune", {"ends": "common", "damping": 0.1}, "method.ends = 'private' or 'architecture' alone"),
        ("h2tune", {"free_after": 2}, "method.ends = 'common' alone, and this is 'private'"),
        ("proto-evfl", {"keep_after": 3}, "has no effect with method.keep = 1.0"),
        ("proto-evfl", {"local": False, "self_supervised": 1.0}, "method.local = true alone, and this is false"),
        ("lada", {"direction": "none", "candidates": 3}, "has no effect with method.direction = 'none'"),
        ("lada", {"direction": "none", "scheme": "fedmkt"}, "has no effect with method.direction = 'none'"),
        ("lada", {"filter": "all", "share": 0.3}, "method.filter = 'learnability' or"),
        ("lada", {"threshold": 0.3}, "method.choice = 'threshold' alone, and this is 'budget'"),
        ("lada", {"filter": "random", "explore": 0.1}, "method.filter = 'learnability' or 'linear-ucb' alone"),
        ("lada", {"filter": "linear-ucb", "warm": 2}, "method.filter = 'learnability' alone"),
        ("lada", {"filter": "random", "prior": "confidence"}, "method.filter = 'learnability' alone"),
        ("lada", {"prior": "confidence", "warm": 2}, "method.prior = 'none' alone"),
        ("lada", {"contrast": 0.0, "beta": 1.0}, "has no effect with method.contrast = 0.0"),
        ("fedmkt", {"weighting": "uniform"}, "method.average = true alone"),
        ("fedcot", {"average": False, "weighting": "uniform"}, "method.average = true alone"),
        ("fedcot", {"transfer": 0.0, "rationale": 0.3}, "has no effect with method.transfer = 0.0"),
        ("fedcollm", {"distil": 0.0, "temperature": 2.0}, "has no effect with method.distil = 0.0"),
        ("lada", {"filter": "verified", "verified": True}, "has no effect with method.filter = 'verified'"),
        ("heterotune", {"sharpness": 2.0}, "method.align = 'soft' alone, and this is left out"),
        ("heterotune", {"share": False, "per": "tensor"}, "method.share = true alone, and this is false"),
    ],
)
def test_a_setting_that_another_one_makes_idle_is_refused(method, idle, choice):
    from fedquilt.config.arguments import arguments
    from fedquilt.core.errors import ConfigError

    key, value = [*idle.items()][-1]
    with pytest.raises(ConfigError) as caught:
        arguments(METHODS[method], idle, prefix="method")
    (problem,) = caught.value.problems
    assert problem.startswith(f"method.{key} = ")
    assert choice in problem
    default = inspect.signature(METHODS[method]).parameters[key].default
    if default is not None:
        assert arguments(METHODS[method], {**idle, key: default}, prefix="method")[key] == default
    assert value != default


def test_the_sharpness_is_of_soft_alignment_alone(told):
    sharp = "aggregation.align_sharpness=2.0"
    (problem,) = told(IMAGES, "aggregation.align=mean", sharp)
    assert problem.startswith("aggregation.align_sharpness = 2.0: is of aggregation.align = 'soft' alone")
    assert told(IMAGES, "aggregation.align=soft", sharp) == []


def test_a_key_that_groups_share_is_idle_where_it_is_so_in_all_of_them(told):
    momentum = "training.momentum=0.9"
    (problem,) = told(GROUPED, momentum)
    assert problem.startswith("training.momentum = 0.9: is of training.optimizer = 'sgd' alone, and this is 'adamw'")
    assert told(f"{GROUPED}training = {{ optimizer = 'sgd' }}\n", momentum) == []
    (problem,) = told(f"{GROUPED}training = {{ momentum = 0.9 }}\n")
    assert problem.startswith("groups[1].training.momentum = 0.9: is of training.optimizer = 'sgd' alone")
