"""What a kind of adapter is, whatever it puts into a model: the one interface through which experiments use adapters.

A new kind is a module with a ``Kind`` in it, a row in ``registry.KINDS`` and its keys in the section [adapter] of the
run file; docs/extending.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedquilt.adapters.buffers import State
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params


@dataclass(frozen=True)
class Host:
    """A loaded model that is about to be adapted, and what of its federation a kind may need to know.

    Attributes
    ----------
    model : the model, in which nothing is adapted yet.
    blocks : where its transformer blocks are.
    architecture : its name in the federation, where all that train the same adapter have the same model.
    number : which of the federation's architectures it is, from 0.
    num_architectures : how many there are.
    fewest_layers : the number of blocks of the shallowest of them.
    head : the names of the parameters of its head.
    trained_head : those of them that are trained; none where the head is frozen.
    fresh_head : whether the head's values were drawn and did not come with the model.
    targets : the linear modules that are usually adapted, by the ends of their paths; empty if that is not known.
    task : what it is fine-tuned for, such as ``"causal-lm"``.
    state : the buffers that training changes (running statistics and their like).
    """

    model: nn.Module
    blocks: Blocks
    architecture: str
    number: int
    num_architectures: int
    fewest_layers: int
    head: tuple[str, ...]
    trained_head: tuple[str, ...]
    fresh_head: bool
    targets: tuple[str, ...]
    task: str
    state: State


@dataclass(frozen=True)
class Export:
    """What a folder with an adapter says besides the tensors, and how it comes by a whole model.

    Attributes
    ----------
    model_name : the model as the run file names it.
    base_name : the model whose blocks these are, before any were cut.
    num_layers : how many of its blocks were kept, the first ones; None for all.
    revision : the revision of the model on the hub, if one was named.
    classes : the names of the model's outputs, in their order; empty for a language model.
    load : puts tensors into the model, as a client does before it trains.
    save_model : writes the model as it now is into a new folder.
    """

    model_name: str
    base_name: str
    num_layers: int | None
    revision: str | None
    classes: tuple[str, ...]
    load: Callable[[Mapping[str, Tensor]], None]
    save_model: Callable[[Path], None]


@dataclass(frozen=True)
class Put:
    """What is trained in a model, once a kind has put it there.

    Attributes
    ----------
    layout : the tensors that are trained and sent, by name: their depths and shapes.
    start : ``make(rng)``: what training starts from, on the CPU.
    scaling : ``s`` of a module with low-rank factors of this rank, in ``W + s B A``; raises ValueError where the kind
        has none.
    save : ``save(folder, params, export)`` writes the tensors as a folder that ``load_adapter`` (or, of a whole model,
        ``from_pretrained``) reads; one that is there is replaced.
    frozen : the tensors of the layout that clients of this architecture never train.
    settings : what the kind was told by the section and by the model, None for a kind without settings.
    """

    layout: Layout
    start: Callable[[Rng], Params]
    scaling: Callable[[str, int], float]
    save: Callable[[Path, Mapping[str, Tensor], Export], None]
    frozen: frozenset[str] = frozenset()
    settings: Any = None


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: how it comes into a model, how it is read back, and what may be combined with it.

    Attributes
    ----------
    put : ``put(section, host)`` puts the adapters into the host's model, in place, and says what is trained there.
        ``section`` is the section [adapter] of the run file, with the section's keys as attributes. Afterwards no
        parameter requires a gradient. Raises ConfigError or ModelError where section and model do not fit.
    load : ``load(model, blocks, folder)`` puts a saved adapter into a bare model, in place; None where folders hold
        whole models.
    files : the names of the files that ``save`` writes; a folder with the first of them is of this kind.
    trains_base : whether the model's own weights are trained, so that models of several groups cannot share them.
    has_factors : whether what is trained are low-rank factors, ``lora_A`` and ``lora_B`` of each module.
    shares_branches : whether models of different architectures share tensors (mixtures of adapters).
    ranks : whether each client may have a rank of its ``own``, all have ``one``, or adapters of the kind have ``none``.
    """

    put: Callable[[Any, Host], Put]
    load: Callable[[nn.Module, Blocks, Path], None] | None = None
    files: tuple[str, ...] = ()
    trains_base: bool = False
    has_factors: bool = False
    shares_branches: bool = False
    ranks: Literal["own", "one", "none"] = "none"


def no_scaling(module: str, rank: int) -> float:
    """Raise ValueError: the ``scaling`` of kinds without low-rank factors."""
    raise ValueError(f"'{module}' has no low-rank factors, and so no scale")
