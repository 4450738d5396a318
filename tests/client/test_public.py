"""Features on public inputs: which token stands for a word, and that passes over the inputs change nothing."""

import pytest
import torch

from fedquilt.adapters.common.inject import inject_common
from fedquilt.adapters.common.settings import Axes, CommonSettings
from fedquilt.client import public
from fedquilt.client.public import ENDS, PublicInputs
from fedquilt.core.rng import Rng
from fedquilt.data.table import Table
from fedquilt.models.hf import load_model

TEXTS = [f"{first} {second} words here" for first in ("some", "other", "more") for second in ("red", "blue", "dark")]


def inputs_of(rows: str, model: str = "tiny:gpt2?layers=3&width=8") -> PublicInputs:
    loaded = load_model(model, "causal-lm", num_classes=None, rng=Rng(0), max_length=32)
    adapters = inject_common(loaded.model, loaded.blocks, CommonSettings(rank=2, num_slots=2))
    columns = loaded.encode(Table("text", TEXTS, None, ()))
    if rows == "words":
        columns[ENDS] = loaded.reading.words(TEXTS, columns, 3)
    settings = Axes(inputs=6, held_out=3, basis=4, rows=rows, words=3)
    return PublicInputs(loaded.model, adapters, settings, torch.device("cpu"), loaded.prepare, columns, Rng(1))


def points_of(rows: PublicInputs) -> dict[str, torch.Tensor]:
    generator = Rng(1).torch()
    shapes = {name: basis.shape[0] for name, basis in rows.bases().items()}
    return {
        f"point.{name.partition('.')[2]}": torch.randn(count, 2, generator=generator) for name, count in shapes.items()
    }


def axes_of(rows: PublicInputs) -> list[torch.Tensor]:
    rows.place(points_of(rows))
    buffers = [buffer.clone() for own in rows.adapters.linears.values() for buffer in own.buffers(recurse=False)]
    return [*buffers, *rows.seen().values(), *rows.bases().values()]


def test_a_word_is_observed_at_its_last_token() -> None:
    rows = inputs_of("words")
    name = next(iter(rows._observed))
    ((_, found),) = rows._features([name], rows._batches, 9)
    heard = []
    with rows.adapters.taken_out(rows.model), torch.no_grad():
        hook = rows.model.get_submodule(name).register_forward_hook(lambda _, inputs, output: heard.append(output))
        for text in TEXTS:  # one at a time, up to the end of its third word: tokens before do not see what follows
            ids = torch.tensor([[1, *(rows.rows["input_ids"][TEXTS.index(text), 1 : 1 + len(text[:-5])])]])
            rows.model(input_ids=ids)
        hook.remove()
    assert found.outputs.shape == (9, 3, 8)
    for row, features in enumerate(heard):
        torch.testing.assert_close(found.outputs[row, 2], features[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ["inputs", "words"])
def test_one_module_at_a_time_gives_the_same_bits_as_all_at_once(rows: str, monkeypatch) -> None:
    once, passes = axes_of(inputs_of(rows)), []
    monkeypatch.setattr(public, "_KEPT", 0)
    one_by_one = inputs_of(rows)
    before = one_by_one._pass
    monkeypatch.setattr(one_by_one, "_pass", lambda *given: passes.append(before(*given)) or passes[-1])
    many = axes_of(one_by_one)
    assert all(torch.equal(one, other) for one, other in zip(once, many, strict=True))
    assert len(passes) == 6 + 2 * 4  # six adapted modules, and twice the four that are observed


def test_shapes_are_those_of_what_is_said() -> None:
    for rows in ("inputs", "words"):
        own = inputs_of(rows)
        example = own.prepare({name: column[:2] for name, column in own.rows.items() if name != ENDS})
        told = own.shapes(2, example)
        bases = own.bases()
        assert {name: tensor.shape for name, tensor in bases.items()} == {n: t.shape for n, t in told.bases.items()}
        own.place(points_of(own))
        assert {name: tensor.shape for name, tensor in own.seen().items()} == {n: t.shape for n, t in told.seen.items()}
