from types import SimpleNamespace

import pytest
from torch import nn

from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks
from fedquilt.models.layers import default_targets, find_blocks


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


def of_two_parts(text: int, vision: int, told_of_vision: int) -> nn.Module:
    """A model of a text and a vision part, each with blocks and a config of its own."""
    made = nn.Module()
    made.config = SimpleNamespace(
        text_config=SimpleNamespace(num_hidden_layers=text),
        vision_config=SimpleNamespace(num_hidden_layers=told_of_vision),
    )
    for name, number in (("vision", vision), ("text", text)):
        part = nn.Module()
        part.config = getattr(made.config, f"{name}_config")
        part.layers = blocks(number)
        setattr(made, name, part)
    return made


def test_of_a_model_with_a_part_for_text_the_text_blocks_count():
    assert find_blocks(of_two_parts(3, 3, 3)) == Blocks("text.layers", 3)
    assert find_blocks(of_two_parts(2, 5, 5)) == Blocks("text.layers", 2)


def test_each_part_is_held_to_its_own_config():
    made = of_two_parts(2, 5, 5)
    del made.text  # as a classifier of images keeps the vision part alone, and the config of both
    assert find_blocks(made) == Blocks("vision.layers", 5)


def test_of_parts_with_configs_of_their_own_that_of_the_whole_model_decides():
    made = model(3, body=blocks(3), ends=nn.Module())
    made.body.ends.config = SimpleNamespace(num_hidden_layers=1)
    made.body.ends.layers = blocks(1)
    assert find_blocks(made) == Blocks("body.body", 3)


def test_an_encoder_decoder_is_refused_as_what_it_is():
    made = model(2, encoder=blocks(2), decoder=blocks(2))
    made.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match=r"Module is an encoder-decoder: .*\(body\.encoder, body\.decoder\)"):
        find_blocks(made)


@pytest.mark.parametrize(
    ("names", "targets"),
    [
        (("query_proj", "key_proj", "value_proj"), ("query_proj", "value_proj")),
        (("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"), ("q_b_proj", "kv_b_proj")),
        (("q", "k", "v", "o"), ("q", "v")),
        (("fc1", "fc2"), ()),
    ],
)
def test_query_and_value_are_known_by_the_names_of_many_families(names, targets):
    made = nn.Module()
    made.layers = nn.ModuleList(nn.ModuleDict({name: nn.Linear(2, 2) for name in names}) for _ in range(2))
    assert default_targets(made, Blocks("layers", 2)) == targets
