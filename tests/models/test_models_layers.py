from types import SimpleNamespace

import pytest
from torch import nn

from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks
from fedquilt.models.layers import find_blocks


def blocks(number: int, experts: int = 0) -> nn.ModuleList:
    made = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(number))
    for block in made:
        if experts:
            block.append(nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(experts)))
    return made


def model(num_layers: int | None = None, **parts: nn.Module) -> nn.Module:
    made = nn.Module()
    if num_layers is not None:
        made.config = SimpleNamespace(num_hidden_layers=num_layers)
    made.body = nn.Module()
    for name, part in parts.items():
        setattr(made.body, name, part)
    return made


def test_the_list_as_long_as_the_config_says_is_found_whatever_its_name():
    assert find_blocks(model(3, steps=blocks(3), extra=blocks(2))) == Blocks("body.steps", 3)


def test_without_a_config_the_only_list_is_found():
    assert find_blocks(model(steps=blocks(4))) == Blocks("body.steps", 4)


def test_experts_inside_blocks_and_lists_of_norms_are_no_candidates():
    norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(3))
    assert find_blocks(model(3, steps=blocks(3, experts=3), norms=norms)) == Blocks("body.steps", 3)


def test_the_text_part_of_a_config_counts():
    made = model(steps=blocks(3), vision=blocks(2))
    made.config = SimpleNamespace(text_config=SimpleNamespace(num_hidden_layers=3))
    assert find_blocks(made) == Blocks("body.steps", 3)


def test_two_lists_that_cannot_be_told_apart_are_named():
    with pytest.raises(
        ModelError, match=r"several lists of blocks of 3 .*'body\.encoder' \(3\), 'body\.decoder' \(3\)"
    ):
        find_blocks(model(3, encoder=blocks(3), decoder=blocks(3)))
    with pytest.raises(ModelError, match=r"several lists of blocks that cannot be told apart"):
        find_blocks(model(encoder=blocks(3), decoder=blocks(2)))


def test_a_model_without_a_block_list_is_told_with_what_there_is():
    with pytest.raises(
        ModelError, match=r"no list of equal blocks; its module lists of one class are: none.*nn\.Module"
    ):
        find_blocks(model(line=nn.Linear(2, 2)))
    with pytest.raises(ModelError, match=r"no list of equal blocks of 5 .* are: 'body\.steps' \(3\)"):
        find_blocks(model(5, steps=blocks(3)))
    mixed = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.TransformerEncoderLayer(2, 1)])
    with pytest.raises(ModelError, match="are: none"):
        find_blocks(model(2, steps=mixed))
