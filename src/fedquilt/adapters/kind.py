"""The interface of a kind of adapter, through which experiments use all adapters.

A new kind is a module with a ``Kind`` in it, a row in ``registry.KINDS``, and its keys in ``settings``, the section
[adapter] of the run file; docs/extending.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedquilt.adapters.buffers import State
from fedquilt.adapters.common.inject import CommonAdapters
from fedquilt.adapters.settings import Adapter
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params


@dataclass(frozen=True)
class Host:
    """A loaded model that is about to be adapted, and what a kind may need to know about its federation.

    Attributes
    ----------
    model : the model, without adapters.
    blocks : where its transformer blocks are.
    architecture : the name of its architecture in the federation.
    number : the number of its architecture, from 0.
    num_architectures : the number of architectures in the federation.
    fewest_layers : the number of blocks of the shallowest architecture.
    head : the names of the parameters of its head.
    trained_head : those of them that are trained; empty if the head is frozen.
    fresh_head : whether the head was initialised at random instead of being loaded with the model.
    targets : the path ends of the linear modules that are adapted by default; empty if there is no default.
    task : what it is fine-tuned for, such as ``"causal-lm"``.
    classes : the names of the classes in the order of the outputs; empty for a language model.
    state : the buffers that training changes (running statistics and their like).
    slots : whether layers with the same function share tensors by slots of depth, so that their first factors must have
        the same axes.
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
    classes: tuple[str, ...]
    state: State
    slots: bool = False


@dataclass(frozen=True)
class Export:
    """What an exported folder holds besides the adapter's tensors, and how a whole model is saved.

    Attributes
    ----------
    model_name : the model as the run file names it.
    base_name : the pretrained model, before any blocks were cut.
    num_layers : the number of its first blocks that were kept; None for all.
    revision : the revision of the model on the hub, if the run file names one.
    classes : the names of the classes in the order of the outputs; empty for a language model.
    load : puts tensors into the model, as a client does before it trains.
    save_model : writes the model with its current weights into a new folder.
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
    """The adapter that a kind has put into a model.

    Attributes
    ----------
    layout : the tensors that are trained and sent, by name: their depths and shapes.
    start : ``start(rng)`` returns the tensors that training starts from, on the CPU.
    scaling : ``scaling(module, rank)`` is ``s`` in ``W + s B A`` for low-rank factors of this rank; raises ValueError
        if the kind has no factors.
    save : ``save(folder, params, export)`` writes the tensors as a folder that ``load_adapter`` (or ``from_pretrained``
        for a whole model) reads; an existing folder is replaced.
    frozen : the tensors of the layout that clients of this architecture never train.
    settings : the settings that follow from the section and the model; None for a kind without settings.
    common : the modules with matrices in common coordinates; None for kinds without such coordinates.
    """

    layout: Layout
    start: Callable[[Rng], Params]
    scaling: Callable[[str, int], float]
    save: Callable[[Path, Mapping[str, Tensor], Export], None]
    frozen: frozenset[str] = frozenset()
    settings: Any = None
    common: CommonAdapters | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: how it is put into a model, how it is loaded, and what it can be combined with.

    Attributes
    ----------
    put : ``put(section, host)`` puts the adapters into the host's model, in place, and returns what is trained.
        ``section`` is the section [adapter] of the run file. Afterwards no parameter
        requires a gradient. Raises ConfigError or ModelError if section and model do not fit.
    load : ``load(model, blocks, folder)`` puts a saved adapter into a model without adapters, in place; None if the
        folders hold whole models.
    files : the names of the files that ``save`` writes; a folder with the first of them is of this kind.
    trains_base : whether the model's own weights are trained, so that several groups cannot share one base.
    has_factors : whether low-rank factors may be trained, ``lora_A`` and ``lora_B`` of each module.
    shares_branches : whether models of different architectures share tensors (mixtures of adapters).
    needs_public : whether all parties must have public inputs, [axes].
    ranks : ``own`` if each client may have its own rank, ``one`` if all have the same, ``none`` for kinds without
        ranks.
    """

    put: Callable[[Adapter, Host], Put]
    load: Callable[[nn.Module, Blocks, Path], None] | None = None
    files: tuple[str, ...] = ()
    trains_base: bool = False
    has_factors: bool = False
    shares_branches: bool = False
    needs_public: bool = False
    ranks: Literal["own", "one", "none"] = "none"


def no_scaling(module: str, rank: int) -> float:
    """Raise ValueError; for kinds without low-rank factors."""
    raise ValueError(f"'{module}' has no low-rank factors and therefore no scaling")
