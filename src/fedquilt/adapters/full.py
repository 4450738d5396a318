"""Full fine-tuning as a kind of adapter: the model's own weights are trained and sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from fedquilt.adapters.buffers import State, numbers
from fedquilt.adapters.folders import replace_folder
from fedquilt.adapters.kind import Export, Host, Kind, Put, no_scaling
from fedquilt.adapters.lora.inject import copied, own_parameters, trainable
from fedquilt.adapters.settings import Adapter
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params


def full_layout(
    model: nn.Module,
    blocks: Blocks,
    architecture: str,
    head: Collection[str] = (),
    resting: Collection[str] = (),
    state: State | None = None,
) -> Layout:
    """Names, depths and shapes of all parameters of the model except ``resting``: by depth, the head last.

    Parameters before the first block (embeddings) have the depth of the first block, and those after the last block
    (the final norm) that of the last. A client that trains only some blocks therefore trains these with them. A tensor
    that the model uses twice (tied embeddings) is listed once.

    Parameters
    ----------
    model : the whole model.
    blocks : where its transformer blocks are.
    architecture : the name of the layout.
    head : the names of the trained parameters of the head.
    resting : the names of the parameters that are not trained.
    state : the buffers that training changes; they are listed with their modules, except those of a frozen head.

    Raises
    ------
    ModelError
        if a head parameter is not in the model.
    """
    parameters, buffers = own_parameters(model, head), dict(state or {})
    of_head, of_resting = (set(names) | _beside(names, parameters, buffers) for names in (head, resting))
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    shapes |= {name: tuple(buffer.value.shape) for name, buffer in buffers.items()}
    depth: dict[str, int | None] = {}
    latest = 0
    for name in _in_order(model, shapes.keys()):
        own = blocks.depth(name)
        if own is not None:
            latest = blocks.num_layers - 1
        if name not in of_head | of_resting:
            depth[name] = latest if own is None else own
    depth = dict(sorted(depth.items(), key=lambda item: item[1] or 0))
    depth |= {name: None for name in _in_order(model, shapes.keys()) if name in of_head}
    moving = frozenset(buffers) & depth.keys()
    return Layout(architecture, blocks.num_layers, depth, {name: shapes[name] for name in depth}, moving)


def initial_full(layout: Layout, model: nn.Module, state: State | None = None) -> Callable[[Rng], Params]:
    """``make(rng)``, which returns the tensors that training starts from, on the CPU.

    They are the weights, and the buffers of ``state``, as they are when this function is called.
    """
    start = {name: copied(parameter) for name, parameter in trainable(model, layout).items()}
    start |= numbers({name: buffer for name, buffer in (state or {}).items() if name in layout.buffers})
    ordered = {name: start[name] for name in layout.depth}
    return lambda rng: dict(ordered)


def _beside(head: Collection[str], parameters: Collection[str], buffers: Collection[str]) -> set[str]:
    """The buffers of the head with these parameters: of its modules, and of top-level modules that are all head."""
    modules = {name.rpartition(".")[0] for name in head}
    roots = {name.partition(".")[0] for name in head} - {name.partition(".")[0] for name in {*parameters} - {*head}}
    return {name for name in buffers if name.rpartition(".")[0] in modules or name.partition(".")[0] in roots}


def _in_order(model: nn.Module, names: Collection[str]) -> Iterator[str]:
    """These parameters and buffers, module by module."""
    for path, module in model.named_modules():
        for name in (*module._parameters, *module._buffers):
            whole = f"{path}.{name}" if path else name
            if whole in names:
                yield whole


def _put(section: Adapter, host: Host) -> Put:
    resting = frozenset(host.head) - frozenset(host.trained_head)
    where = full_layout(host.model, host.blocks, host.architecture, host.trained_head, resting, host.state)

    def save(folder: Path, params: Mapping[str, Tensor], export: Export) -> None:
        export.load(params)
        replace_folder(folder, export.save_model)

    return Put(where, initial_full(where, host.model, host.state), no_scaling, save)


FULL = Kind(_put, trains_base=True)
"""Full fine-tuning: all weights of the model are trained and sent."""
