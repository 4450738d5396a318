"""The built-in language models: their shapes, what they are trained with, and the text that they read.

Three small families know sums, but no task's format. A larger model, grown from one of them, has also read word
problems with worked steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import Domain, worked
from fedquilt.data.synthetic.arithmetic_kinds import KINDS
from fedquilt.data.synthetic.arithmetic_text import passages

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "vocab_size": 640, "hidden_size": 112, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 304, "tie_word_embeddings": False, "initializer_range": 0.06,
    },
    "gemma": {
        "model_type": "gemma2", "vocab_size": 576, "hidden_size": 144, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32, "intermediate_size": 432,
        "tie_word_embeddings": True, "initializer_range": 0.06,
    },
    "qwen": {
        "model_type": "qwen3", "vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 8, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 272, "tie_word_embeddings": True,
        "initializer_range": 0.06,
    },
}  # fmt: skip
"""By family what its Hugging Face config takes: LLaMA with weights of its own for the output, Gemma 2 with one head of
keys, norms on both sides of a layer and GeGLU, Qwen 3 with norms of queries and keys."""

GROWN: dict[str, dict[str, Any]] = {"llama-12x112": {**FAMILIES["llama"], "num_hidden_layers": 12}}
"""Larger models, by family, blocks and width. They begin as the shipped model of the family with a new block behind
each of its blocks, and half of the texts that they read are word problems of ``WORKED``."""

SHAPES = {**FAMILIES, **GROWN}
"""What the config of every built-in model takes."""

WORKED = Domain(tuple(kind for kind in KINDS if kind != "sum-less"))
"""The problems whose worked steps a larger model reads; one kind is left for others to teach it."""


_BLOCK = re.compile(r"\.layers\.([0-9]+)\.")
_WRITES = ("o_proj.weight", "down_proj.weight")


class Usual(NamedTuple):
    """What a model is trained with unless told otherwise."""

    steps: int
    batch_size: int
    learning_rate: float


def usual(
    name: str, steps: int | None = None, batch_size: int | None = None, learning_rate: float | None = None
) -> Usual:
    """What the model of this name in ``SHAPES`` is trained with where nothing else is given."""
    own = Usual(800, 16, 1e-3) if name in GROWN else Usual(2500, 32, 3e-3)
    return Usual(
        own.steps if steps is None else steps,
        own.batch_size if batch_size is None else batch_size,
        own.learning_rate if learning_rate is None else learning_rate,
    )


def family_of(name: str) -> str:
    """The family of the model of this name."""
    return name.partition("-")[0]


def grown(model: nn.Module, small: nn.Module) -> None:
    """Copy a small model into one with more blocks of the same width, so that both compute the same.

    Its blocks are spread evenly over those of the larger model. All other blocks keep their initial weights, except
    for the matrices that write to the residual stream, which become zero: such a block adds nothing until it is
    trained.
    """
    own, given = model.state_dict(), small.state_dict()
    every = num_blocks(own) // num_blocks(given)
    taken = {_moved(name, every): tensor for name, tensor in given.items()}
    idle = {name: torch.zeros_like(own[name]) for name in own if name.endswith(_WRITES) and name not in taken}
    model.load_state_dict({**own, **idle, **taken})


def num_blocks(state: Mapping[str, Tensor]) -> int:
    """The number of blocks of a state dict."""
    return 1 + max(int(found[1]) for name in state if (found := _BLOCK.search(name)))


def _moved(name: str, every: int) -> str:
    """The name of a block's tensor in a model where it is the block ``every`` times as far from the first."""
    return _BLOCK.sub(lambda found: f".layers.{int(found[1]) * every}.", name)


def texts(name: str, count: int, rng: Rng) -> list[str]:
    """Draw ``count`` texts that the model of this name reads; fresh ones for each stream."""
    if name in FAMILIES:
        return passages(count, rng)
    half = count // 2
    pairs = zip(passages(half, rng.child("passages")), worked(half, rng.child("worked"), WORKED), strict=True)
    return list(chain.from_iterable(pairs))
