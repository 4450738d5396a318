"""Configs of a model's parts are changed for a while, and whatever happens they come back."""

import pytest
import torch
from small_federation import rows, start_of, workbench

from fedquilt.client.model_config import configs_of, without_cache


def test_no_part_of_a_model_caches_inside_and_each_is_as_before_outside():
    model = workbench("tiny:llama?layers=3&width=8").model
    inner = type(model.config)(**{**model.config.to_dict(), "use_cache": True})
    model.model.config = inner
    assert configs_of(model)[:2] == [model.config, inner]

    def fails():
        with without_cache(model):
            assert not inner.use_cache
            assert not model.config.use_cache
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert inner.use_cache
    assert not model.config.use_cache


@pytest.mark.parametrize("recompute", [False, True])
def test_training_fills_no_cache_of_a_part(recompute):
    bench = workbench("tiny:llama?layers=3&width=8")
    bench.model.model.config = type(bench.model.config)(**{**bench.model.config.to_dict(), "use_cache": True})
    made = []
    handle = bench.model.model.register_forward_hook(lambda _, given, out: made.append(out.past_key_values))
    bench.load(start_of(bench))
    with bench.training(bench.layout.depth, recompute=recompute):
        bench.forward(rows("causal-lm", 3))[0].sum().backward()
    with torch.no_grad():
        bench.forward(rows("causal-lm", 3))
    handle.remove()
    assert made[0] is None
    assert made[1] is not None  # elsewhere the model does as it likes
