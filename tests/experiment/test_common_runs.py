"""Runs in common coordinates: public inputs, a run among architectures, resume, and what is refused."""

import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedquilt import load_adapter
from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.rng import Rng
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.build import shaped
from fedquilt.experiment.first_round import refuse_idle, training_of
from fedquilt.experiment.trained_model import trained_model
from fedquilt.models.hf import load_model
from fedquilt.record import Record, read_rounds

FILE = """
rounds = 2
threads = 1
model = { name = "tiny:vit?layers=2&width=8", task = "image-classification" }
data = { source = "sklearn:digits", limit = 60 }
partition = { num_clients = 4, test_fraction = 0.2 }
adapter = { kind = "common", rank = 4, alpha = 4, private_rank = 1 }
axes = { source = "glyphs:80", inputs = 60, held_out = 20, basis = 8 }
training = { steps = 2, batch_size = 8, learning_rate = 0.01 }
method = { name = "heterotune", align = "none" }

[[groups]]
label = "small"
budget = 2

[[groups]]
label = "large"
budget = 3
model = { name = "tiny:vit?layers=3&width=16", task = "image-classification" }
"""

ONE_ARCHITECTURE = (("budget = 3", "budget = 2"), ("layers=3&width=16", "layers=2&width=8"))
RULE = 'aggregation = { rule = "flexlora" }\n\n[[groups]]'


def test_a_run_among_architectures_shares_cores_and_is_saved_as_lora(tmp_path: Path) -> None:
    folder = run(parse(tomllib.loads(FILE)), tmp_path / "run")
    lines = read_rounds(folder)
    assert set(lines[0]["state"]["agreement"]) >= {"attention.0", "feed-forward.1", "head"}
    assert (folder / "adapters" / "client-000" / "adapter_config.json").is_file()
    config = parse(tomllib.loads(FILE))
    experiment = build(config)
    client = experiment.clients[0]
    base = load_model("tiny:vit?layers=2&width=8", "image-classification", num_classes=10, rng=Rng(9)).model
    adapted = load_adapter(base, folder / "adapters" / "global-small").eval()
    batch = {name: column[:3] for name, column in client.train.items()}
    assert torch.isfinite(adapted(**client.bench.prepare(batch)).logits).all()


@pytest.mark.parametrize("name", ["fedit", "flora"])
def test_any_method_beside_shared_cores_is_saved_as_the_model_that_was_trained(tmp_path: Path, name: str) -> None:
    """FLoRA merges into the base, below the cores, and what it merged is in the saved LoRA too."""
    config = parse(tomllib.loads(FILE.replace('name = "heterotune", align = "none"', f'name = "{name}"')))
    folder = run(config, tmp_path / "run")
    experiment, (_, state, _) = build(config), Record.open(folder).load_checkpoint()
    group = experiment.groups[0]
    order = experiment.method.view(state, group.server.profile)
    assert any(name.startswith("common.") and tensor.any() for name, tensor in order.params.items())
    assert any(name.endswith(".shift") for name in order.params) == (name == "flora")
    group.bench.load(group.server.params(order))
    batch = group.bench.prepare({name: column[:5] for name, column in experiment.clients[0].train.items()})
    with torch.no_grad():
        wanted = group.bench.model(**batch).logits
        found = trained_model(folder, group="small")(**batch).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_control_without_sharing_across_averages_within_each_architecture(tmp_path: Path) -> None:
    text = FILE.replace('source = "glyphs:80"', 'source = "glyphs:80", share = "architecture"')
    for name in ('name = "heterotune", align = "none"', 'name = "fedit"'):
        config = parse(tomllib.loads(text.replace('name = "heterotune", align = "none"', name)))
        _, state, _ = Record.open(run(config, tmp_path / name[8:12])).load_checkpoint()
        one, other = (own["params"] for own in state["apart"].values())
        assert not torch.equal(one["common.feed-forward.1"], other["common.feed-forward.1"])


def test_a_local_head_stays_with_each_client_while_cores_are_shared(tmp_path: Path) -> None:
    text = FILE.replace('name = "heterotune", align = "none"', 'name = "fedit"')
    folder = run(parse(tomllib.loads("head = { policy = 'local' }\n" + text)), tmp_path / "run")
    _, state, memories = Record.open(folder).load_checkpoint()
    assert all("head" not in name for name in state["shared"]["params"])
    heads = [t for one in memories.values() for name, t in one["params"].items() if name.startswith("common.head")]
    assert len(heads) == 4
    assert not torch.equal(heads[0], heads[1])


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(parse(tomllib.loads(FILE)), tmp_path / "whole")
    again = shutil.copytree(whole, tmp_path / "again")
    resume(again, back_to=1)
    one, other = (folder / "adapters" / "global-large" / "adapter_model.safetensors" for folder in (whole, again))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            'axes = { rows = "words" }',
            r"axes\.rows = 'words': is for .* texts, .* read images; allowed: inputs, tokens",
        ),
        ("axes = { words = 3 }", r"axes\.words = 3: only counts with axes\.rows = 'words', and this is 'inputs'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(change, message) -> None:
    text = FILE.replace('axes = { source = "glyphs:80", inputs = 60, held_out = 20, basis = 8 }', change)
    with pytest.raises(ConfigError, match=message):
        build(parse(tomllib.loads(text)))


ALONE = """
rounds = 2
threads = 1
model = { name = "tiny:vit?layers=2&width=8", task = "image-classification" }
data = { source = "sklearn:digits", limit = 60 }
partition = { num_clients = 4, test_fraction = 0.2 }
training = { steps = 2, batch_size = 8, learning_rate = 0.01 }
clients = { budgets = [1, 2, 2] }
method = { name = "fedit", weighting = "uniform" }
privacy = { mode = "local", clip_norm = 1.0, noise_multiplier = 2.0, test_key = 7 }
"""
COMMON = """
adapter = { kind = "common", rank = 4, alpha = 4, private_rank = 1 }
axes = { source = "glyphs:80", inputs = 60, held_out = 20, basis = 8 }
"""


@pytest.mark.parametrize("mode", ["local", "central"])
def test_the_exchange_of_public_bases_costs_no_privacy(tmp_path: Path, mode: str) -> None:
    text = ALONE.replace('"local"', f'"{mode}"')
    plain, ours = (
        read_rounds(run(parse(tomllib.loads(whole)), tmp_path / name))
        for name, whole in (("plain", text), ("ours", text + COMMON))
    )
    assert [line["privacy"] for line in ours] == [line["privacy"] for line in plain]
    assert plain[-1]["privacy"]["releases"] == 2
    assert ours[0]["exchanges"][0]["exchange"] == "axes-bases"
    assert all(not exchange["dropped"] for line in ours for exchange in line["exchanges"])


def test_under_privacy_common_coordinates_have_no_noise(tmp_path: Path) -> None:
    states = []
    for noise in (2.0, 50.0):
        text = (ALONE + COMMON).replace("2.0, test_key", f"{noise}, test_key")
        states.append(Record.open(run(parse(tomllib.loads(text)), tmp_path / str(noise))).load_checkpoint()[1])
    assert all(torch.equal(t, states[1]["axes"]["points"][n]) for n, t in states[0]["axes"]["points"].items())
    assert not torch.equal(*(state["params"]["common.attention.1"] for state in states))


@pytest.mark.parametrize("method", ['"heterotune", align = "none"', '"fedit"', '"h2tune"'])
def test_a_client_that_would_train_nothing_is_refused_before_a_model_is_loaded(method) -> None:
    text = "head = { policy = 'frozen' }\n" + FILE.replace(", private_rank = 1", "")
    text = text.replace('"heterotune", align = "none"', method)
    assert build(parse(tomllib.loads(text)))
    with pytest.raises(ConfigError, match=r"client 2 has a budget of 1 of the 3 blocks of .* would train nothing"):
        build(parse(tomllib.loads(text.replace("budget = 3", "budget = 1"))))  # block 2 of 3 shares a core with block 1


@pytest.mark.parametrize(("rounds", "working"), [(2, None), (1, 1), (60, 55)])
def test_a_client_that_trains_nothing_in_any_round_is_refused(rounds, working) -> None:
    assert re.search(r"client 2 .* would train nothing", refusal(rounds, working))


@pytest.mark.parametrize(("rounds", "working"), [(2, 0), (2, 1), (60, 40)])
def test_a_client_that_trains_something_in_a_later_round_is_not_refused(rounds, working) -> None:
    assert refusal(rounds, working) == ""


def refusal(rounds, working) -> str:
    """Why client 2 is refused, or nothing: it trains a block whose core it does not reach, except in one round."""
    text = "head = { policy = 'frozen' }\n" + FILE.replace(", private_rank = 1", "")
    experiment = shaped(parse({**tomllib.loads(text), "rounds": rounds}))
    training = training_of(experiment.method)

    def ask(state, turn):
        orders = dict(training.ask(state, turn))
        if turn.round != working:
            orders[2] = replace(orders[2], settings={**orders[2].settings, "layers": [2]})
        return orders

    method = experiment.method._replace(exchanges=(training._replace(ask=ask),))
    try:
        refuse_idle(method, experiment.federation, experiment.rng)
    except ConfigError as error:
        return str(error)
    return ""


def test_models_that_read_unlike_inputs_have_none_in_common() -> None:
    text = FILE.replace('"tiny:vit?layers=3&width=16", task = "image', '"tiny:bert", task = "sequence')
    with pytest.raises(ConfigError, match="models of the groups read images, texts"):
        build(parse(tomllib.loads(text)))


TEXTS = """
rounds = 1
threads = 1
model = { name = "tiny:gpt2?layers=2&width=8", task = "causal-lm" }
data = { source = "arithmetic:blank?train=40&test=8" }
partition = { num_clients = 2 }
adapter = { kind = "common", rank = 4, alpha = 4 }
axes = { inputs = 30, held_out = 10, basis = 8, rows = "words", words = 4 }
training = { steps = 1, batch_size = 4, learning_rate = 0.01 }
method = { name = "heterotune", align = "none" }

[[groups]]
label = "bytes"
budget = 2

[[groups]]
label = "pieces"
budget = 8
model = { name = "arith-qwen", task = "causal-lm" }
"""


def test_language_models_with_unlike_tokenizers_agree_on_words_of_the_bundled_text(tmp_path: Path) -> None:
    experiment = build(parse(tomllib.loads(TEXTS)))
    bases = [client.bases() for client in experiment.clients.values()]
    assert bases[0].keys() == bases[1].keys()
    assert {len(basis) for own in bases for basis in own.values()} == {30 * 4}
    lines = read_rounds(run(parse(tomllib.loads(TEXTS)), tmp_path / "run"))
    assert set(lines[0]["state"]["agreement"]) >= {"attention.0", "feed-forward.1"}


def test_classifiers_with_unlike_heads_observe_one_input_at_a_time_there(words: Path) -> None:
    """GPT-2 classifies each token and BERT the first one alone."""
    text = TEXTS.replace("causal-lm", "sequence-classification").replace("budget = 8", "budget = 2")
    text = text.replace("arith-qwen", "tiny:bert?layers=2&width=8")
    experiment = build(parse(tomllib.loads(text.replace("arithmetic:blank?train=40&test=8", str(words)))))
    for client in experiment.clients.values():
        bases = client.bases()
        assert len(bases["basis.head"]) == 30
        assert len(bases["basis.attention.0"]) == 30 * 4


def test_tokens_of_a_text_are_not_the_same_for_all_models() -> None:
    text = TEXTS.replace('rows = "words", words = 4', 'rows = "tokens"')
    with pytest.raises(ConfigError, match=r"axes\.rows = 'tokens': is for .* images, .* texts; allowed: inputs, words"):
        build(parse(tomllib.loads(text)))


def test_only_texts_of_so_many_words_are_public_inputs() -> None:
    text = TEXTS.replace("words = 4", "words = 26")
    with pytest.raises(DataError, match=r"has \d+ rows of at least axes\.words = 26 words, and axes\.inputs = 30 and"):
        build(parse(tomllib.loads(text.replace("held_out = 10", "held_out = 1000"))))
    with pytest.raises(DataError, match=r"axes\.words = 12: .* at most 20 tokens, .* model\.max_length higher"):
        build(
            parse(
                tomllib.loads(
                    text.replace("words = 26", "words = 12").replace(
                        '"causal-lm" }', '"causal-lm", max_length = 20 }', 1
                    )
                )
            )
        )


def test_axes_without_adapters_that_read_them_have_no_effect() -> None:
    text = FILE.replace('kind = "common", rank = 4, alpha = 4, private_rank = 1', "rank = 4").replace(
        'name = "heterotune", align = "none"', 'name = "fedit"'
    )
    with pytest.raises(ConfigError, match=r"axes\.source = 'glyphs:80': has no effect.*\n.*axes\.inputs = 60"):
        build(parse(tomllib.loads(text)))


def test_too_few_public_inputs_are_refused_with_the_numbers(tmp_path: Path) -> None:
    text = FILE.replace('source = "glyphs:80", inputs = 60', 'source = "sklearn:digits", inputs = 5000')
    with pytest.raises(DataError, match=r"has 1797 rows, and axes\.inputs = 5000 and axes\.held_out = 20 need 5020"):
        build(parse(tomllib.loads(text)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("private_rank = 1", "private_rank = 0"), ("heterotune", "flexlora")],
            r"adapter\.private_rank = 0: method\.name = 'flexlora' needs LoRA factors.*set adapter\.private_rank",
        ),
        (
            [("private_rank = 1", "private_rank = 0"), ("heterotune", "fedit"), ("[[groups]]", RULE)],
            r"aggregation\.rule = 'flexlora': combines LoRA factors, and with adapter\.private_rank = 0",
        ),
        ([("[[groups]]", RULE)], r"aggregation\.rule = 'flexlora': method\.name = 'heterotune' averages adapters in"),
        (
            [("limit = 60", "limit = 60, proxy = 5"), ("heterotune", "fedit")],
            r"data\.proxy = 5: the server's own model",
        ),
        ([('align = "none"', "share = false")], r"method\.share = false: .*axes\.share = 'architecture'"),
        (
            [("heterotune", "local-only"), ("inputs = 60", 'share = "architecture", inputs = 60')],
            r"axes\.share = 'architecture': with method\.name = 'local-only' nothing is sent",
        ),
        (
            [("heterotune", "fedit"), ("budget = 3", 'budget = 3\nadapter = { kind = "common", rank = 3 }')],
            r"adapter\.rank is not the same in all groups \(small 4, large 3\), so they have no common coordinates",
        ),
        (
            [
                ("heterotune", "fedit"),
                ("inputs = 60", 'share = "architecture", inputs = 60'),
                *ONE_ARCHITECTURE,
            ],
            r"axes\.share = 'architecture': has no effect, as all clients have the same architecture",
        ),
        (
            [("inputs = 60", "min_agreement = 0.1, inputs = 60"), *ONE_ARCHITECTURE],
            r"axes\.min_agreement = 0\.1: has no effect, as all clients have the same architecture",
        ),
        (
            [("inputs = 60", 'min_agreement = 0.1, control = "rotated", inputs = 60')],
            r"axes\.min_agreement = 0\.1: has no effect with axes\.control = 'rotated'",
        ),
    ],
)
def test_what_methods_cannot_do_beside_cores_is_refused_with_the_remedy(changes, message) -> None:
    text = FILE
    for old, new in changes:
        text = text.replace(old, new, 1)
    if 'name = "heterotune"' not in text:
        text = text.replace(', align = "none"', "")
    with pytest.raises(ConfigError, match=message):
        build(parse(tomllib.loads(text)))
